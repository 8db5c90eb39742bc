"""A trial of a training: a few dozen of its iterations, on its data and its device, timed.

`tools/train.py --measure FILE` runs one. It leaves the file and logs, no checkpoint.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from . import atomic

WARM_UP, MOST = 5, 60  # iterations that are not timed, and that are
SECONDS = 90  # after which it is enough, with what an evaluation takes below two minutes
VALIDATED = 20  # batches of the validation
NEVER = 10**9
KEYS = ('iteration', 'iterations', 'evaluation', 'evaluations', 'processes', 'state_bytes')


class Measured(Exception):
    """The trial is over; raised in all processes."""


class MeasureHook(Hook):
    """Times the first iterations and an evaluation's batches, then ends the training.

    The runner has it if its config has `measure`, see `ask`.

    Args:
        path (str): The file to write, in JSON: seconds of an `iteration` and of an `evaluation`,
            how many `iterations` and `evaluations` a training has, `processes`, the `device`, and
            `state_bytes`, how large a checkpoint is.
        evaluations (int): Of a whole training.
        seconds (float): How long to time iterations at most.
    """

    priority = 'LOWEST'

    def __init__(self, path: str, evaluations: int, seconds: float = SECONDS) -> None:
        self.path, self.evaluations, self.seconds = path, evaluations, seconds
        self.count, self.begun = 0, 0.0

    def before_train(self, runner: Runner) -> None:
        self.begun = _now()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.count += 1
        if self.count == WARM_UP:
            self.begun = _now()
        enough = self.count >= WARM_UP + MOST
        enough |= self.count > WARM_UP and time.monotonic() - self.begun > self.seconds
        if _first_says(enough):
            self._end(runner)

    def after_train(self, runner: Runner) -> None:
        self._end(runner)  # a training that is shorter than a trial

    def _end(self, runner: Runner) -> None:
        timed = self.count - WARM_UP if self.count > WARM_UP else self.count
        iteration = (_now() - self.begun) / max(1, timed)
        evaluation = _evaluation(runner)
        if is_main_process():
            cuda = torch.cuda.is_available()
            found = dict(
                iteration=iteration,
                iterations=runner.max_iters,
                evaluation=evaluation,
                evaluations=self.evaluations if runner.val_loop is not None else 0,
                processes=get_world_size(),
                device=torch.cuda.get_device_name() if cuda else 'cpu',
                state_bytes=_bytes(runner.model.state_dict())
                + _bytes(runner.optim_wrapper.state_dict()),
                at=time.time(),
            )
            atomic.write_text(self.path, json.dumps(found, indent=1))
        raise Measured


def ask(cfg: Config, path: str | Path) -> None:
    """Let a training be a trial: it saves and evaluates nothing, and ends soon."""
    train = cfg.train_cfg
    total = train.get('max_epochs') or train.get('max_iters')
    begin, interval = train.get('val_begin', 1), train.get('val_interval', 1)
    evaluations = max(0, (total - begin) // interval + 1)
    train.val_interval = NEVER
    hook = cfg.default_hooks.get('checkpoint') or {}
    cfg.default_hooks.checkpoint = {
        **hook,
        'interval': NEVER,
        'save_last': False,
        'save_best': None,
    }
    cfg.measure = dict(path=str(path), evaluations=evaluations)


def read(path: str | Path) -> dict[str, Any] | None:
    """What a trial has found; None if there is none, or none that is whole."""
    try:
        found = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and all(
        isinstance(found.get(key), (int, float)) and found[key] >= 0 for key in KEYS
    )
    return found if whole else None


def process_seconds(found: dict[str, Any]) -> float:
    """Seconds of a whole training, times its processes, by its trial."""
    seconds = found['iteration'] * found['iterations']
    return (seconds + found['evaluation'] * found['evaluations']) * found['processes']


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _first_says(choice: bool) -> bool:
    choices = [choice]
    broadcast_object_list(choices)
    return choices[0]


def _evaluation(runner: Runner) -> float:
    """Seconds that an evaluation takes, by its first batches."""
    if runner.val_loop is None:
        return 0.0
    loader = runner.val_loop.dataloader
    runner.model.eval()
    begun, count = _now(), 0
    with torch.no_grad():
        for count, batch in enumerate(loader, 1):  # noqa: B007
            runner.model.val_step(batch)
            if count == VALIDATED:
                break
    return (_now() - begun) / max(1, count) * len(loader)


def _bytes(state: Any) -> int:
    """Of all tensors in nested dictionaries and lists."""
    if torch.is_tensor(state):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_bytes, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(_bytes, state))
    return 0
