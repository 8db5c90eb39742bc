"""Carries a plan through on this machine: starts its runs, goes on past those that fail.

What is known of a run is in its record alone (record.py). A driver that is killed leaves its
trainings running; the next one finds their leases held and waits for their end. Several drivers,
also on several machines, may work on one folder: a run's lease (leases.py) goes to one of them.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmattn.papers import config_root
from mmattn.papers.plan import Run, title

from . import leases, record
from .checkpoint import sha256_of
from .errors import FAULT, INTERRUPTED, STOPPED, USER_ERROR

LAUNCH = Path(__file__).with_name('launch.py')
TRAIN = config_root().parent / 'tools' / 'train.py'  # a wheel has both in mmattn/.mim
LOG = 'train.log'
TAIL = 5  # lines of a failed run's log that are shown
NOT_MENDED = (USER_ERROR, FAULT)  # by trying again
ENDED = ('done', 'failed', 'blocked')


@dataclass
class Job:
    """A run as this driver knows it.

    `state` is 'waiting' (for a run, a lease or a GPU), 'running', 'elsewhere' (another driver's, or
    left by one that was killed), or one of `ENDED`.
    """

    run: Run
    folder: Path
    state: str = 'waiting'
    tries: int = 0
    message: str = ''
    process: subprocess.Popen | None = None
    lease: leases.Lease | None = None
    slots: dict[str, leases.Lease] = field(default_factory=dict)
    starts: int = 0  # that the record had before this try


class Driver:
    """Runs a plan.

    Args:
        runs (Sequence[Run]): Each after the one it waits for.
        work_dir (str or Path): Holds the runs' folders.
        slots (Slots): What they share.
        per_run (int): Slots, and processes, of a run.
        tries (int): How often a run may be started by this driver.
        say (Callable): Takes a line for the user.
        options (Sequence[str]): Further ones of `tools/train.py`.
        environment (dict): Further variables of the trainings.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        work_dir: str | Path,
        slots: leases.Slots,
        per_run: int = 1,
        tries: int = 3,
        say: Callable[[str], Any] = print,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.work_dir, self.slots, self.per_run = Path(work_dir).resolve(), slots, per_run
        self.limit, self.say, self.options = tries, say, list(options)
        self.environment = {**os.environ, **(environment or {})}
        self.jobs = {run.name: Job(run, run.folder(self.work_dir)) for run in runs}
        self.asked_to_stop = 0
        self._full = False  # no slots are left in this round

    def drive(self, look: Callable[[], Any] = lambda: None, pause: float = 1) -> bool:
        """Carry the plan through.

        Args:
            look (Callable): Called between two rounds.
            pause (float): Seconds between them.

        Returns:
            bool: whether all runs are done.
        """
        with self._signals():
            while True:
                self._full = False
                for job in self.jobs.values():
                    self._update(job)
                look()
                if all(job.state in ENDED for job in self.jobs.values()):
                    break
                if self.asked_to_stop and not any(job.process for job in self.jobs.values()):
                    break
                time.sleep(pause)
        return all(job.state == 'done' for job in self.jobs.values())

    def failures(self) -> list[str]:
        """What went wrong, a run at a time, with the last lines of its log."""
        found = []
        for job in self.jobs.values():
            if job.state in ('failed', 'blocked'):
                lines = [f'{job.run.name} ({job.state}): {job.message}']
                if job.state == 'failed':
                    lines += [f'    {line}' for line in _tail(job.folder / LOG)]
                found.append('\n'.join(lines))
        return found

    @contextmanager
    def _signals(self):
        """SIGINT and SIGTERM let the trainings save a checkpoint and end; a second one kills."""

        def stop(signum, frame):
            self.asked_to_stop += 1
            for job in self.jobs.values():
                if job.process is not None:
                    job.process.send_signal(
                        signal.SIGTERM if self.asked_to_stop == 1 else signal.SIGKILL
                    )

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _update(self, job: Job) -> None:
        if job.state in ENDED:
            return
        if job.process is not None:
            for lease in (job.lease, *job.slots.values()):
                lease.beat()
            code = job.process.poll()
            if code is not None:
                self._ended(job, code)
            return
        if self.asked_to_stop:
            return
        known = self._read(job)
        if job.state in ENDED:
            return
        if known is not None and known['state'] == 'done':
            self._end(job, 'done')
            return
        before = job.run.waits_for and self.jobs[job.run.waits_for.name]
        if before is not None and before.state in ('failed', 'blocked'):
            self._end(job, 'blocked', f'waits for {before.run.name}, which has no result')
        elif before is None or before.state == 'done':
            self._try_to_start(job, before)

    def _read(self, job: Job) -> dict[str, Any] | None:
        try:
            return record.find(job.folder)
        except record.RecordError as error:
            self._end(job, 'failed', f'{error}; without that folder it trains again')
            return None

    def _try_to_start(self, job: Job, before: Job | None) -> None:
        if self._full:
            return
        try:
            lease = leases.take(job.folder / leases.NAME, 'a driver')
        except OSError as error:
            self._end(job, 'failed', f'{job.folder / leases.NAME}: {error.strerror}')
            return
        if lease is None:
            if job.state != 'elsewhere':
                self.say(
                    f'{job.run.name}: in the hands of {leases.holder(job.folder / leases.NAME)}'
                )
            job.state = 'elsewhere'
            return
        job.state = 'waiting'
        known = self._read(job)  # it may have ended while we looked
        if job.state not in ENDED and known is not None and known['state'] == 'done':
            self._end(job, 'done')
        slots = None if job.state in ENDED else self.slots.take(self.per_run, job.run.name)
        if slots is None:
            self._full = job.state not in ENDED
            lease.release()
            return
        job.lease, job.slots = lease, slots
        try:
            checkpoint = None if before is None else _checkpoint(before)
            job.starts = len(known['starts']) if known else 0
            self._start(job, checkpoint)
        except (OSError, record.RecordError) as error:
            self._release(job)
            self._end(job, 'failed', ' '.join(str(error).split()))

    def _start(self, job: Job, checkpoint: str | None) -> None:
        job.tries += 1
        command = [sys.executable, str(LAUNCH), str(self.per_run), str(TRAIN)]
        config, *rest = job.run.arguments(self.work_dir, checkpoint)
        command += [config, '--launcher', 'pytorch', *rest, *self.options]
        environment = dict(self.environment)
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [environment.get('PYTHONPATH')])]
        environment['PYTHONPATH'] = os.pathsep.join(paths)
        if self.slots.kind == 'gpu':
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(job.slots)
        else:
            share = max(1, len(os.sched_getaffinity(0)) // len(self.slots.names))
            environment.setdefault('OMP_NUM_THREADS', str(share))
        with open(job.folder / LOG, 'a') as log:
            job.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this driver, which lets them save; and they outlive it.
                start_new_session=True,
                pass_fds=[lease.fileno() for lease in (job.lease, *job.slots.values())],
            )
        job.state = 'running'
        where = f'{self.slots.kind} {",".join(job.slots)}'
        self.say(f'{title(job.run)}: started on {where} (try {job.tries} of {self.limit})')

    def _ended(self, job: Job, code: int) -> None:
        """The processes of a run are gone: what does its record say?"""
        job.process = None
        known = self._read(job)
        if job.state in ENDED:
            self._release(job)
            return
        if known is not None and known['state'] == 'done':
            self._release(job)
            self._end(job, 'done')
            return
        reason = _reason(job.folder / LOG, code)
        retried = code not in NOT_MENDED and job.tries < self.limit
        stopped = code in (STOPPED, INTERRUPTED) or bool(self.asked_to_stop)
        known = known or record.new(job.run.config, job.run.alternatives, job.run.seed)
        self._note(job, known, reason, failed=not (retried or stopped))
        self._release(job)
        if stopped and self.asked_to_stop:
            job.state, job.message = 'waiting', reason
            self.say(f'{title(job.run)}: stopped; the same command goes on from here')
        elif retried:
            job.state, job.message = 'waiting', reason
            self.say(f'{title(job.run)}: {reason}; it is tried again')
        else:
            self._end(job, 'failed', reason)

    def _note(self, job: Job, known: dict[str, Any], reason: str, failed: bool) -> None:
        """Completes the record of a training that could not: the lease is ours, nobody writes."""
        if len(known['starts']) == job.starts:
            known['starts'].append(
                dict(
                    at=time.time(),
                    host=os.uname().nodename,
                    pid=os.getpid(),
                    resumed_from=None,
                    ended=None,
                    outcome=None,
                    message=None,
                )
            )
            record.end(known, 'failed', reason)
        elif known['starts'][-1]['outcome'] is None:
            record.end(known, 'lost', reason)
        known['state'] = 'failed' if failed else 'stopped'
        try:
            record.write(job.folder, known)
        except OSError as error:
            self.say(f'{job.folder / record.NAME} was not written: {error.strerror}')

    def _release(self, job: Job) -> None:
        for lease in (job.lease, *job.slots.values()):
            lease.release()
        job.lease, job.slots = None, {}

    def _end(self, job: Job, state: str, message: str = '') -> None:
        job.state, job.message = state, message
        self.say(f'{title(job.run)}: {state}{f", {message}" if message else ""}')


def _checkpoint(job: Job) -> str:
    """The last checkpoint of a run that is done, unchanged.

    Raises:
        FileNotFoundError: if it is gone.
        RecordError: if it is another than the record names.
    """
    known = record.read(job.folder)['checkpoint']
    path = job.folder / Path(known['name']).name
    if sha256_of(path) != known['sha256']:
        raise record.RecordError(f'{path} is not the checkpoint that {record.NAME} beside it names')
    return str(path)


def _tail(path: Path, count: int = TAIL) -> list[str]:
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().decode(errors='replace').splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()][-count:]


def _reason(log: Path, code: int) -> str:
    last = ''.join(_tail(log, 1))[:300]
    return f'ended with exit code {code}{f": {last}" if last else ""}'
