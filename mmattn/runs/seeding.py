"""Random numbers that depend on the place in the run, not on the way there.

Resumed training ends with the same weights as uninterrupted training only if the same samples come
in the same order (mmengine's samplers see to that, given the seed), are augmented the same way, and
meet the same random choices in the model (dropout, the sampling of boxes). mmengine restores no
generator: a worker's depends on all it has loaded since it was started, the main process's on all
iterations before. So here every sample and every iteration starts from a seed of its own, made of
the run's seed and their number. As a sample's number counts over all processes, training in two
processes also augments as training in one does.
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, Sampler

from . import signals, unreadable
from .hooks import Batch


def mix(*numbers: int) -> int:
    """A 32-bit seed from non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class SampleIndex(int):
    """An index of a data set that carries the seed of this draw of the sample."""

    seed = 0


class SeededSampler(Sampler):
    """Gives every index that another sampler yields a seed.

    Args:
        sampler (dict): Config of the sampler.
        dataset (Sized): The data set it draws from.
        seed (int, optional): Seed of the run; the sampler's own choice when None.
    """

    def __init__(self, sampler: dict[str, Any], dataset: Dataset, seed: int | None = None) -> None:
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.dataset = dataset  # batch samplers group by the shapes they find there
        self.seed = getattr(self.sampler, 'seed', None) or 0
        self.rank, self.world_size = get_dist_info()
        self.start = 0
        self.passed = 0  # samples that the next iterator leaves out

    def __iter__(self) -> Iterator[int]:
        passed, self.passed = self.passed, 0
        for number, index in islice(enumerate(self.sampler, self.start), passed, None):
            index = SampleIndex(index)
            index.seed = mix(self.seed, number * self.world_size + self.rank)
            yield index

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)
        if self.is_finite:
            self.start = epoch * len(self.sampler)

    @property
    def is_finite(self) -> bool:
        # an infinite sampler knows no epochs
        return hasattr(self.sampler, 'epoch')


class SeededBatchSampler(Sampler):
    """A batch sampler that can leave out batches unread, whatever it makes of its samples.

    Args:
        batch_sampler (dict): Config of the batch sampler.
        sampler (Sampler): What it draws from.
        batch_size (int): Samples a batch.
    """

    def __init__(self, batch_sampler: dict[str, Any], sampler: Sampler, batch_size: int) -> None:
        self.batch_sampler = DATA_SAMPLERS.build(
            batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
        )
        self.sampler = sampler
        self.passed = 0

    def __iter__(self) -> Iterator[list[int]]:
        # As a generator, this begins with the first batch: PyTorch makes iterators that it drops.
        passed, self.passed = self.passed, 0
        yield from islice(self.batch_sampler, passed, None)

    def __len__(self) -> int:
        return len(self.batch_sampler)


def batches_after(dataloader: DataLoader, passed: int) -> Iterator[Any]:
    """Batches of a training data loader but for the first ones, which are not read.

    The batches of a data loader that :func:`seeded` has not made are read nevertheless.
    """
    sampler: Any = dataloader.batch_sampler
    if isinstance(sampler, SeededBatchSampler):
        sampler.passed = passed
    elif isinstance(getattr(sampler, 'sampler', None), SeededSampler):
        sampler.sampler.passed = passed * (dataloader.batch_size or 1)
    else:
        return islice(dataloader, passed, None)
    return iter(dataloader)


def endless_batches(dataloader: DataLoader, passed: int) -> Iterator[Any]:
    """Yields the batches of a training data loader, epoch after epoch, but for the first ones."""
    sampler: Any = getattr(dataloader.batch_sampler, 'sampler', None)
    epoch = 0
    if not isinstance(sampler, SeededSampler) or sampler.is_finite:
        epoch, passed = divmod(passed, len(dataloader))
    while True:
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
        yield from batches_after(dataloader, passed)
        epoch, passed = epoch + 1, 0


class SeededDataset(Dataset):
    """Seeds Python's, NumPy's and PyTorch's generators before each sample of another data set.

    In the place of a sample whose image cannot be read comes the next one that can.

    Args:
        dataset (dict): Config of the data set.
        report (str, optional): File in which unreadable images are noted. Without one they are
            errors.
    """

    def __init__(self, dataset: dict[str, Any], report: str | None = None) -> None:
        self.dataset = DATASETS.build(dataset)
        self.report = report

    def __getitem__(self, index: int) -> Any:
        signals.shield_worker()
        if self.report is None:
            return self._seeded(index, index)
        return unreadable.first_readable(
            self.dataset, lambda other: self._seeded(other, index), index, self.report
        )

    def _seeded(self, index: int, place: int) -> Any:
        if isinstance(place, SampleIndex):
            random.seed(place.seed)
            np.random.seed(place.seed)
            # The CPU's alone: transforms use no other, and a worker may have no GPU.
            torch.default_generator.manual_seed(place.seed)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # Not reached while unpickling in a worker, where `dataset` itself is not there yet.
        if name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeedIterationHook(Hook):
    """Seeds the main process's generators before each iteration."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        seed_iteration(runner)


def seed_iteration(runner: Runner) -> None:
    """Seeds the generators for the present iteration."""
    # Far from the samples' numbers. `runner.seed` differs between ranks if the config says so.
    seed = mix(runner.seed, runner.iter, 1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seeded(
    dataloader: DataLoader | dict[str, Any] | None, report: str | None = None
) -> DataLoader | dict[str, Any] | None:
    """The config of a training data loader with its samples seeded.

    Images that cannot be read are noted in ``report``, see unreadable.py. A loader whose data set
    or sampler is an object already is returned as it is.
    """
    if not isinstance(dataloader, dict) or not all(
        isinstance(dataloader.get(key), dict) for key in ('dataset', 'sampler')
    ):
        return dataloader
    dataloader = {
        **dataloader,
        'dataset': dict(type=SeededDataset, dataset=dataloader['dataset'], report=report),
        'sampler': dict(type=SeededSampler, sampler=dataloader['sampler']),
    }
    if isinstance(dataloader.get('batch_sampler'), dict):
        dataloader['batch_sampler'] = dict(
            type=SeededBatchSampler, batch_sampler=dataloader['batch_sampler']
        )
    return dataloader
