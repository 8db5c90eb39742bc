"""Training that stops anywhere and goes on ends as if it had not, and reads nothing twice."""

import signal
from itertools import islice

import pytest
import torch
import toy
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler

from mmattn.runs import saving, signals
from mmattn.runs.errors import Stopped


class StopAt(Hook):
    """A signal that comes in the middle of an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            signal.raise_signal(signal.SIGUSR2)


def stopped_at(cfg, iteration):
    with signals.request.heard():
        run = toy.runner(cfg)
        run.register_hook(StopAt(iteration))
        with pytest.raises(Stopped):
            run.train()
    return run


KINDS = (dict(epochs=5, interval=100), dict(iters=25, interval=100))


@pytest.fixture(scope='module', params=KINDS, ids=['epochs', 'iterations'])
def whole(request, tmp_path_factory):
    """A way to train, 25 batches in epochs of 5, and an undisturbed training."""
    run = toy.runner(toy.config(tmp_path_factory.mktemp('whole'), **request.param))
    run.train()
    return request.param, run


# The last batch of an epoch, one in the middle, the last of all.
@pytest.mark.parametrize('iteration', [4, 7, 24])
def test_goes_on_bit_for_bit(tmp_path, whole, iteration):
    kind, whole = whole
    cut = stopped_at(toy.config(tmp_path, **kind), iteration)
    assert saving.pointed(tmp_path) == str(tmp_path / 'stopped.pth')
    assert not toy.same(toy.weights(cut), toy.weights(whole)) or iteration == 24
    resumed = toy.runner(toy.config(tmp_path, **kind, resume=True))
    resumed.train()
    assert resumed.iter == 25
    assert toy.same(toy.weights(resumed), toy.weights(whole))
    # each sample that was left, once
    read = resumed.train_dataloader.dataset.dataset.read
    assert read == whole.train_dataloader.dataset.dataset.read[2 * (iteration + 1) :]
    assert len(read) == 2 * (24 - iteration)
    assert resumed.optim_wrapper.get_lr() == whole.optim_wrapper.get_lr()


@DATA_SAMPLERS.register_module('ToyPairs', force=True)
class Pairs(BatchSampler):
    """Batches that depend on all samples before, as those grouped by aspect ratio."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self):
        waiting = {0: [], 1: []}
        for index in self.sampler:
            group = waiting[index % 3 == 0]
            group.append(index)
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()
        yield from (group for group in waiting.values() if group)


@pytest.mark.parametrize('workers', [0, 1])
def test_batch_samplers_of_others(tmp_path, workers):
    loader = toy.config(tmp_path, iters=25)['train_dataloader']
    loader.update(
        batch_sampler=dict(type='ToyPairs'), num_workers=workers, persistent_workers=workers > 0
    )
    kind = dict(iters=25, interval=100, train_dataloader=loader)
    whole = toy.runner(toy.config(tmp_path / 'whole', **kind))
    whole.train()
    stopped_at(toy.config(tmp_path / 'cut', **kind), 7)
    resumed = toy.runner(toy.config(tmp_path / 'cut', **kind, resume=True))
    resumed.train()
    assert toy.same(toy.weights(resumed), toy.weights(whole))


def test_iterations_of_a_sampler_with_epochs(tmp_path):
    loader = toy.config(tmp_path, iters=25)['train_dataloader']
    loader['sampler']['type'] = 'DefaultSampler'
    kind = dict(iters=25, interval=100, train_dataloader=loader)
    whole = toy.runner(toy.config(tmp_path / 'whole', **kind))
    whole.train()
    read = whole.train_dataloader.dataset.dataset.read
    assert [sorted(read[start : start + 10]) for start in range(0, 50, 10)] == [[*range(10)]] * 5
    assert read[:10] != read[10:20]
    stopped_at(toy.config(tmp_path / 'cut', **kind), 12)
    resumed = toy.runner(toy.config(tmp_path / 'cut', **kind, resume=True))
    resumed.train()
    assert resumed.train_dataloader.dataset.dataset.read == read[26:]
    assert toy.same(toy.weights(resumed), toy.weights(whole))


def test_other_number_of_batches_begins_the_epoch_anew(tmp_path, caplog):
    stopped_at(toy.config(tmp_path, epochs=3), 7)
    cfg = toy.config(tmp_path, epochs=3, resume=True)
    cfg['train_dataloader']['batch_size'] = 5
    resumed = toy.runner(cfg)
    said = []
    resumed.logger.warning = said.append
    resumed.train()
    assert len(resumed.train_dataloader.dataset.dataset.read) == 20
    assert '2 batches an epoch instead of 5: epoch 2, of which 3 were done, begins anew' in said


def test_far_into_a_training_it_starts_at_once(tmp_path):
    """Iteration 17000 of 18000: the samples that come next, and none of those before."""
    kind = dict(iters=17001, interval=20000, size=1000)
    stopped_at(toy.config(tmp_path, **kind), 0)
    path = tmp_path / 'stopped.pth'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['meta']['iter'] = 17000
    torch.save(checkpoint, path)
    resumed = toy.runner(toy.config(tmp_path, **kind, resume=True))
    resumed.train()
    order = InfiniteSampler(range(1000), seed=1)
    assert resumed.train_dataloader.dataset.dataset.read == [*islice(order, 34000, 34002)]
