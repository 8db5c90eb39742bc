"""A loss that is not finite is refused before it reaches the weights, in words."""

import pytest
import torch
import toy
from mmengine.hooks import Hook
from mmengine.registry import MODELS

from mmattn.runs.errors import UserError


def order(size=10, seed=1):
    """The samples of the first epoch."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    return torch.randperm(size, generator=generator).tolist()


def test_stops_and_says_where(tmp_path):
    bad = order()[5]  # in the third batch
    run = toy.runner(toy.config(tmp_path, epochs=2, bad=[bad]))
    with pytest.raises(UserError) as stopped:
        run.train()
    message = str(stopped.value)
    assert message.startswith('loss is nan at iteration 3 (learning rate 0.0')
    assert f'images/{bad}.jpg' in message and f'images/{order()[4]}.jpg' in message
    assert 'not finite first: first.1;' in message
    assert '--skip-nonfinite N leaves out up to N such batches' in message
    assert stopped.value.everywhere
    assert all(torch.isfinite(value).all() for value in run.model.parameters())


class Spoil(Hook):
    """Weights that the step before has spoilt."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.last[1].weight.data[0, 0] = float('inf')


def test_names_spoilt_weights(tmp_path):
    run = toy.runner(toy.config(tmp_path, epochs=1))
    run.register_hook(Spoil())
    with pytest.raises(UserError, match='not finite first: last.1, whose weights are not finite'):
        run.train()


@MODELS.register_module('ToyOfNoLayer', force=True)
class OfNoLayer(toy.Toy):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(
            loss_box=super().forward(inputs, mode=mode)['loss'],
            loss_cls=torch.tensor(float('inf')),
        )


def test_names_the_loss_of_no_layer(tmp_path):
    cfg = toy.config(tmp_path, epochs=1)
    cfg['model'] = dict(type='ToyOfNoLayer')
    with pytest.raises(UserError, match='loss is inf .* no layer, but loss_cls;'):
        toy.runner(cfg).train()


def test_skips_as_many_as_allowed(tmp_path):
    """A batch that is left out leaves no trace, in the running means either."""
    bad = order()[5]
    run = toy.runner(toy.config(tmp_path, epochs=2, bad=[bad], skip_nonfinite=2))
    run.train()
    assert run.iter == 10
    assert all(torch.isfinite(value).all() for value in toy.weights(run).values())
    one_less = toy.config(tmp_path, epochs=2, bad=[bad], skip_nonfinite=1)
    with pytest.raises(UserError, match='1 such batches were left out before'):
        toy.runner(one_less).train()
