"""Carries a plan through, wherever its runs are placed: on this machine's GPUs (local.py), or by
Slurm (slurm.py). It goes on past those that fail.

What is known of a run is in its record alone (record.py). Drivers and trainings may die at any time
and in any order; the next driver finds what still runs and leaves it alone. Several drivers, also
on several machines, may work on one folder: a run's lease (leases.py) goes to one of them.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

from mmattn.papers import config_root
from mmattn.papers.plan import Run, title

from . import leases, outcome, record
from .errors import FAULT, INTERRUPTED, STOPPED, USER_ERROR
from .form import Record

LAUNCH = Path(__file__).with_name('launch.py')
TRAIN = config_root().parent / 'tools' / 'train.py'  # a wheel has both in mmattn/.mim
NOT_MENDED = (USER_ERROR, FAULT)  # by trying again
ENDED = ('done', 'failed', 'blocked')


@dataclass(frozen=True)
class Work:
    """What a driver has to do, wherever it places runs.

    Args:
        runs (Sequence[Run]): Each after the one it waits for.
        folder (str or Path): Holds the runs' folders.
        per_run (int): Processes of a run.
        tries (int): How often a run may be started by this driver.
        say (Callable): Takes a line for the user.
        options (Sequence[str]): Further ones of `tools/train.py`.
        environment (Mapping[str, str]): Further variables of the trainings.
    """

    runs: Sequence[Run]
    folder: str | Path
    per_run: int = 1
    tries: int = 3
    say: Callable[[str], Any] = print
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """A run as this driver knows it.

    `state` is 'idle' (for want of a run's result, a lease or a place), 'running' (as this driver
    has started or adopted it, be it in a queue), 'elsewhere' (another driver's, or left by one that
    was killed), or one of `ENDED`.
    """

    run: Run
    folder: Path
    state: str = 'idle'
    tries: int = 0
    message: str = ''
    lease: leases.Lease | None = None
    starts: int = 0  # that the record had before this try


J = TypeVar('J', bound=Job)


class Driver(Generic[J]):
    """What placements have in common; they say how a run is started, asked and stopped.

    Args:
        work (Work): What to do.
    """

    job_class: type[J]
    pause = 1.0  # seconds between two rounds

    def __init__(self, work: Work) -> None:
        self.work_dir = Path(work.folder).resolve()
        self.limit, self.say, self.options = work.tries, work.say, list(work.options)
        self.per_run, self.environment = work.per_run, dict(work.environment)
        self.jobs = {run.name: self.job_class(run, run.folder(self.work_dir)) for run in work.runs}
        self.asked_to_stop = 0

    def begin_round(self) -> None:
        """Called before all jobs are looked at."""

    def has_room(self) -> bool:
        """Whether it makes sense to try to start one more."""
        return True

    def adopt(self, job: J) -> bool:
        """Whether a job that this driver has not started is in its hands all the same."""
        return False

    def start(self, job: J, checkpoint: str | None) -> bool:
        """Start a job whose lease is held.

        Args:
            checkpoint (str, optional): What it starts from.

        Returns:
            bool: whether it was started; False if there is no room now.

        Raises:
            OSError: if it could not.
        """
        raise NotImplementedError

    def poll(self, job: J) -> tuple[bool, int | None]:
        """Whether a running job has ended, and its exit code if it is known. If it has ended, its
        lease is held, or its state is no longer 'running'."""
        raise NotImplementedError

    def stop(self, job: J, now: bool) -> None:
        """Ask a running job to save a checkpoint and end; with `now` kill it."""

    def waits_on_stop(self, job: J) -> bool:
        """Whether a driver that was asked to stop waits for a job's end."""
        return False

    @property
    def kind(self) -> str:
        """The kind of GPU that runs get, as trials are kept by it; a part of a file's name."""
        raise NotImplementedError

    def try_out(self, folder: Path, command: Sequence[str]) -> int | None:
        """Run `tools/train.py` with these arguments where runs run, and wait for its end.

        Args:
            folder (Path): Is there, for the log.

        Returns:
            int, optional: the exit code, if it is known.

        Raises:
            UserError: if there is no room.
            OSError: if it could not be started.
        """
        raise NotImplementedError

    def where(self, run: Run) -> str:
        """Where a run is, for `watch.status`."""
        job = self.jobs[run.name]
        return 'running' if job.state in ('running', 'elsewhere') else 'idle'

    def release(self, job: J) -> None:
        """Give back what a job holds."""
        if job.lease is not None:
            job.lease.release()
            job.lease = None

    def drive(self, look: Callable[[], Any] = lambda: None) -> bool:
        """Carry the plan through.

        Args:
            look (Callable): Called between two rounds, which are `pause` seconds apart.

        Returns:
            bool: whether all runs are done.
        """
        with self._signals():
            while True:
                self.begin_round()
                for job in self.jobs.values():
                    self._update(job)
                look()
                if all(job.state in ENDED for job in self.jobs.values()):
                    break
                if self.asked_to_stop and not any(map(self.waits_on_stop, self.jobs.values())):
                    break
                time.sleep(self.pause)
        return all(job.state == 'done' for job in self.jobs.values())

    def failures(self) -> list[str]:
        """What went wrong, a run at a time, with the last lines of its log."""
        found = []
        for job in self.jobs.values():
            if job.state in ('failed', 'blocked'):
                lines = [f'{title(job.run)} ({job.state}): {job.message}']
                if job.state == 'failed':
                    lines += [f'    {line}' for line in outcome.tail(job.folder / outcome.LOG)]
                found.append('\n'.join(lines))
        return found

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM let the trainings save a checkpoint and end; a second one kills."""

        def stop(signum: int, frame: FrameType | None) -> None:
            self.asked_to_stop += 1
            for job in self.jobs.values():
                self.stop(job, now=self.asked_to_stop > 1)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _update(self, job: J) -> None:
        if job.state in ENDED:
            return
        if job.state == 'running':
            ended, code = self.poll(job)
            if ended and job.state == 'running':
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
        first = job.run.waits_for
        before = None if first is None else self.jobs[first.name]
        if before is not None and before.state in ('failed', 'blocked'):
            self._end(job, 'blocked', f'waits for {title(before.run)}, which has no result')
        elif self.adopt(job):
            job.state = 'running'
        elif self.has_room() and (before is None or before.state == 'done'):
            self._try_to_start(job, before)

    def _read(self, job: J) -> Record | None:
        try:
            return record.find(job.folder)
        except record.RecordError as error:
            self._end(job, 'failed', f'{error}; without that folder it trains again')
            return None

    def _try_to_start(self, job: J, before: J | None) -> None:
        path = job.folder / leases.NAME
        try:
            job.lease = leases.take(path, 'a driver')
        except OSError as error:
            self._end(job, 'failed', f'{path}: {error.strerror}')
            return
        if job.lease is None:
            if job.state != 'elsewhere':
                self.say(f'{title(job.run)}: in the hands of {leases.holder(path)}')
            job.state = 'elsewhere'
            return
        job.state = 'idle'
        known = self._read(job)  # it may have ended while we looked
        if job.state not in ENDED and known is not None and known['state'] == 'done':
            self._end(job, 'done')
        if job.state in ENDED:
            self.release(job)
            return
        try:
            checkpoint = None if before is None else outcome.checkpoint(before.folder)
            job.starts = len(known['starts']) if known else 0
            if self.start(job, checkpoint):
                job.tries += 1
                job.state = 'running'
            else:
                self.release(job)
        except (OSError, record.RecordError) as error:
            self.release(job)
            self._end(job, 'failed', ' '.join(str(error).split()))

    def _ended(self, job: J, code: int | None) -> None:
        """A run is over, and its lease is ours: what does its record say?"""
        known = self._read(job)
        if job.state in ENDED:
            self.release(job)
            return
        if known is not None and known['state'] == 'done':
            self.release(job)
            self._end(job, 'done')
            return
        reason = outcome.reason(job.folder / outcome.LOG, code)
        retried = code not in NOT_MENDED and job.tries < self.limit
        stopped = code in (STOPPED, INTERRUPTED) or bool(self.asked_to_stop)
        known = known or record.new(job.run.config, job.run.alternatives, job.run.seed)
        self._note(job, known, reason, failed=not (retried or stopped))
        self.release(job)
        if stopped and self.asked_to_stop:
            job.state, job.message = 'idle', reason
            self.say(f'{title(job.run)}: stopped; the same command goes on from here')
        elif retried:
            job.state, job.message = 'idle', reason
            self.say(f'{title(job.run)}: {reason}; it is tried again')
        else:
            self._end(job, 'failed', reason)

    def _note(self, job: J, known: Record, reason: str, failed: bool) -> None:
        """Completes the record of a training that could not: the lease is ours, nobody writes."""
        outcome.complete(known, reason, failed, begun=len(known['starts']) > job.starts)
        try:
            record.write(job.folder, known)
        except OSError as error:
            self.say(f'{job.folder / record.NAME} was not written: {error.strerror}')

    def _end(self, job: J, state: str, message: str = '') -> None:
        job.state, job.message = state, message
        self.say(f'{title(job.run)}: {state}{f", {message}" if message else ""}')
