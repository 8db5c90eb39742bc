"""The launcher of tools/dist_*.sh, with processes that do almost nothing.

It is forked from this process, which has imported PyTorch already: that takes most of its start.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmattn.runs import agent, launch

ROOT = Path(__file__).parents[2]
OWN = ('PORT', 'MASTER_ADDR', 'NNODES', 'NODE_RANK', 'OMP_NUM_THREADS', 'RESTARTS')


class Launcher:
    """A launcher of a script in ``count`` processes."""

    def __init__(self, folder, count, code, *args, **environment):
        folder.mkdir(exist_ok=True)
        script = folder / 'script.py'
        script.write_text(
            'import os, signal, sys, time\n'
            'rank, attempt = int(os.environ["RANK"]), int(os.environ["MMATTN_ATTEMPT"])\n'
            'def say(*words):\n'
            '    os.write(1, (" ".join(map(str, words)) + "\\n").encode())\n' + code
        )
        self.streams = [folder / 'out', folder / 'err']
        for stream in self.streams:
            stream.write_text('')
        self.pid = os.fork()
        if self.pid:
            return
        code = 99
        try:
            for number, stream in enumerate(self.streams, 1):
                os.dup2(os.open(stream, os.O_WRONLY | os.O_APPEND), number)
            sys.stdout, sys.stderr = open(1, 'w'), open(2, 'w')  # noqa: SIM115
            for name in OWN:
                os.environ.pop(name, None)
            os.environ.update(environment)
            sys.argv = [launch.__file__, str(count), str(script), *args]
            sys.modules['agent'] = agent
            launch.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stderr.flush()
            os._exit(code)

    def out(self, lines):
        """Waits for some lines of output, sorted."""
        return self._wait_for(lambda: sorted(self.streams[0].read_text().splitlines()), lines)

    def _wait_for(self, read, lines):
        deadline = time.monotonic() + 60
        while len(read()) < lines:
            assert time.monotonic() < deadline, [stream.read_text() for stream in self.streams]
            time.sleep(0.02)
        return read()

    def kill(self, signum):
        os.kill(self.pid, signum)

    def finish(self, seconds=60):
        """Exit code, output, errors."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self.kill(signal.SIGKILL)
                pytest.fail('the launcher does not end')
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(status), *(path.read_text() for path in self.streams)


@pytest.fixture
def start(tmp_path):
    return lambda *args, **environment: Launcher(tmp_path / 'node', *args, **environment)


SHOW = """
names = 'RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS'.split()
say(*[os.environ[name] for name in names], *sys.argv[1:])
"""


def test_environment_and_arguments(start):
    code, out, err = start(2, SHOW, '--a', 'b c').finish()
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (code, err) == (0, '')
    assert sorted(out.splitlines()) == [
        f'{rank} {rank} 2 2 127.0.0.1 {threads} --a b c' for rank in (0, 1)
    ]


@pytest.fixture
def two(tmp_path):
    """Launchers of two machines."""

    def run(count, code, **environment):
        common = dict(
            environment, NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(launch.free_port())
        )
        return [
            Launcher(tmp_path / str(node), count, code, **common, NODE_RANK=str(node))
            for node in (1, 0)  # the first waits for the second
        ][::-1]

    return run


def test_several_machines(two):
    nodes = two(2, SHOW, OMP_NUM_THREADS='7')
    codes, outs, errs = zip(*[node.finish() for node in nodes], strict=True)
    assert codes == (0, 0) and errs == ('', '')
    for node, out in enumerate(outs):
        assert sorted(out.splitlines()) == [
            f'{2 * node + rank} {rank} 4 2 127.0.0.1 7' for rank in (0, 1)
        ]


def test_machines_start_again_together(two):
    """The other machine's processes notice nothing themselves."""
    nodes = two(
        1,
        """
say(rank, attempt)
if attempt == 0:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)
""",
    )
    ends = [node.finish() for node in nodes]
    assert [code for code, _, _ in ends] == [0, 0]
    assert [out.split() for _, out, _ in ends] == [['0', '0', '0', '1'], ['1', '0', '1', '1']]
    assert ends[0][2] == '' and 'restart 1 of 3' in ends[1][2]


def test_machine_that_is_done_starts_again_with_another(two):
    """The last checkpoint is not the other's alone."""
    nodes = two(
        1,
        """
say(rank, attempt)
if attempt == 0 and rank == 1:
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    ends = [node.finish() for node in nodes]
    assert [code for code, _, _ in ends] == [0, 0]
    assert [out.split() for _, out, _ in ends] == [['0', '0', '0', '1'], ['1', '0', '1', '1']]


@pytest.mark.parametrize('rank', [0, 1])
def test_machines_end_together(two, rank):
    nodes = two(1, f'sys.exit(2) if rank == {rank} else time.sleep(100)')
    ends = [node.finish() for node in nodes]
    assert [code for code, _, _ in ends] == [2, 2]
    assert 'another machine ended with exit code 2' in ends[1 - rank][2]


def test_machine_that_does_not_come(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, 'JOIN_TIMEOUT', 0.5)
    common = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(launch.free_port()))
    code, _, err = Launcher(tmp_path / '0', 1, SHOW, **common, NODE_RANK='0').finish()
    assert code == 2 and '1 of 2 machines came to 127.0.0.1' in err and err.count('\n') == 1
    code, _, err = Launcher(tmp_path / '1', 1, SHOW, **common, NODE_RANK='1').finish()
    assert code == 2 and 'no connection to 127.0.0.1' in err and err.count('\n') == 1


def test_free_port_by_default_and_fixed_one_between_machines(monkeypatch):
    monkeypatch.delenv('PORT', raising=False)
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    ports = {launch.rendezvous(1, 0)[1] for _ in range(5)}
    assert 29500 not in ports and all(port > 1023 for port in ports)
    assert launch.rendezvous(2, 1) == ('127.0.0.1', 29500)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_busy_port(script):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [
                'bash',
                ROOT / 'tools' / script,
                'config.py',
                *['x.pth'][: script == 'dist_test.sh'],
                '2',
            ],
            env=dict(os.environ, PORT=str(port), PYTHON=sys.executable),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ran.returncode == 2
    assert ran.stderr == (
        f'error: port {port} is in use; set PORT to another one, or leave it unset\n'
    )


@pytest.mark.parametrize(
    'count, environment, message',
    [
        ('0', {}, "number of processes must be a positive integer, got '0'"),
        ('two', {}, "number of processes must be a positive integer, got 'two'"),
        ('1', {'PORT': '99999'}, "PORT must be a number from 1 to 65535, got '99999'"),
        ('1', {'RESTARTS': '-1'}, "RESTARTS must be a number from 0 to 1000000, got '-1'"),
        ('1', {'NNODES': '2'}, 'MASTER_ADDR must name the machine of NODE_RANK 0'),
        ('1', {'NNODES': '2', 'NODE_RANK': '2'}, "NODE_RANK must be a number from 0 to 1, got '2'"),
    ],
)
def test_bad_settings(start, count, environment, message):
    code, out, err = start(count, SHOW, **environment).finish()
    assert code == 2 and out == ''
    assert message in err and err.count('\n') == 1


@pytest.mark.parametrize('script', ['train', 'test'])
def test_scripts_tell_their_usage(script):
    for kind in ('dist', 'slurm'):
        ran = subprocess.run(
            ['bash', ROOT / 'tools' / f'{kind}_{script}.sh'], capture_output=True, text=True
        )
        assert ran.returncode == 2 and ran.stderr.startswith('usage: ')


def test_one_failure_ends_all(start, monkeypatch):
    monkeypatch.setattr(agent, 'GRACE', 1)
    begin = time.monotonic()
    code, _, err = start(
        2,
        """
if rank == 1:
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(100)
""",
        RESTARTS='0',
    ).finish()
    assert code == 7
    assert time.monotonic() - begin < 40
    assert err == 'error: process 1 failed with exit code 7; MMATTN_DEBUG=1 shows its traceback\n'


def test_the_others_have_time_to_say_why(start):
    """A process that meets the same error later than another is not cut off."""
    code, out, err = start(
        2,
        """
if rank == 0:
    time.sleep(1)
    say('why')
sys.exit(2)
""",
    ).finish()
    assert (code, out, err) == (2, 'why\n', '')


def test_first_process_failing_says_nothing_more(start):
    code, _, err = start(2, 'sys.exit(3 if rank == 0 else 0)', RESTARTS='0').finish()
    assert (code, err) == (3, '')


def test_death_by_signal_has_a_shell_s_code(start):
    code, _, err = start(1, 'os.kill(os.getpid(), signal.SIGKILL)', RESTARTS='1').finish()
    assert code == 128 + signal.SIGKILL
    assert err == (
        'process 0 was killed by SIGKILL; restart 1 of 1\nerror: process 0 was killed by SIGKILL\n'
    )


MEET = f"""
sys.path.insert(0, {str(ROOT)!r})
from datetime import timedelta
from torch import distributed
import importlib.util
spec = importlib.util.spec_from_file_location(
    'processes', {str(ROOT / 'mmattn' / 'runs' / 'processes.py')!r})
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
store = processes.attempt_store()
store.set_timeout(timedelta(seconds=30))
store.set(f'here_{{rank}}', str(attempt))
say(rank, store.get(f'here_{{1 - rank}}').decode(), store.add('count', 1) <= 2)
if attempt == 0 and rank == 1:
    store.wait(['here_0'])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_attempts_do_not_meet(start):
    """In a store that attempts share, a process may find what one that is dead has left."""
    code, out, err = start(2, MEET).finish()
    assert code == 0, err
    assert err == 'process 1 was killed by SIGKILL; restart 1 of 3\n'
    said = [line for line in out.splitlines() if line.startswith('0')]
    assert said == [f'0 {attempt} True' for attempt in range(2)]


@pytest.mark.parametrize('final', [2, 70, 75, 130])
def test_final_codes_are_not_tried_again(start, final, monkeypatch):
    """Even where another process fails first, as it loses the connection."""
    monkeypatch.setattr(agent, 'GRACE', 60)
    code, out, err = start(2, f'say(rank); sys.exit({final} if rank else 1)').finish()
    assert (code, err) == (final, '') and sorted(out.split()) == ['0', '1']


@pytest.mark.parametrize('code', [2, 70])
def test_errors_are_tried_again_where_another_was_killed(start, code):
    fault = f'time.sleep(0.3)\nsys.exit({code})'
    killed = f'if attempt: sys.exit(0)\nif rank: os.kill(os.getpid(), signal.SIGKILL)\n{fault}'
    code, _, err = start(2, killed).finish()
    assert code == 0 and err.count('\n') == 1


WAIT = """
def stop(signum, frame):
    say(rank, 'got', signum)
    time.sleep(rank / 2)
    say(rank, 'saved')
    sys.exit(CODE)

for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(signum, stop)
say('pid', os.getpid())
time.sleep(100)
"""


@pytest.mark.parametrize(
    'signum, code', [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR2, 75)]
)
def test_signal_reaches_each_process_once_and_is_waited_for(start, signum, code):
    launcher = start(2, WAIT.replace('CODE', str(code)))
    launcher.out(2)
    launcher.kill(signum)
    launcher.kill(signum)  # within a second: the same, from a cluster that sends to all processes
    ended, out, err = launcher.finish()
    assert (ended, err) == (code, '')
    assert sorted(out.splitlines())[:4] == [
        line for rank in (0, 1) for line in (f'{rank} got {int(signum)}', f'{rank} saved')
    ]


def test_second_signal_ends_at_once(start, monkeypatch):
    monkeypatch.setattr(agent, 'SAME_SIGNAL', 0)
    launcher = start(2, WAIT.replace('rank / 2', '100'))
    pids = [int(line.split()[1]) for line in launcher.out(2)]
    launcher.kill(signal.SIGTERM)
    launcher.out(4)
    launcher.kill(signal.SIGTERM)
    code, out, _ = launcher.finish(seconds=10)
    assert code == 128 + signal.SIGTERM and 'saved' not in out
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl')
def test_killed_launcher_leaves_nobody_behind(start):
    launcher = start(2, WAIT)
    children = [int(line.split()[1]) for line in launcher.out(2)]
    launcher.kill(signal.SIGKILL)
    launcher.finish()
    deadline = time.monotonic() + 20
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_data_workers_of_a_killed_process_end_with_it(start):
    launcher = start(
        1,
        """
if attempt == 0:
    child = os.fork()
    if not child:
        time.sleep(100)
    say(child)
    os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    child = int(launcher.out(1)[0])
    assert launcher.finish()[0] == 0
    assert not alive(child)


def alive(pid):
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != 'Z'


def test_hang_up_is_ignored_under_nohup(start):
    """PyTorch's own launcher sets a handler, and dies when the user logs out."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launcher = start(1, 'say("there")\ntime.sleep(1)')
    finally:
        signal.signal(signal.SIGHUP, before)
    launcher.out(1)
    launcher.kill(signal.SIGHUP)
    assert launcher.finish()[0] == 0
