"""The launcher of tools/dist_*.sh, with processes that do almost nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmattn.runs import launch

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / 'mmattn' / 'runs' / 'launch.py'


def start(tmp_path, count, code, *args, **environment):
    script = tmp_path / 'script.py'
    script.write_text(f'import os, signal, sys, time\nrank = int(os.environ["RANK"])\n{code}')
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ('PORT', 'MASTER_ADDR', 'NNODES', 'NODE_RANK', 'OMP_NUM_THREADS')
    }
    return subprocess.Popen(
        [sys.executable, LAUNCH, str(count), script, *args],
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


SHOW = """
names = 'RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS'.split()
sys.stdout.write(' '.join([os.environ[name] for name in names] + sys.argv[1:]) + '\\n')
"""


def test_environment_and_arguments(tmp_path):
    code, out, err = finish(start(tmp_path, 2, SHOW, '--a', 'b c'))
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (code, err) == (0, '')
    assert sorted(out.splitlines()) == [
        f'{rank} {rank} 2 2 127.0.0.1 {threads} --a b c' for rank in (0, 1)
    ]


def test_several_machines(tmp_path):
    code, out, _ = finish(
        start(
            tmp_path,
            2,
            SHOW,
            NNODES='3',
            NODE_RANK='2',
            MASTER_ADDR='10.0.0.1',
            PORT='1234',
            OMP_NUM_THREADS='7',
        )
    )
    assert code == 0
    assert sorted(out.splitlines()) == ['4 0 6 2 10.0.0.1 7', '5 1 6 2 10.0.0.1 7']


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
        ('1', {'NNODES': '2'}, 'MASTER_ADDR must name the machine of NODE_RANK 0'),
        ('1', {'NNODES': '2', 'NODE_RANK': '2'}, "NODE_RANK must be a number from 0 to 1, got '2'"),
    ],
)
def test_bad_settings(tmp_path, count, environment, message):
    code, out, err = finish(start(tmp_path, count, SHOW, **environment))
    assert code == 2 and out == ''
    assert message in err and err.count('\n') == 1


@pytest.mark.parametrize('script', ['train', 'test'])
def test_scripts_tell_their_usage(script):
    for kind in ('dist', 'slurm'):
        ran = subprocess.run(
            ['bash', ROOT / 'tools' / f'{kind}_{script}.sh'], capture_output=True, text=True
        )
        assert ran.returncode == 2 and ran.stderr.startswith('usage: ')


def test_one_failure_ends_all(tmp_path):
    begin = time.monotonic()
    process = start(
        tmp_path,
        2,
        """
if rank == 1:
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(100)
""",
    )
    code, _, err = finish(process)
    assert code == 7
    assert time.monotonic() - begin < 40
    assert err == ('error: process 1 failed with exit code 7; MMATTN_DEBUG=1 shows its traceback\n')


def test_first_process_failing_says_nothing_more(tmp_path):
    code, _, err = finish(start(tmp_path, 2, 'sys.exit(3 if rank == 0 else 0)'))
    assert (code, err) == (3, '')


def test_death_by_signal_has_a_shell_s_code(tmp_path):
    code, _, _ = finish(start(tmp_path, 1, 'os.kill(os.getpid(), signal.SIGKILL)'))
    assert code == 128 + signal.SIGKILL


WAIT = """
def stop(signum, frame):
    sys.stdout.write(f'{rank} got {signum}\\n')
    sys.exit(130)

signal.signal(signal.SIGINT, stop)
sys.stdout.write(f'{os.getpid()}\\n')
sys.stdout.flush()
time.sleep(100)
"""


def test_interrupt_reaches_each_process_once(tmp_path):
    process = start(tmp_path, 2, WAIT)
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    assert code == 130
    assert sorted(out.splitlines()) == ['0 got 2', '1 got 2']


@pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl')
def test_killed_launcher_leaves_nobody_behind(tmp_path):
    process = start(tmp_path, 2, WAIT)
    children = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != 'Z'
