"""What a job of Slurm does on each of its nodes.

submitit pickles it when a run is submitted, and again when the job is requeued: by value, so that a
job has its signals' handlers at once. Hence it needs nothing but submitit when it is loaded.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

LOST = 1  # an exit code, as in errors.py
# Those of a training that was asked to stop: as in errors.py, and before it could hear.
STOPPED = (75, 128 + signal.SIGTERM, 128 + signal.SIGUSR2)
LEASE_WAIT = 150  # seconds in which the lease of a job that was killed must have ended
IDLE = 3  # requeues of a job that has saved nothing in between
KILL_WAIT = 120  # seconds in which Slurm ends a job after SIGTERM


class Task:
    """The launcher, and with it the processes of a node.

    Args:
        folder (str): Of the run.
        code (str): The folder of the package's modules for runs, in the snapshot.
        command (list[str]): `tools/train.py` with its arguments.
        processes (int): On each node.
        grace (float): Seconds in which a training must have saved after a signal.
        environment (dict): Further variables.
    """

    def __init__(
        self,
        folder: str,
        code: str,
        command: list[str],
        processes: int,
        grace: float,
        environment: dict[str, str],
    ) -> None:
        self.folder, self.code, self.command = folder, code, command
        self.processes, self.grace, self.environment = processes, grace, environment
        # The last checkpoint when requeued, how often it was the same.
        self.saved: tuple[str, int] | None = None
        self.idle = 0
        self.pid: int | None = None  # of the launcher, while it runs

    def __call__(self) -> int:
        """Train; returns the exit code."""
        node, lease = submitit.JobEnvironment(), None
        # What this job has said before it was requeued is not its result.
        node.paths.result_pickle.unlink(missing_ok=True)
        if node.global_rank == 0:
            lease = self._take_lease(node.job_id)
            if lease is None:
                print(f'error: the run is in other hands: {self.folder}', file=sys.stderr)
                return LOST
        code = self._train(node, lease)
        if lease is not None:
            lease.release()
        if code in STOPPED:
            # By SIGTERM: Slurm ends the job, and requeues one that it preempts, but none that is
            # over already.
            time.sleep(KILL_WAIT)
        return code

    def checkpoint(self) -> DelayedSubmission | None:
        """What the requeued job does; submitit calls it upon SIGUSR2. The training saves first.

        None if time is too short to get anywhere: the job fails.
        """
        deadline = time.monotonic() + self.grace
        if self.pid is not None:
            os.kill(self.pid, signal.SIGUSR2)
            while not _is_over(self.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not _is_over(self.pid):
                os.kill(self.pid, signal.SIGKILL)
        again = type(self)(
            self.folder, self.code, self.command, self.processes, self.grace, self.environment
        )
        again.saved = self._last_checkpoint()
        again.idle = self.idle + 1 if again.saved == self.saved else 0
        if again.idle > IDLE:
            print(f'error: {IDLE} requeues got nowhere: time is too short', file=sys.stderr)
            return None
        return DelayedSubmission(again)

    def _last_checkpoint(self) -> tuple[str, int] | None:
        """Its name and time."""
        try:
            pointer = Path(self.folder) / 'last_checkpoint'
            return pointer.read_text(), pointer.stat().st_mtime_ns
        except OSError:
            return None

    def _take_lease(self, number: str) -> Any:
        path = Path(self.code) / 'leases.py'
        spec: Any = importlib.util.spec_from_file_location('leases', path)
        leases = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(leases)
        deadline = time.monotonic() + LEASE_WAIT
        while True:
            lease = leases.take(Path(self.folder) / leases.NAME, f'job {number} of Slurm')
            if lease is not None or time.monotonic() > deadline:
                return lease
            time.sleep(1)

    def _train(self, node: submitit.JobEnvironment, lease: Any) -> int:
        environment = {**os.environ, **self.environment, 'NNODES': str(node.num_nodes)}
        environment['NODE_RANK'] = str(node.node)
        if node.num_nodes > 1:
            environment['MASTER_ADDR'] = node.hostnames[0]
            environment.setdefault('PORT', str(20000 + int(node.job_id) % 10000))
        # It does not outlive this process, however that ends.
        leash = [sys.executable, '-S', '-E', f'{self.code}/leash.py', str(os.getpid())]
        command = [*leash, sys.executable, f'{self.code}/launch.py', str(self.processes)]
        name = f'train.{node.global_rank}.log' if node.global_rank else 'train.log'
        with open(Path(self.folder) / name, 'a') as log:
            process = subprocess.Popen(
                [*command, *self.command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[] if lease is None else [lease.fileno()],
            )
        self.pid = process.pid
        # Not its own wait, within which a signal's handler could not look at it.
        while not _is_over(process.pid):
            if lease is not None:
                lease.beat()
            time.sleep(0.2)
        self.pid = None
        return process.wait()


def _is_over(pid: int) -> bool:
    """Whether a process of ours has ended; it stays there to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
