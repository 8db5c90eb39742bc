"""A plan's runs as jobs of a Slurm cluster, submitted through submitit.

A job is asked to save some time before its time limit and when it is preempted, and is requeued: it
goes on from its last checkpoint. A run is submitted when what it starts from is done, by its
record: Slurm's own dependencies do not outlive a requeue. What Slurm says only tells whether a
job is still there. Jobs are found again by their name, so a driver may die and start again, and
several may work on one folder.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import submitit
from submitit.core.utils import pickle_load

from mmattn.papers import config_root
from mmattn.papers.plan import Run, title

from . import driver, leases, record, snapshot, task
from .cluster import Cluster
from .driver import TRAIN
from .errors import UserError

FOLDER = 'slurm'  # of a run's: scripts, pickles and outputs of its jobs
CODE = 'code'  # of the work directory: snapshots
REQUEUES = 10**6  # no training is given up because its time limit was short
MARGIN = 5  # seconds that requeueing takes
PAUSE = float(os.environ.get('MMATTN_SLURM_PAUSE', 10))  # seconds between two questions to Slurm

cloudpickle.register_pickle_by_value(task)


@dataclass
class Job(driver.Job):
    """A run with its job's number, and whether Slurm holds it back."""

    number: str | None = None
    held: bool = False

    @property
    def name(self) -> str:
        """What its jobs are called: by it they are found again, whoever submitted them."""
        digest = record.digest(str(self.folder))[:12]
        return f'{self.run.name.replace("/", "-")}-{digest}'


class Driver(driver.Driver[Job]):
    """Runs a plan on a cluster.

    Args:
        work (Work): What to run.
        cluster (Cluster): Where, and with what.

    Raises:
        UserError: if there is no Slurm here, or a run does not fit the cluster's nodes.
    """

    job_class = Job
    pause = PAUSE

    def __init__(self, work: driver.Work, cluster: Cluster) -> None:
        super().__init__(work)
        absent = [name for name in ('sbatch', 'squeue', 'srun') if shutil.which(name) is None]
        if absent:
            raise UserError(f'--slurm needs the commands of Slurm; not found: {", ".join(absent)}')
        self.cluster = cluster
        self.nodes, self.per_node = cluster.shape(self.per_run)
        self.queue: dict[str, tuple[str, str, str]] | None = None

    def begin_round(self) -> None:
        """Ask Slurm once for all jobs."""
        before, self.queue = self.queue, self._ask()
        if self.queue is None and before is not None:
            self.say('Slurm does not answer (squeue); nothing is submitted until it does')

    def has_room(self) -> bool:
        return self.queue is not None

    def adopt(self, job: Job) -> bool:
        if self.queue is None or job.name not in self.queue:
            return False
        job.number = self.queue[job.name][0]
        self.say(f'{title(job.run)}: is job {job.number} already')
        return True

    def start(self, job: Job, checkpoint: str | None) -> bool:
        # Once more, as another driver may have had the lease a moment ago.
        self.queue = self._ask()
        if self.queue is None:
            return False
        if job.name in self.queue:
            return False  # and is adopted in the next round
        arguments = [*job.run.arguments(self.work_dir, checkpoint), *self.options]
        job.number = self._submit(job.name, job.folder, arguments)
        self.queue[job.name] = job.number, 'PENDING', ''
        self.say(
            f'{title(job.run)}: submitted as job {job.number} (try {job.tries + 1} of {self.limit})'
        )
        self.release(job)  # it is the job's now
        return True

    def poll(self, job: Job) -> tuple[bool, int | None]:
        if self.queue is None:
            return False, None
        if job.name in self.queue:
            number, _, reason = self.queue[job.name]
            self._tell_if_held(job, number, reason)
            return False, None
        job.lease = leases.take(job.folder / leases.NAME, 'a driver')
        if job.lease is None:
            job.state = 'idle'  # somebody else has gone on with it
            return False, None
        self.queue = self._ask()
        if self.queue is None or job.name in self.queue:
            self.release(job)  # another driver has submitted it again since the round began
            return False, None
        return True, None if job.number is None else self._exit_code(job.folder, job.number)

    def where(self, run: Run) -> str:
        job = self.jobs[run.name]
        _, state, _ = (self.queue or {}).get(job.name, ('', '', ''))
        if job.state == 'running' and state == 'PENDING':
            return f'queued as job {job.number}'
        return super().where(run)

    def _ask(self) -> dict[str, tuple[str, str, str]] | None:
        """Numbers, states and reasons of our jobs, by their names; None if Slurm cannot say."""
        command = ['squeue', '--all', '--noheader', '--user', str(os.getuid())]
        command += ['--format', '%i|%T|%r|%j']
        try:
            said = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
                start_new_session=True,  # Ctrl-C is not for it
            )
        except (OSError, subprocess.SubprocessError):
            return None
        found = {}
        for line in said.stdout.splitlines():
            number, state, reason, name = line.strip().split('|', 3)
            found[name] = number, state, reason
        return found

    def _tell_if_held(self, job: Job, number: str, reason: str) -> None:
        held = 'held' in reason.lower() or reason == 'JobHoldMaxRequeue'
        if held and not job.held:
            self.say(f'{title(job.run)}: Slurm holds job {number} ({reason}); scontrol release')
        job.held = held

    @property
    def kind(self) -> str:
        found = filter(None, ('slurm', self.cluster.partition, self.cluster.constraint))
        return re.sub(r'\W+', '-', ' '.join(found))

    def try_out(self, folder: Path, command: Sequence[str]) -> int | None:
        name = f'trial-{record.digest(str(folder.resolve()))[:12]}'
        number = self._submit(name, folder.resolve(), command)
        self.say(f'submitted as job {number}')
        try:
            while (found := self._ask()) is None or name in found:
                time.sleep(PAUSE)
        except BaseException:
            subprocess.run(['scancel', number], capture_output=True)
            raise
        return self._exit_code(folder.resolve(), number)

    def _task(self, folder: Path, arguments: Sequence[str], code: Path) -> task.Task:
        package = Path(snapshot.PACKAGE)
        config, *rest = arguments

        def copied(path: str | Path) -> str:
            """Where the snapshot has a file of ours; a user's own stays where it is."""
            path = Path(path).resolve()
            inside = path.is_relative_to(config_root().resolve()) or path == TRAIN.resolve()
            return str(code / path.relative_to(package.parent)) if inside else str(path)

        command = [copied(TRAIN), copied(config), '--launcher', 'pytorch', *rest]
        grace = max(1, self.cluster.signal_seconds - 2 * MARGIN)
        modules = str(code / Path(__file__).resolve().parent.relative_to(package.parent))
        return task.Task(str(folder), modules, command, self.per_node, grace, self.environment)

    def _submit(self, name: str, folder: Path, arguments: Sequence[str]) -> str:
        """Submit a job that runs `tools/train.py` with these arguments; returns its number.

        Raises:
            OSError: if Slurm refuses it.
        """
        cluster, code = self.cluster, snapshot.make(self.work_dir / CODE)
        what = self._task(folder, arguments, code)
        python = cluster.python or ('python' if cluster.container else shlex.quote(sys.executable))
        python = f'{cluster.container} {python}' if cluster.container else python
        root = str(snapshot.PACKAGE.parent)
        paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
        paths = [str(code), *(path for path in paths if path and os.path.abspath(path) != root)]
        wanted = dict(
            job_name=name,
            partition=cluster.partition,
            account=cluster.account,
            qos=cluster.qos,
            constraint=cluster.constraint,
            time=max(1, round(60 * cluster.hours)),
            nodes=self.nodes,
            ntasks_per_node=1,
            gpus_per_node=self.per_node if cluster.gpus_per_node else None,
            cpus_per_task=cluster.cpus_per_process * self.per_node,
            mem=None if cluster.memory_gb is None else f'{round(1024 * cluster.memory_gb)}MB',
            signal_delay_s=cluster.signal_seconds,
            srun_args=cluster.srun_args or None,
            # After the user's own, which may set it, too.
            setup=[
                *cluster.setup,
                f'export PYTHONPATH={shlex.quote(os.pathsep.join(paths))}'
                + '${PYTHONPATH:+:$PYTHONPATH}',
            ],
            stderr_to_stdout=True,
            additional_parameters={'requeue': True, **cluster.sbatch},
        )
        executor = submitit.SlurmExecutor(folder / FOLDER, max_num_timeout=REQUEUES, python=python)
        executor.update_parameters(**{key: value for key, value in wanted.items() if value})
        try:
            return executor.submit(what).job_id
        except (subprocess.SubprocessError, RuntimeError) as error:
            raise OSError(f'sbatch: {" ".join(str(error).split())[-300:]}') from error

    def _exit_code(self, folder: Path, number: str) -> int | None:
        """That of a job that is over, if it came to its end."""
        path = submitit.SlurmJob(folder / FOLDER, number).paths.result_pickle
        if not path.is_file():
            return None
        outcome, value = pickle_load(path)
        return value if outcome == 'success' else None
