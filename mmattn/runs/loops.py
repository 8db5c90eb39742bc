"""mmengine's training loops, which also go on inside an epoch, and read nothing to get there.

mmengine resumes an epoch at its start, and some of its versions load all the batches that an
iteration-based training has seen. Here the sampler alone counts up to the batch that comes next.
As samples and iterations are seeded by their numbers (seeding.py), the training goes on bit for
bit as if nothing had happened.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .seeding import batches_after, endless_batches

BATCHES = 'batches_an_epoch'

Loop: TypeAlias = EpochBasedTrainLoop | IterBasedTrainLoop


class EpochLoop(EpochBasedTrainLoop):
    """Epochs, of which the first may have begun before."""

    def run(self) -> nn.Module:
        # Restored with the checkpoint, from training with the same or another number of processes.
        hub, batches = self.runner.message_hub, len(self.dataloader)
        before = hub.runtime_info.get(BATCHES)
        hub.update_info(BATCHES, batches)
        self._begin = 0
        if before == batches:
            self._begin = self._iter - self._epoch * batches
        elif before and self._iter % before:
            self.runner.logger.warning(
                f'{batches} batches an epoch instead of {before}: epoch {self._epoch + 1}, '
                f'of which {self._iter % before} were done, begins anew'
            )
        self.runner.call_hook('before_train')
        # One that was stopped at the end of an epoch has yet to end it.
        whole = self._iter == self._epoch * (before or batches)
        _validate_again(self, self._epoch if whole else 0)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            if _val_is_due(self, self._epoch, self._max_epochs):
                self.runner.val_loop.run()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        begin, self._begin = self._begin, 0
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if begin < len(self.dataloader):
            for idx, data_batch in enumerate(batches_after(self.dataloader, begin), begin):
                self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class _Nothing:
    """Stands for a data loader of which mmengine would start to read at once."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class IterLoop(IterBasedTrainLoop):
    """Iterations, of which some may have been done before."""

    def __init__(
        self, runner: Runner, dataloader: DataLoader | dict[str, Any], *args: Any, **options: Any
    ) -> None:
        if isinstance(dataloader, dict):
            different = runner._randomness_cfg.get('diff_rank_seed', False)
            loader = runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=different)
        else:
            loader = dataloader
        super().__init__(runner, _Nothing(loader.dataset), *args, **options)
        self.dataloader: DataLoader = loader

    def run(self) -> nn.Module:
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        _validate_again(self, self._iter)
        self.dataloader_iterator = endless_batches(self.dataloader, self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            if _val_is_due(self, self._iter, self._max_iters):
                runner.val_loop.run()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model


def _val_is_due(loop: Loop, step: int, last: int) -> bool:
    """Whether a validation follows a step (an epoch or an iteration) of which there are `last`."""
    return (
        loop.runner.val_loop is not None
        and step >= loop.val_begin
        and (step % loop.val_interval == 0 or step == last)
    )


def _validate_again(loop: Loop, step: int) -> None:
    """Does the validation that follows the step at which a resumed training goes on.

    The checkpoint is older than it, and so does not know how it ended, or whether it did: the best
    checkpoint may be missing, or the last result.
    """
    last = loop._max_epochs if isinstance(loop, EpochLoop) else loop._max_iters
    if step == 0:
        return
    loop._decide_current_val_interval()
    if _val_is_due(loop, step, last):
        loop.runner.val_loop.run()


def resumable(loop: Loop | dict[str, Any]) -> Loop | dict[str, Any]:
    """The config of a training loop with our loop in the place of mmengine's."""
    if not isinstance(loop, dict):
        return loop
    kinds = {
        'EpochBasedTrainLoop': EpochLoop,
        EpochBasedTrainLoop: EpochLoop,
        'IterBasedTrainLoop': IterLoop,
        IterBasedTrainLoop: IterLoop,
    }
    loop = dict(loop)
    if 'type' in loop:
        return {**loop, 'type': kinds.get(loop['type'], loop['type'])}
    return {'type': EpochLoop if loop.pop('by_epoch') else IterLoop, **loop}
