"""A plan's runs as processes of this machine, which share its GPUs by leases.

A driver that is killed leaves its trainings running; the next one finds their leases held and waits
for their end.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmattn.papers.plan import Run, title

from . import driver, leases
from .driver import LAUNCH, LOG, TRAIN


@dataclass
class Job(driver.Job):
    """A run with its process and the GPUs that it has."""

    process: subprocess.Popen | None = None
    slots: dict[str, leases.Lease] = field(default_factory=dict)


class Driver(driver.Driver):
    """Runs a plan on this machine.

    Args:
        runs, work_dir, tries, say, options: See `driver.Driver`.
        slots (Slots): What the runs share.
        per_run (int): Slots, and processes, of a run.
        environment (dict): Further variables of the trainings.
    """

    job_class = Job

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
        super().__init__(runs, work_dir, tries, say, options)
        self.slots, self.per_run = slots, per_run
        self.environment = {**os.environ, **(environment or {})}
        self._full = False  # no slots are left in this round

    def begin_round(self) -> None:
        self._full = False

    def has_room(self) -> bool:
        return not self._full

    def start(self, job: Job, checkpoint: str | None) -> bool:
        slots = self.slots.take(self.per_run, job.run.name)
        if slots is None:
            self._full = True
            return False
        job.slots = slots
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
        where = f'{self.slots.kind} {",".join(job.slots)}'
        self.say(f'{title(job.run)}: started on {where} (try {job.tries + 1} of {self.limit})')
        return True

    def poll(self, job: Job) -> tuple[bool, int | None]:
        for lease in (job.lease, *job.slots.values()):
            lease.beat()
        code = job.process.poll()
        if code is not None:
            job.process = None
        return code is not None, code

    def stop(self, job: Job, now: bool) -> None:
        if job.process is not None:
            job.process.send_signal(signal.SIGKILL if now else signal.SIGTERM)

    def waits_on_stop(self, job: Job) -> bool:
        return job.process is not None

    def release(self, job: Job) -> None:
        super().release(job)
        for lease in job.slots.values():
            lease.release()
        job.slots = {}
