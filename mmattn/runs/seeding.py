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

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler


def mix(*numbers):
    """A 32-bit seed from non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class SampleIndex(int):
    """An index of a data set that carries the seed of this draw of the sample."""

    seed = None


class SeededSampler(Sampler):
    """Gives every index that another sampler yields a seed.

    Args:
        sampler (dict): Config of the sampler.
        dataset (Sized): The data set it draws from.
        seed (int, optional): Seed of the run; the sampler's own choice when None.
    """

    def __init__(self, sampler, dataset, seed=None):
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.dataset = dataset  # batch samplers group by the shapes they find there
        self.seed = getattr(self.sampler, 'seed', None) or 0
        self.rank, self.world_size = get_dist_info()
        self.start = 0
        # mmengine asks whether a sampler has these methods
        if hasattr(self.sampler, 'skip'):
            self.skip = self._skip

    def __iter__(self):
        for number, index in enumerate(self.sampler, self.start):
            index = SampleIndex(index)
            index.seed = mix(self.seed, number * self.world_size + self.rank)
            yield index

    def __len__(self):
        return len(self.sampler)

    def set_epoch(self, epoch):
        self.sampler.set_epoch(epoch)
        # an infinite sampler knows no epochs
        if hasattr(self.sampler, 'epoch'):
            self.start = epoch * len(self.sampler)

    def _skip(self, num_samples):
        self.sampler.skip(num_samples)
        self.start = num_samples


class SeededDataset(Dataset):
    """Seeds Python's, NumPy's and PyTorch's generators before each sample of another data set.

    Args:
        dataset (dict): Config of the data set.
    """

    def __init__(self, dataset):
        self.dataset = DATASETS.build(dataset)

    def __getitem__(self, index):
        if isinstance(index, SampleIndex):
            random.seed(index.seed)
            np.random.seed(index.seed)
            # The CPU's alone: transforms use no other, and a worker may have no GPU.
            torch.default_generator.manual_seed(index.seed)
        return self.dataset[index]

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        # Not reached while unpickling in a worker, where `dataset` itself is not there yet.
        if name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeedIterationHook(Hook):
    """Seeds the main process's generators before each iteration."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        # Far from the samples' numbers. `runner.seed` differs between ranks if the config says so.
        seed = mix(runner.seed, runner.iter, 1)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def seeded(dataloader):
    """The config of a training data loader with its samples seeded.

    A loader whose data set or sampler is an object already is returned as it is.
    """
    if not isinstance(dataloader, dict) or not all(
        isinstance(dataloader.get(key), dict) for key in ('dataset', 'sampler')
    ):
        return dataloader
    return {
        **dataloader,
        'dataset': dict(type=SeededDataset, dataset=dataloader['dataset']),
        'sampler': dict(type=SeededSampler, sampler=dataloader['sampler']),
    }
