from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmattn.registry import register

# What a data loader gives; what a training step gives.
Batch = dict[str, Any] | Sequence[Any] | None
Outputs = dict[str, Any] | None


class ProgressHook(Hook):
    """Knows whether training or testing has begun: errors before are the user's to mend."""

    begun = False
    steps = 0  # of training, done since the start of this process

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        self.begun = True

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        self.steps += 1

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        self.begun = True


@register(HOOKS)
class EvaluateBeforeTraining(Hook):
    """Evaluates the untrained model, for comparison with the trained one.

    The metrics on the validation set and the number of parameters are written to ``untrained.json``
    in the work directory. A resumed run does not write it again, one without validation not at all.
    """

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0 or runner.val_loop is None:
            return
        metrics = runner.val_loop.run()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if is_main_process():
            mmengine.dump(
                dict(parameters=parameters, metrics={k: float(v) for k, v in metrics.items()}),
                Path(runner.work_dir) / 'untrained.json',
            )
