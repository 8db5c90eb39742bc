"""Hooks that let a training tell of its gates. None is on unless a config names it in
`custom_hooks`; what they say goes through mmengine's visualizer, to each of its backends."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmattn.attention import CAT
from mmattn.registry import register


def _model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


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
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval must be an integer >= 1, got {interval!r}')
        self.interval, self.last = interval, None

    def before_train(self, runner: Runner) -> None:
        self.gates = {n: m for n, m in _model(runner).named_modules() if isinstance(m, CAT)}
        if not self.gates:
            raise ValueError('CollaFactorHook: the model has no CAT')
        self._log(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        if self.every_n_train_iters(runner, self.interval):
            self._log(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        self._log(runner, runner.iter)

    def _log(self, runner, step):
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
