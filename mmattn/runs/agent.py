"""The agent that `torchrun` runs on each machine, made fit for trainings of weeks.

What is different from `torchrun`:

- An attempt has a store of its own (a prefix). In a shared one, processes that are started again
  find what the last attempt left there, and meet the dead.
- The machines are a fixed number, so that the batch is what the config says. When one of them
  starts again, all do.
- The processes die with this launcher, however it dies (leash.py).
- SIGTERM, SIGUSR2 and SIGINT are passed on once, and waited for: a training saves a checkpoint. A
  second one ends all at once.
- After a failure the others get GRACE seconds to end by themselves, as the first process has the
  message. Then they are killed.
- What a restart cannot mend is not tried again, see FINAL.

Run by launch.py, by path: it imports nothing of the package.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import Any

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

GRACE = 10  # seconds
JOIN_TIMEOUT = 900  # seconds until all machines must be there
SAME_SIGNAL = 1  # seconds in which signals count as one: a cluster may send several

# Exit codes of the tools, as in errors.py.
USER_ERROR, FAULT, STOPPED, INTERRUPTED = 2, 70, 75, 130
FINAL = {USER_ERROR, FAULT, STOPPED, INTERRUPTED}

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# What elastic's start of the workers sets handlers for. These raise out of whatever is being done,
# and undo `nohup`.
ELASTICS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Ended(Exception):
    """Another machine has ended for good; ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Rendezvous(StaticTCPRendezvous):
    """A fixed number of machines that meet once an attempt, in the store of machine 0."""

    attempt = done = -1

    @property
    def store(self) -> Store:
        """The one of all attempts; it is there once the machines have met."""
        assert self._store is not None
        return self._store

    def next_rendezvous(self) -> RendezvousInfo:
        self.attempt += 1
        # For mmattn.runs.processes, where the workers enter the same attempt's store.
        os.environ['MMATTN_ATTEMPT'] = str(self.attempt)
        deadline = time.monotonic() + JOIN_TIMEOUT
        if self._store is None:
            self._store = self._connect(deadline)
        self.store.set(f'begun_{self.attempt}', '')
        # Not one of the store's own waits, in which no signal is heard.
        joined = self.store.add(f'joined_{self.attempt}', 1)
        while joined < self.world_size:
            self._raise_if_ended()
            if time.monotonic() > deadline:
                raise Ended(
                    f'{joined} of {self.world_size} machines came to {self.master_addr}:'
                    f'{self.master_port} within {JOIN_TIMEOUT} s',
                    USER_ERROR,
                )
            time.sleep(0.1)
            joined = self.store.add(f'joined_{self.attempt}', 0)
        return RendezvousInfo(
            PrefixStore(f'agents_{self.attempt}', self.store),
            self.rank,
            self.world_size,
            RendezvousStoreInfo(self.master_addr, self.master_port),
        )

    def _connect(self, deadline: float) -> TCPStore:
        while self.rank:
            # The store's own attempts to connect hear no signal, and their failures are logged.
            try:
                socket.create_connection((self.master_addr, self.master_port), timeout=2).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Ended(
                        f'no connection to {self.master_addr}:{self.master_port}', USER_ERROR
                    ) from error
            time.sleep(0.5)
        return TCPStore(
            self.master_addr,
            self.master_port,
            is_master=self.rank == 0,
            timeout=timedelta(seconds=60),
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _raise_if_ended(self) -> None:
        try:
            if self.store.check(['ended']):
                code = int(self.store.get('ended'))
                raise Ended(f'another machine ended with exit code {code}', code)
        except DistError as error:
            raise Ended('the machine of NODE_RANK 0 is gone', 1) from error

    def num_nodes_waiting(self) -> int:
        """Whether another machine has begun the next attempt, upon which elastic follows."""
        if self.world_size == 1:
            return 0
        self._raise_if_ended()
        return int(self.store.check([f'begun_{self.attempt + 1}']))

    def all_done(self) -> bool:
        """Whether the processes of all machines have ended well; to be asked when ours have."""
        if self.world_size == 1:
            return True
        if self.done != self.attempt:
            self.done = self.attempt
            self.store.add(f'done_{self.attempt}', 1)
        return self.store.add(f'done_{self.attempt}', 0) == self.world_size

    def leave(self) -> None:
        """Lets the store, which ends with machine 0, outlive the others' last look at it."""
        deadline = time.monotonic() + GRACE
        with suppress(DistError):
            left = self.store.add('left', int(self.rank > 0))
            while not self.rank and left < self.world_size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
                left = self.store.add('left', 0)

    def end(self, code: int) -> None:
        """Tells the other machines that this one will not start again."""
        if self._store is not None and self.world_size > 1:
            with suppress(DistError):
                self._store.set('ended', str(code))
            time.sleep(1)  # the store ends with machine 0: long enough for all to have looked


def _is_over(pid: int) -> bool:
    """Whether a process of ours has ended; it stays there to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _kill_group(pid: int) -> None:
    """Kills what a process has started and left: its data workers."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class Agent(LocalElasticAgent):
    """Starts the processes of this machine, looks after them, and ends them.

    Args:
        spec (WorkerSpec): What to run, and how often again.
        meeting (Rendezvous): The spec's handler.
    """

    def __init__(self, spec: WorkerSpec, meeting: Rendezvous) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull))
        self.meeting = meeting
        self.signalled: float | None = None  # the time at which we were asked to stop
        self._forget()

    def _forget(self) -> None:
        # Exit codes by local rank, in the order in which they were seen.
        self.failed: dict[int, int] = {}
        self.deadline: float | None = None  # of those that are left after a failure
        self.killed: Sequence[int] = ()  # local ranks

    def _processes(self) -> dict[int, Popen]:
        context = self._pcontext
        handlers = context.subprocess_handlers if isinstance(context, SubprocessContext) else {}
        return {rank: handler.proc for rank, handler in handlers.items()}

    def pass_on(self, signum: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        now = time.monotonic()
        if self.signalled is None:
            self.signalled = now
            running = [proc for proc in self._processes().values() if not _is_over(proc.pid)]
            for process in running:
                process.send_signal(signum)
            if running:
                return
        elif now - self.signalled < SAME_SIGNAL:
            return
        self._shutdown()
        os._exit(128 + signum)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._forget()
        before = {signum: signal.getsignal(signum) for signum in ELASTICS}
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        try:
            return super()._start_workers(worker_group)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        for rank, process in self._processes().items():
            if process.returncode is None and _is_over(process.pid):
                _kill_group(process.pid)  # while its number cannot be another's yet
                process.poll()
            if process.returncode:
                self.failed.setdefault(rank, process.returncode)
        running = [rank for rank, proc in self._processes().items() if proc.returncode is None]
        if running:
            if self.failed and self.deadline is None:
                self.deadline = time.monotonic() + GRACE
            if self.deadline is None or time.monotonic() < self.deadline:
                return RunResult(state=WorkerState.HEALTHY)
            self.killed = running
            self._shutdown()
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            if self._is_final():
                self._remaining_restarts = 0
            self._report()
        if result.state == WorkerState.SUCCEEDED and not self.meeting.all_done():
            # Elastic would wait where it hears no signal, nor that another machine starts again.
            return RunResult(state=WorkerState.HEALTHY)
        return result

    def _exit_barrier(self) -> None:
        self.meeting.leave()

    def _is_final(self) -> bool:
        codes = set(self.failed.values())
        # The others' errors are nobody's fault where one was killed.
        if min(codes) < 0:
            codes -= {USER_ERROR, FAULT}
        return self.signalled is not None or bool(codes & FINAL)

    def _report(self) -> None:
        """One line, unless the processes have said all there is to say."""
        rank, code = next(iter(self.failed.items()))
        process = self._worker_group.workers[rank].global_rank
        what = f'process {process} failed with exit code {code}'
        if code < 0:
            names = {int(number): number.name for number in signal.Signals}
            what = f'process {process} was killed by {names.get(-code, f"signal {-code}")}'
        if self._remaining_restarts:
            limit = self._worker_group.spec.max_restarts
            number = limit - self._remaining_restarts + 1
            print(f'{what}; restart {number} of {limit}', file=sys.stderr, flush=True)
        elif code < 0 and self.signalled is None:
            print(f'error: {what}', file=sys.stderr)
        elif process and 0 in self.killed:
            # Rank 0 prints the errors that all processes meet, and has met none.
            print(f'error: {what}; MMATTN_DEBUG=1 shows its traceback', file=sys.stderr)

    def _shutdown(self, *args: Any, **options: Any) -> None:
        # Elastic's own asks with SIGTERM first, which here means to save a checkpoint.
        if self._pcontext:
            self._pcontext.close(signal.SIGKILL)

    def exit_code(self) -> int:
        """That of the process that ended first, but one that tells why before any other."""
        codes = list(self.failed.values())
        code = next((code for code in codes if code in FINAL), codes[0])
        # a process that died of signal N has code -N; a shell calls that 128 + N
        return code if code >= 0 else 128 - code


def run(
    command: Sequence[str],
    count: int,
    nodes: int,
    node_rank: int,
    address: str,
    port: int,
    restarts: int,
) -> int:
    """Runs a Python script in processes of this machine until they have ended.

    Args:
        command (list[str]): The script and its arguments.
        count (int): Processes on each machine.
        nodes (int): Machines.
        node_rank (int): This machine's number.
        address (str): That of machine 0.
        port (int): Of machine 0, free.
        restarts (int): How often to start all processes again after a failure.

    Returns:
        int: The exit code.
    """
    logging.disable()  # elastic's account of what we say in a line, or do not have to say
    handler = Rendezvous(address, port, node_rank, nodes, 'mmattn', JOIN_TIMEOUT)
    leash = str(Path(__file__).with_name('leash.py'))
    agent = Agent(
        WorkerSpec(
            role='mmattn',
            local_world_size=count,
            rdzv_handler=handler,
            entrypoint=sys.executable,
            # -S and -E: to start at once. The command itself is started without them.
            args=('-S', '-E', leash, str(os.getpid()), sys.executable, *command),
            max_restarts=restarts,
            monitor_interval=0.05,
            master_addr=address,
            master_port=port,
        ),
        handler,
    )
    for signum in PASSED_ON:
        signal.signal(signum, agent.pass_on)
    try:
        result = agent.run()
    except Ended as error:
        print(f'error: {error}', file=sys.stderr)
        return error.code
    if not result.is_failed():
        return 0
    code = agent.exit_code()
    handler.end(code)
    return code
