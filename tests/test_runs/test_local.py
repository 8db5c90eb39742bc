"""A plan is carried through, whatever its runs do; with trainings that only pretend, and real ones.

`MMATTN_KILLS=50 pytest -m slow tests/test_runs/test_local.py -s` kills as often and says what.
"""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import forked
import pytest
import toy
import toy_tables

from mmattn.papers import plan
from mmattn.runs import leases, local, needs, record, watch
from mmattn.runs.driver import Work

REPRODUCE = Path(__file__).parents[2] / 'tools' / 'reproduce.py'

# Stands for the launcher. What it does is in the config's name.
PRETENCE = """
import hashlib, json, os, signal, sys, time
args = sys.argv[1:]
config, folder = args[2], args[args.index('--work-dir') + 1]
kind = os.path.basename(config).removesuffix('.py').split('_')[0]
name = '/'.join(config.split('/')[-2:])
with open(f'{folder}/starts', 'a') as file:
    file.write(json.dumps(args) + '\\n')
tries = len(open(f'{folder}/starts').readlines())
if '--measure' in args:
    if kind == 'bad':
        sys.exit('boom')
    numbers = dict(iteration=0.5, iterations=100, evaluation=5, evaluations=2, processes=1)
    with open(args[args.index('--measure') + 1], 'w') as file:
        json.dump(dict(numbers, state_bytes=1000, device='cpu'), file)
    sys.exit()

def finish():
    with open(f'{folder}/epoch_1.pth', 'wb') as file:
        file.write(b'weights')
    sha = hashlib.sha256(b'weights').hexdigest()
    found = json.loads(os.environ['RECORD'])
    found.update(config=name, state='done', config_text='')
    found['config_sha256'] = hashlib.sha256(b'').hexdigest()
    found['checkpoint'] = dict(name='epoch_1.pth', sha256=sha, weights_sha256='')
    found['alternatives'] = ['pretrained'] if '--pretrained' in args else []
    with open(f'{folder}/record.json.new', 'w') as file:
        json.dump(found, file)
    os.replace(f'{folder}/record.json.new', f'{folder}/record.json')
    sys.exit()

if kind == 'slow':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(60)
if kind == 'stuck' or (kind == 'cut' and tries == 1):
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
    open(f'{folder}/ready', 'w').close()
    time.sleep(60)
if kind == 'bad' or (kind == 'flaky' and tries < 3):
    print('first line')
    sys.exit('boom')
if kind == 'wrong':
    print('error: no such data', file=sys.stderr)
    sys.exit(2)
if kind == 'short':
    time.sleep(0.4)
finish()
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Makes a driver whose trainings pretend: `pretend({'good': None, 'bad': 'good'})`."""
    launch = tmp_path / 'pretence.py'
    launch.write_text(PRETENCE)
    monkeypatch.setattr(local, 'LAUNCH', launch)
    monkeypatch.setenv('RECORD', json.dumps(record.new('', [], 0)))
    monkeypatch.setattr(leases.tempfile, 'gettempdir', lambda: str(tmp_path))

    def make(rows, slots='01', **options):
        path = tmp_path / 'mine' / 'tables.yml'
        if not path.exists():
            toy_tables.tables(tmp_path, rows)
        runs = plan.make('mine', [], files=[path], alternatives=['pretrained'] * any(rows.values()))
        said = []
        work = Work(runs, tmp_path / 'work', say=said.append, **options)
        driver = local.Driver(work, leases.Slots('cpu', slots))
        driver.said, driver.pause = said, 0.05
        return driver

    return make


def states(driver):
    return {Path(job.run.config).stem: job.state for job in driver.jobs.values()}


def starts(driver, name):
    job = next(job for job in driver.jobs.values() if Path(job.run.config).stem == name)
    path = job.folder / 'starts'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_what_is_done_is_not_done_again(pretend):
    rows = {'good_base': None, 'good_one': 'good_base', 'good_two': 'good_base'}
    driver = pretend(rows)
    assert driver.drive()
    folder = next(job.folder for job in driver.jobs.values() if 'base' in job.run.config)
    for name in ('good_one', 'good_two'):
        (args,) = starts(driver, name)
        assert args[args.index('--pretrained') + 1] == str(folder / 'epoch_1.pth')
    again = pretend(rows)
    assert again.drive()
    assert all(len(starts(again, name)) == 1 for name in rows)


def test_a_plan_goes_on_past_runs_that_fail(pretend):
    rows = {'bad': None, 'good_after': 'bad', 'flaky': None, 'wrong': None, 'good': None}
    driver = pretend(rows)
    assert not driver.drive()
    assert states(driver) == dict(
        bad='failed', good_after='blocked', flaky='done', wrong='failed', good='done'
    )
    assert len(starts(driver, 'bad')) == len(starts(driver, 'flaky')) == 3
    assert len(starts(driver, 'wrong')) == 1  # an error that no restart mends
    assert starts(driver, 'good_after') == []
    told = '\n'.join(driver.failures())
    assert 'boom' in told and 'error: no such data' in told and 'waits for bad, seed 0' in told
    found = record.read(driver.work_dir / 'mine' / 'bad' / 'seed0')
    assert found['state'] == 'failed' and len(found['starts']) == 3
    assert found['starts'][-1]['message'] == 'ended with exit code 1: boom'
    # A new command tries again.
    again = pretend(rows)
    again.drive()
    assert len(starts(again, 'bad')) == 6


def test_a_record_that_is_damaged_starts_nothing(pretend):
    driver = pretend({'good': None, 'good_other': None})
    folder = driver.work_dir / 'mine' / 'good' / 'seed0'
    folder.mkdir(parents=True)
    (folder / record.NAME).write_text('{"version": 1, "conf')
    assert not driver.drive()
    assert states(driver) == dict(good='failed', good_other='done')
    assert starts(driver, 'good') == []
    assert 'is no record' in driver.failures()[0]


@pytest.mark.parametrize('how', ['changed', 'gone'])
def test_a_checkpoint_that_is_not_the_records_is_not_started_from(pretend, how):
    rows = {'good_base': None, 'good_one': 'good_base'}
    driver = pretend(rows)
    assert driver.drive()
    one, base = (driver.work_dir / 'mine' / name for name in ('good_one+pretrained', 'good_base'))
    (one / 'seed0' / record.NAME).unlink()
    path = base / 'seed0' / 'epoch_1.pth'
    path.unlink() if how == 'gone' else path.write_bytes(b'others')
    again = pretend(rows)
    assert not again.drive()
    assert states(again) == dict(good_base='done', good_one='failed')
    assert 'epoch_1.pth' in again.failures()[0]
    assert len(starts(again, 'good_one')) == 1
    assert not any(leases.is_held(job.folder / leases.NAME) for job in again.jobs.values())


def test_a_disk_that_is_full_fails_the_run_and_leaves_the_driver(pretend, monkeypatch):
    driver, take = pretend({'good': None, 'good_other': None}), leases.take

    def full(path, what):
        if Path(path).parent.parent.name == 'good':
            raise OSError(28, 'No space left on device')
        return take(path, what)

    monkeypatch.setattr(leases, 'take', full)
    assert not driver.drive()
    assert states(driver) == dict(good='failed', good_other='done')
    assert 'No space left on device' in driver.failures()[0]


def test_two_drivers_start_no_run_twice(pretend):
    rows = {f'short_{number}': None for number in range(6)}
    drivers = [pretend(rows, slots='0123') for _ in range(2)]
    for driver in drivers:  # threads hear no signals
        driver._signals = nullcontext
    threads = [threading.Thread(target=d.drive) for d in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for driver in drivers:
        assert set(states(driver).values()) == {'done'}
    assert all(len(starts(drivers[0], name)) == 1 for name in rows)
    # Both have worked.
    assert all(any('started' in line for line in driver.said) for driver in drivers)


def test_what_a_killed_driver_leaves_running_is_left_alone(pretend):
    class Killed(BaseException):
        pass

    def look():
        if starts(driver, 'slow'):
            raise Killed

    driver = pretend({'slow': None})
    with pytest.raises(Killed):
        driver.drive(look)
    (job,) = driver.jobs.values()
    for lease in (job.lease, *job.slots.values()):
        lease._file.close()  # as the kernel does
    again, deadline = pretend({'slow': None}), time.monotonic() + 1.5

    def look_again():
        if time.monotonic() > deadline:
            if job.process.poll() is None:
                assert states(again) == dict(slow='elsewhere') and len(starts(again, 'slow')) == 1
                job.process.kill()
                job.process.wait()
            elif len(starts(again, 'slow')) == 2:  # and then it is ours
                signal.raise_signal(signal.SIGTERM)

    again.drive(look_again)
    assert len(starts(again, 'slow')) == 2
    assert again.said[0].startswith('slow, seed 0: in the hands of a driver')


def test_a_signal_stops_the_trainings_and_the_driver(pretend):
    driver = pretend({'slow': None, 'slow_too': None, 'slow_three': None})

    def look():
        running = [job for job in driver.jobs.values() if job.process]
        if len(running) == 2 and all(starts(driver, Path(j.run.config).stem) for j in running):
            time.sleep(0.3)
            signal.raise_signal(signal.SIGINT)

    begun = time.monotonic()
    assert not driver.drive(look)
    assert time.monotonic() - begun < 30 and driver.asked_to_stop == 1
    assert set(states(driver).values()) == {'idle'} and driver.failures() == []
    assert starts(driver, 'slow_three') == []
    assert record.read(driver.work_dir / 'mine' / 'slow' / 'seed0')['state'] == 'stopped'


def test_no_more_runs_than_slots(pretend):
    driver, most = pretend({f'short_{number}': None for number in range(4)}, per_run=2), []
    driver.drive(lambda: most.append(sum(bool(j.process) for j in driver.jobs.values())))
    assert max(most) == 1 and set(states(driver).values()) == {'done'}


def test_status_of_what_is_there(pretend):
    driver = pretend({'good': None, 'bad': None, 'good_later': None})
    runs = [job.run for job in driver.jobs.values()]
    assert {watch.status(run, driver.work_dir).state for run in runs} == {'missing'}
    assert needs.estimate(runs, driver.work_dir) == (0, runs)
    driver.drive()
    found = {run.config: watch.status(run, driver.work_dir) for run in runs}
    assert {config: item.state for config, item in found.items()} == {
        'mine/good.py': 'done',
        'mine/bad.py': 'failed',
        'mine/good_later.py': 'done',
    }
    assert 'boom' in found['mine/bad.py'].message


@pytest.mark.parametrize('where', [None, 'idle'])
def test_only_what_starts_from_another_run_is_waiting(pretend, where):
    """A driver's table and other shells say the same, in the leaderboard's words."""
    driver = pretend({'first': None, 'second': 'first', 'third': None})

    def states():
        found = [watch.status(job.run, driver.work_dir, where) for job in driver.jobs.values()]
        return [item.state for item in found]

    first, second, third = driver.jobs.values()
    assert states() == ['missing', 'waiting', 'missing']
    for job in (first, third):
        job.folder.mkdir(parents=True)
        found = record.new(job.run.config, job.run.alternatives, job.run.seed)
        record.write(job.folder, found | dict(state='stopped'))
    assert states() == ['stopped', 'waiting', 'stopped']
    found['config'] = first.run.config
    record.write(first.folder, found | dict(state='failed'))
    assert states() == ['failed', 'waiting', 'stopped']
    (first.folder / record.NAME).write_text('{')
    assert states() == ['damaged', 'waiting', 'stopped']
    weights = dict(name='a.pth', sha256='', weights_sha256='')
    text = dict(config_text='', config_sha256=record.digest(''))
    record.write(first.folder, found | text | dict(state='done', checkpoint=weights))
    assert states() == ['done', 'missing', 'stopped']


def test_a_dry_run_says_what_it_takes_and_writes_nothing(pretend, monkeypatch, capsys):
    driver = pretend({'good': None, 'short': 'good'})
    tables, work = driver.work_dir.parent / 'mine' / 'tables.yml', driver.work_dir
    spec = importlib.util.spec_from_file_location('reproduce_tool', REPRODUCE)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def said(*options):
        command = ['reproduce.py', 'mine', '--tables', str(tables), '--work-dir', str(work)]
        command += ['--alternative', 'pretrained', '--dry-run', *options]
        monkeypatch.setattr('sys.argv', command)
        assert tool.main() == 0
        return capsys.readouterr().out.splitlines()

    # This machine has no place for so many: the plan is for another one, perhaps.
    for options in ([], ['--gpus-per-run', '1000']):
        *_, waits, runs, time_left, disk = said(*options)
        assert waits.startswith('mine/short+pretrained/seed0, after mine/good/seed0: mine 1: ')
        assert runs == '2 runs'
        assert time_left.startswith('to do: 2 configs of which no run is done yet')
        assert disk.startswith('disk: 0.0 GB for checkpoints and logs, ')
    assert not work.exists()
    for job in driver.jobs.values():
        needs.try_out(job.run, driver, 1)
    assert 'to do: 2 min of GPU time' in said('--gpus', '0,1', '--no-check')


@pytest.mark.parametrize(
    'seconds, text',
    [(5, '5 s'), (1200, '20 min'), (12000, '3 h 20 min'), (183600, '2 d 3 h'), (3599, '1 h 0 min')],
)
def test_durations(seconds, text):
    assert watch.duration(seconds) == text


class Table:
    """Real trainings."""

    def __init__(self, folder, rows, pause=0.0):
        self.folder, self.work = folder, folder / 'work'
        self.tables = toy_tables.tables(folder, rows, pause)
        self.log = folder / 'log'

    def start(self):
        # So many tries that no run is given up because it was killed.
        return self.reproduce('--gpus', '0,1', '--tries', '20')

    def reproduce(self, *options, **variables):
        command = [sys.executable, REPRODUCE, 'mine', '--tables', self.tables, '--yes']
        command += ['--no-check', '--alternative', 'pretrained', '--work-dir', self.work]
        # Slots of its own, as several of these may run at once.
        environment = toy.environment(TMPDIR=str(self.folder), **variables)
        with open(self.log, 'a') as log:
            return subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)

    def end(self, process, timeout=3600):
        try:
            assert process.wait(timeout) == 0, self.log.read_text()[-3000:]
        finally:  # what hangs is not left running; a driver stops its trainings
            process.terminate()
            process.wait()

    def result(self):
        runs = plan.make('mine', [], files=[self.tables], alternatives=['pretrained'])
        found = {}
        for run in runs:
            known = record.read(run.folder(self.work))
            assert known['state'] == 'done', (run.name, self.log.read_text()[-3000:])
            assert known['config_text'] == run.expected()
            scores = [e['metrics'] for e in known['evaluations']]
            weights = known['checkpoint']['weights_sha256']
            found[run.name] = weights, known['final'], scores
        return found

    def leaderboard(self):
        """As the tool writes it, without what every run has of its own: times, places, hashes."""
        command = [sys.executable, REPRODUCE.with_name('leaderboard.py'), 'mine', '--format', 'csv']
        command += ['--tables', self.tables, '--work-dir', self.work]
        done = subprocess.run(command, env=toy.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def origin(self):
        """What `one` started from, and what `base` ended with."""
        one = record.read(self.work / 'mine' / 'one+pretrained' / 'seed0')['pretrained']
        base = record.read(self.work / 'mine' / 'base' / 'seed0')
        return one['checkpoint_sha256'], base['checkpoint']['sha256']


@pytest.mark.timeout(3600)
def test_a_run_that_starts_from_another(tmp_path):
    table = Table(tmp_path, {'base': None, 'one': 'base'})
    table.end(table.start())
    assert len(table.result()) == 2
    one, base = table.origin()
    assert one == base


def descendants():
    """Processes by their parents, and the command lines."""
    children, commands = {}, {}
    for path in Path('/proc').glob('[0-9]*'):
        with suppress(OSError, ValueError):
            parent = int((path / 'stat').read_text().rsplit(')', 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.name))
            commands[int(path.name)] = (path / 'cmdline').read_bytes()
    return children, commands


def victims(table, driver):
    """Who may be killed: the driver, launchers and workers of this table's runs, by kind."""
    work, (_, commands) = str(table.work).encode(), descendants()
    found = dict(driver=[driver.pid] if driver.poll() is None else [], launcher=[], worker=[])
    for pid, command in commands.items():
        if work in command and b'train.py' in command and pid != driver.pid:
            found['launcher' if b'launch.py' in command else 'worker'].append(pid)
    return found


def kill_at_random(table, times, seconds, dice):
    """Carries a table through; the driver, launchers and workers die on the way.

    Args:
        times (int): How often, at most.
        seconds (float): The mean time between two is a sixth of it.

    Returns:
        int: how often one died.
    """
    process, done, kinds = table.start(), 0, ('driver', 'worker', 'launcher')
    while process.poll() is None:
        deadline = time.monotonic() + dice.uniform(0, seconds / 3)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        kind = kinds[done % len(kinds)]
        found = victims(table, process)[kind]
        if done == times or process.poll() is not None or not found:
            continue
        with suppress(ProcessLookupError):
            os.kill(dice.choice(found), signal.SIGKILL)
            done += 1
            print(f'{done}: {kind}', flush=True)
        if kind == 'driver':
            process.wait()
            process = table.start()
    table.end(process)
    return done


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_random_kills_leave_the_same_table(tmp_path):
    """Ten of them in one table, each at a moment of its own; in further tables what is left."""
    rows = {'base': None, 'one': 'base', 'two': 'base', 'alone': None}
    undisturbed, begun = Table(tmp_path / 'undisturbed', rows), time.monotonic()
    undisturbed.end(undisturbed.start())
    seconds, expected = time.monotonic() - begun, undisturbed.result()
    board = undisturbed.leaderboard()
    assert board.count('1 done') == 4
    times, dice, done, tables = int(os.environ.get('MMATTN_KILLS', 10)), random.Random(0), 0, 0
    while done < times:
        tables += 1
        table = Table(tmp_path / f'table_{tables}', rows)
        done += kill_at_random(table, min(10, times - done), seconds, dice)
        assert table.result() == expected and table.leaderboard() == board


def test_a_file_in_the_place_of_the_work_directory(tmp_path):
    """Told before the data is looked at, which takes minutes."""
    (tmp_path / 'file').touch()
    log, args = tmp_path / 'log', ('cat', '1', '--work-dir', tmp_path / 'file', '--yes')
    assert forked.alone(log, forked.script, REPRODUCE, *args) == 2
    assert log.read_text().splitlines()[-1] == (
        f'error: {tmp_path}/file cannot be a folder for results: {tmp_path}/file is no folder; '
        'choose another'
    )
