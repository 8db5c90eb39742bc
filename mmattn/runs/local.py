"""A plan's runs as processes of this machine, which share its GPUs by leases.

A driver that is killed leaves its trainings running; the next one finds their leases held and waits
for their end.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmattn.papers.plan import title

from . import driver, leases
from .driver import LAUNCH, TRAIN
from .errors import UserError
from .outcome import LOG


@dataclass
class Job(driver.Job):
    """A run with its process and the GPUs that it has."""

    process: subprocess.Popen | None = None
    slots: dict[str, leases.Lease] = field(default_factory=dict)


class Driver(driver.Driver[Job]):
    """Runs a plan on this machine.

    Args:
        work (Work): What to run.
        slots (Slots): What the runs share; each has one a process.
    """

    job_class = Job

    def __init__(self, work: driver.Work, slots: leases.Slots) -> None:
        super().__init__(work)
        self.slots = slots
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
        arguments = [*job.run.arguments(self.work_dir, checkpoint), *self.options]
        job.process = self._launch(job.folder, arguments, slots, job.lease)
        where = f'{self.slots.kind} {",".join(slots)}'
        self.say(f'{title(job.run)}: started on {where} (try {job.tries + 1} of {self.limit})')
        return True

    @property
    def kind(self) -> str:
        if self.slots.kind == 'cpu':
            return 'cpu'
        import torch

        names = {torch.cuda.get_device_name(int(name)) for name in self.slots.names}
        return '+'.join(re.sub(r'\W+', '-', name) for name in sorted(names))

    def try_out(self, folder: Path, command: Sequence[str]) -> int | None:
        slots = self.slots.take(self.per_run, 'a trial')
        if slots is None:
            raise UserError(f'no {self.slots.kind} is free for a trial')
        try:
            process = self._launch(folder, command, slots)
            try:
                return process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
        finally:
            for lease in slots.values():
                lease.release()

    def _launch(
        self,
        folder: Path,
        arguments: Sequence[str],
        slots: dict[str, leases.Lease],
        lease: leases.Lease | None = None,
    ) -> subprocess.Popen:
        """Start the launcher for `tools/train.py`; the leases are handed down to it."""
        handed = [*slots.values(), *([] if lease is None else [lease])]
        config, *rest = arguments
        command = [sys.executable, str(LAUNCH), str(self.per_run), str(TRAIN)]
        command += [config, '--launcher', 'pytorch', *rest]
        environment = {**os.environ, **self.environment}
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [environment.get('PYTHONPATH')])]
        environment['PYTHONPATH'] = os.pathsep.join(paths)
        if self.slots.kind == 'gpu':
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(slots)
        else:
            share = max(1, len(os.sched_getaffinity(0)) // len(self.slots.names))
            environment.setdefault('OMP_NUM_THREADS', str(share))
        with open(folder / LOG, 'a') as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this driver, which lets them save; and they outlive it.
                start_new_session=True,
                pass_fds=[item.fileno() for item in handed],
            )

    def poll(self, job: Job) -> tuple[bool, int | None]:
        assert job.lease is not None and job.process is not None  # of a running job
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
