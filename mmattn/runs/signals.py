"""SIGTERM and SIGUSR2, with which clusters say that they want their machine back.

A training saves a checkpoint at the next step and ends with exit code 75, all its processes at the
same step. Whatever else is going on ends at once, as does everything at a second signal.
"""

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import get_worker_info

from . import saving
from .errors import Stopped
from .hooks import Batch, Outputs

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
# Seconds in which signals count as one: a cluster sends to each process, and the launcher passes on
# what it gets.
SAME_SIGNAL = 1


class Request:
    """What this process has been asked.

    Attributes:
        signum (int, optional): The signal that has come.
        deferred (bool): Whether somebody will look here, instead of being interrupted.
        installed (bool): Whether signals are heard at all.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.signum: int | None = None
        self.deferred = self.installed = False
        self._time = 0.0  # of the first signal

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal; ends what is done unless somebody looks here, and all at a second one."""
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._time = signum, now
            if not self.deferred:
                raise Stopped
        elif now - self._time >= SAME_SIGNAL:
            os._exit(128 + signum)

    @property
    def name(self) -> str:
        """The signal's name, 'SIGTERM' say; there must be one."""
        assert self.signum is not None
        return signal.Signals(self.signum).name

    @contextmanager
    def heard(self) -> Iterator['Request']:
        """Hears the signals inside."""
        self._forget()
        before = {signum: signal.signal(signum, self.handle) for signum in SIGNALS}
        self.installed = True
        try:
            yield self
        finally:
            self.installed = False
            for signum, handler in before.items():
                signal.signal(signum, handler)


request = Request()


class StopHook(Hook):
    """Ends a training for whose end a signal asks."""

    priority = 'LOWEST'  # after the checkpoint of the same step

    def before_train(self, runner: Runner) -> None:
        request.deferred = True

    def after_train(self, runner: Runner) -> None:
        request.deferred = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        if not request.installed or not self._any_process():
            return
        path = saving.save_stopped(runner)
        if path is not None:
            runner.logger.info(f'Saved {path} on demand of a signal')
        barrier()
        raise Stopped

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        # The processes need not be at the same batch. The others end with the first, which does not
        # save: averaged weights may be in the model's place.
        if request.signum is not None and is_main_process() and saving.is_saved(runner):
            raise Stopped

    @staticmethod
    def _any_process() -> bool:
        asked = torch.tensor(int(request.signum is not None))
        if is_distributed():
            all_reduce(asked, 'max')
        return bool(asked)


def shield_worker() -> None:
    """Lets a data worker outlive the first SIGTERM, which a cluster may send to all processes.

    The training needs it up to the step at which it saves. A second one kills the worker.
    """
    if get_worker_info() is None or signal.getsignal(signal.SIGTERM) is _first:
        return
    signal.signal(signal.SIGTERM, _first)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _first(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, _second)


def _second(signum: int, frame: FrameType | None) -> None:
    os._exit(0)


@atexit.register
def _end_workers() -> None:
    # Python sends the data workers that are left one SIGTERM, and waits for them without end.
    for _ in range(2):
        children = [child for child in multiprocessing.active_children() if child.daemon]
        for child in children:
            child.terminate()
        for child in children:
            child.join(1)
