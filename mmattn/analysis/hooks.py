"""Hooks that let a training tell of its gates. None is on unless a config names it in
`custom_hooks`; what they say goes through mmengine's visualizer, to each of its backends."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmattn.attention import CAT
from mmattn.attention.gate import Gate
from mmattn.registry import register

from .gates import Place, entries_of, gates_of


def log_gates(cfg: Config, interval: int) -> None:
    """Add `GateStatsHook` to a config, and `CollaFactorHook` where its model has a CAT."""
    hooks = [dict(type='GateStatsHook', interval=interval)]
    if [*entries_of('CAT', [cfg.model, cfg.get('plug') or []])]:
        hooks.append(dict(type='CollaFactorHook', interval=interval))
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *hooks]


def _model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _checked(interval: int) -> int:
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f'interval must be an integer >= 1, got {interval!r}')
    return interval


@register(HOOKS)
class CollaFactorHook(Hook):
    """Logs CAT's colla-factors: `colla/<gate>/C_w`, `S_w`, `C_alpha`, ..., `S_gamma`.

    They go to the run's `scalars.json` and to what else the config's visualizer writes
    (`TensorboardVisBackend`, `WandbVisBackend`), at the start, every so many iterations, and at the
    end. `tools/visualization/colla_factors.py` draws them.

    Args:
        interval (int): In iterations.

    Raises:
        ValueError: for an interval below 1, and before training if the model has no CAT.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 50) -> None:
        self.interval = _checked(interval)
        self.last: int | None = None  # step that was logged

    def before_train(self, runner: Runner) -> None:
        self.gates = {n: m for n, m in _model(runner).named_modules() if isinstance(m, CAT)}
        if not self.gates:
            raise ValueError('CollaFactorHook: the model has no CAT')
        self._log(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self._log(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        self._log(runner, runner.iter)

    def _log(self, runner: Runner, step: int) -> None:
        if step == self.last:
            return
        self.last = step
        scalars = {
            f'colla/{name}/{factor}': value
            for name, gate in self.gates.items()
            for factor, value in gate.colla_factors().items()
        }
        if scalars:
            runner.visualizer.add_scalars(scalars, step=step)


@register(HOOKS)
class GateStatsHook(Hook):
    """Logs what every gate does to its map: `gates/<gate>/mean`, `spread` and `saturated`.

    They are of output over input, element by element, of one sample a process, every so many
    iterations: mean, standard deviation, and the share within a twentieth of the ends of the range
    that the gate's sigmoids leave: 0 to 1, and 0 to 2 for CAT where it adds two of them. Of a gate
    that is not ours no range is known, and no share is logged. Values go where those of
    `CollaFactorHook` go.

    The gates run as they do without the hook. In a compiled model they cannot be listened to: a
    warning says so.

    Args:
        interval (int): In iterations. A step at which gates are looked at takes a few per cent
            longer, so that 50 costs much less than a hundredth.

    Raises:
        ValueError: for an interval below 1, and before training if the model has no gates.
    """

    priority = 'LOW'
    END = 0.05  # of the range

    def __init__(self, interval: int = 50) -> None:
        self.interval = _checked(interval)
        self.handles, self.seen, self.warned = [], {}, False

    def before_train(self, runner: Runner) -> None:
        self.places = gates_of(_model(runner))
        if not self.places:
            raise ValueError('GateStatsHook: the model has no gates')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.handles = [
                place.module.register_forward_hook(self._listen(place)) for place in self.places
            ]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.handles = []
        if self.seen:
            self._log(runner)
        elif not self.warned:
            self.warned = True
            runner.logger.warning('GateStatsHook hears no gate: is the model compiled?')
        self.seen = {}

    def _listen(self, place: Place) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        most = _most(place.module)

        def hook(module: nn.Module, args: tuple[Tensor, ...], y: Any) -> None:
            x = args[0]
            if not isinstance(y, torch.Tensor) or x.shape != y.shape:
                return
            with torch.no_grad():
                x, y = x[0].detach().float(), y[0].detach().float()
                there = x.abs() > torch.finfo(torch.float16).tiny
                ratio = torch.where(there, y / x, 0)
                count = there.sum().clamp_min(1)
                mean = ratio.sum() / count
                spread = torch.where(there, (ratio - mean).square(), 0).sum() / count
                end = self.END * (most or 1)
                outside = (ratio < end) | (ratio > (most or 1) - end)
                share = (outside & there).sum() / count
                self.seen[place.name] = torch.stack((mean, spread.sqrt(), share)), most

        return hook

    def _log(self, runner: Runner) -> None:
        # One copy from the device for all.
        values = torch.stack([t for t, _ in self.seen.values()]).tolist()
        scalars = {}
        for (name, (_, most)), (mean, spread, share) in zip(self.seen.items(), values, strict=True):
            scalars[f'gates/{name}/mean'] = mean
            scalars[f'gates/{name}/spread'] = spread
            if most is not None:
                scalars[f'gates/{name}/saturated'] = share
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)


def _most(gate: nn.Module) -> float | None:
    """What a gate multiplies by at most; None for one that is not ours."""
    if isinstance(gate, CAT) and gate.arrangement == 'parallel':
        return 1.0 if gate.formula == 'algorithm' and gate.exterior_logits is not None else 2.0
    return 1.0 if isinstance(gate, Gate) else None
