"""A table of trainings on a real cluster of one node: cut by its time limit, killed at random.

Each test starts its own cluster. `MMATTN_KILLS=10 pytest -m slow -s` here says what it does.
"""

import os
import random
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import slurm_cluster
import test_local

from mmattn.runs import record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or '-'),
]
ROWS = {'base': None, 'one': 'base', 'two': 'base', 'alone': None}


class Table(test_local.Table):
    """Real trainings, as jobs."""

    def __init__(self, folder, rows, pause, environment, minutes=60, signal_seconds=20):
        super().__init__(folder, rows, pause)
        self.environment = environment
        (folder / 'cluster.yml').write_text(
            f'partition: tests\ngpus_per_node: 0\ncpus_per_process: 1\nhours: {minutes / 60:.4f}\n'
            f'signal_seconds: {signal_seconds}\n'
        )

    def start(self):
        words = ['--cluster', self.folder / 'cluster.yml', '--tries', '12']
        return self.reproduce(
            *words, SLURM_CONF=self.environment['SLURM_CONF'], MMATTN_SLURM_PAUSE='1'
        )

    def jobs(self, state='running'):
        """Numbers of the jobs in a state."""
        command = ['squeue', '--noheader', '--format=%i', f'--states={state}']
        said = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return said.stdout.split()


@contextmanager
def without_delay(environment):
    """A job that is requeued starts at once; Slurm would wait for two minutes."""
    over = threading.Event()

    def hurry():
        command = ['squeue', '--noheader', '--states=pending', '--format=%i %r']
        while not over.wait(1):
            said = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
            for line in said.splitlines():
                number, reason = line.split(maxsplit=1)
                if reason == 'BeginTime':
                    words = ['scontrol', 'update', f'JobId={number}', 'StartTime=now']
                    subprocess.run(words, env=environment, capture_output=True)

    thread = threading.Thread(target=hurry)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The results of a table that nothing has happened to, without Slurm."""
    table = test_local.Table(tmp_path_factory.mktemp('undisturbed'), ROWS)
    begun = time.monotonic()
    assert table.start().wait(timeout=900) == 0, table.log.read_text()[-3000:]
    return table.result(), table.leaderboard(), time.monotonic() - begun


@pytest.mark.timeout(3600)
def test_a_time_limit_that_cuts_each_run_twice(tmp_path, undisturbed):
    """Slurm's own limit, set as soon as a training has begun; no run is submitted twice."""
    with slurm_cluster.running(tmp_path / 'cluster') as environment:
        table = Table(tmp_path / 'table', ROWS, 5.0, environment, signal_seconds=119)
        process = table.start()
        with without_delay(environment):
            while process.poll() is None:
                cut(table, times=2)
                time.sleep(1)
        assert process.wait() == 0, table.log.read_text()[-3000:]
    expected, board, _ = undisturbed
    assert table.result() == expected and table.leaderboard() == board
    outcomes = {}
    for folder in sorted((table.work / 'mine').glob('*/seed0')):
        outcomes[folder.parent.name] = [s['outcome'] for s in record.read(folder)['starts']]
        assert len(list((folder / 'slurm').glob('*_submission.sh'))) == 1
        said = ''.join(path.read_text() for path in (folder / 'slurm').glob('*.out'))
        assert said.count('Requeued job') == 2, said[-3000:]
    print(outcomes)
    assert list(outcomes.values()) == [['stopped', 'stopped', 'done']] * len(ROWS)


def cut(table, times):
    """Lets Slurm cut each training that has begun, and has been cut less often, at its time limit.

    The warning comes two minutes before the limit, which is in full minutes: at once, if the limit
    is the next but one. Slurm looks every half minute.
    """
    command = ['squeue', '--noheader', '--states=running', '--format=%i|%l|%M|%j']
    said = subprocess.run(command, env=table.environment, capture_output=True, text=True).stdout
    for line in said.splitlines():
        number, limit, elapsed, name = line.split('|', 3)
        row = name.split('-')[1]
        known = record.find(table.work / 'mine' / row / 'seed0')
        starts = known['starts'] if known else []
        begun = bool(starts) and starts[-1]['outcome'] is None
        minutes = int(elapsed.split(':')[0]) + 2
        wanted = minutes if begun and len(starts) <= times else 60
        if (limit == '1:00:00') != (wanted == 60):
            words = ['scontrol', 'update', f'JobId={number}', f'TimeLimit={wanted}']
            subprocess.run(words, env=table.environment, capture_output=True)


@pytest.mark.timeout(7200)
def test_random_kills_leave_the_same_table(tmp_path, undisturbed):
    """Of drivers, jobs' own processes, launchers and workers; and requeues and cancellations."""
    expected, board, seconds = undisturbed
    times, done, tables = int(os.environ.get('MMATTN_KILLS', 10)), 0, 0
    dice, kinds = random.Random(0), ('driver', 'worker', 'requeue', 'task', 'cancel', 'launcher')
    with slurm_cluster.running(tmp_path / 'cluster') as environment, without_delay(environment):
        while done < times:
            tables += 1
            table = Table(tmp_path / f'table_{tables}', ROWS, 1.0, environment)
            process = table.start()
            while process.poll() is None:
                deadline = time.monotonic() + dice.uniform(2, seconds / 3)
                while time.monotonic() < deadline and process.poll() is None:
                    time.sleep(0.1)
                if done < times and process.poll() is None:
                    kind = kinds[done % len(kinds)]
                    if not strike(table, process, kind, dice):
                        continue
                    done += 1
                    print(f'{done}: {kind} of table {tables}', flush=True)
                    if kind == 'driver':
                        process.wait()
                        process = table.start()
            assert process.wait() == 0, table.log.read_text()[-3000:]
            assert table.result() == expected and table.leaderboard() == board


def strike(table, driver, kind, dice):
    """Kills one; whether there was one to kill."""
    if kind in ('requeue', 'cancel'):
        there = table.jobs()
        command = ['scontrol', 'requeue'] if kind == 'requeue' else ['scancel', '--signal=KILL']
        if there:
            words = [*command, dice.choice(there)]
            subprocess.run(words, env=table.environment, capture_output=True)
        return bool(there)
    if kind == 'task':
        there = [int(pid) for pid in tasks(table)]
    else:
        there = test_local.victims(table, driver)[kind]
    if not there:
        return False
    with suppress(ProcessLookupError):
        os.kill(dice.choice(there), signal.SIGKILL)
        return True
    return False


def tasks(table):
    """submitit's processes of this table's jobs."""
    _, commands = test_local.descendants()
    work = str(table.work).encode()
    return [
        pid
        for pid, command in commands.items()
        if work in command
        and command.split(b'\0')[0].endswith(b'python')
        and b'submitit.core._submit' in command
    ]
