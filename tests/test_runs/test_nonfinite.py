"""A loss that is not finite is refused before it reaches the weights, in words."""

import re
import warnings

import pytest
import torch
import toy
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from torch import nn

from mmattn.runs import nonfinite
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


def steep(folder, **more):
    return dict(toy.config(folder, **more), model=dict(type='ToySteep'))


def test_gradient_under_a_finite_loss(tmp_path):
    bad = order()[5]  # in the third batch
    run = toy.runner(steep(tmp_path, epochs=2, bad=[bad]))
    with pytest.raises(UserError) as stopped, warnings.catch_warnings():
        warnings.simplefilter('error')  # schedulers ask whose step it is
        run.train()
    message = str(stopped.value)
    assert re.match(r'a gradient is not finite at iteration 3 \(loss \d\.\d+, ', message), message
    assert ', learning rate 0.0' in message
    # The batch norm after it is not concerned.
    assert 'seen from the loss, first those of first.bias, first.weight; images: ' in message
    assert f'images/{bad}.jpg' in message and f'images/{order()[4]}.jpg' in message
    assert message.endswith('; --skip-nonfinite N leaves out up to N such batches')
    assert stopped.value.everywhere
    assert all(torch.isfinite(value).all() for value in run.model.parameters())


def test_a_gradient_that_is_skipped_leaves_no_trace(tmp_path):
    """The training ends as if the batch had not been there."""
    bad = order()[9]  # in the last batch

    def state(**more):
        run = toy.runner(steep(tmp_path, epochs=1, **more))
        run.train()
        return toy.weights(run), run.optim_wrapper.optimizer.state_dict()['state']

    skipped, momenta = state(bad=[bad], skip_nonfinite=1)
    cfg = steep(tmp_path, epochs=1)
    cfg['train_dataloader']['dataset'].update(size=10)
    run, seen = toy.runner(cfg), []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            buffers = runner.optim_wrapper.optimizer.state_dict()['state']
            buffers = {key: value['momentum_buffer'].clone() for key, value in buffers.items()}
            seen.append((toy.weights(runner), buffers))

    run.register_hook(Look())
    run.train()
    expected, buffers = seen[4]  # before the last batch
    assert toy.same(skipped, expected)
    assert all(torch.equal(momenta[key]['momentum_buffer'], buffers[key]) for key in buffers)


@pytest.mark.parametrize(
    'options, count',
    [(dict(clip_grad=dict(max_norm=1)), 2), (dict(accumulative_counts=5), 10)],
    ids=['clipped', 'accumulated'],
)
def test_gradients_that_are_clipped_or_accumulated(tmp_path, options, count):
    """Clipping does not hide them; of accumulated ones any batch may be the cause."""
    cfg = steep(tmp_path, epochs=1, bad=[order()[5]])
    cfg['optim_wrapper'].update(options)
    with pytest.raises(UserError, match='a gradient is not finite') as stopped:
        toy.runner(cfg).train()
    more = f' and {count - 4} more, see the log;' if count > 4 else ';'
    assert more in str(stopped.value).split('images: ')[1]
    assert f'iteration {5 if count > 4 else 3} ' in str(stopped.value)


@OPTIM_WRAPPERS.register_module('ToyScaling', force=True)
class Scaling(OptimWrapper):
    """As mmengine's for mixed precision, which lowers its scale after infinities."""

    loss_scaler = object()

    def step(self, **options):
        self.optimizer.zero_grad()


def test_gradients_of_a_scaled_loss_are_left_to_the_scaler(tmp_path):
    cfg = steep(tmp_path, epochs=1, bad=[order()[5]])
    cfg['optim_wrapper']['type'] = 'ToyScaling'
    toy.runner(cfg).train()


@pytest.mark.parametrize('spared', [False, True])
def test_a_scaler_that_no_scale_helps(tmp_path, monkeypatch, spared):
    """PyTorch's own, which would skip each step of the training without a word."""

    class Halving(Scaling):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**-21)

        def scale_loss(self, loss):
            return self.loss_scaler.scale(super().scale_loss(loss))

        def step(self, **options):
            self.loss_scaler.step(self.optimizer)
            self.loss_scaler.update()

    monkeypatch.setitem(OPTIM_WRAPPERS.module_dict, 'ToyScaling', Halving)
    bad = order()[: 2 if spared else 12]  # one batch is two images
    cfg = steep(tmp_path, epochs=1, bad=bad)
    cfg['optim_wrapper']['type'] = 'ToyScaling'
    if spared:
        toy.runner(cfg).train()
        return
    with pytest.raises(UserError, match='however little the loss is scaled .5.96e-08 by now'):
        toy.runner(cfg).train()


def test_large_gradients_are_no_infinite_ones(tmp_path):
    """Their norm is one in single precision."""
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(0))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 1e30), torch.zeros(0)
    assert not torch.isfinite(nonfinite._norms(parameters)).all()
    assert nonfinite._every_finite(parameters)
    for value in (torch.nan, torch.inf, -torch.inf):
        parameters[0].grad = torch.tensor([1.0, value, 1.0])
        assert not torch.isfinite(nonfinite._norms(parameters)).all()
        assert not nonfinite._every_finite(parameters)
    sparse = nn.Embedding(4, 2, sparse=True)
    (sparse(torch.tensor([1, 1])) * torch.inf).sum().backward()
    assert not torch.isfinite(nonfinite._norms(sparse.parameters())).all()


def test_the_count_survives_a_resumption(tmp_path):
    # Nothing else is to grow until it is not finite.
    slow = dict(optimizer=dict(type='SGD', lr=1e-4))
    given = dict(bad=[order()[5]], skip_nonfinite=2, optim_wrapper=slow)  # once an epoch
    toy.runner(toy.config(tmp_path, epochs=1, **given)).train()
    toy.runner(toy.config(tmp_path, epochs=2, resume=True, **given)).train()
    again = toy.config(tmp_path, epochs=3, resume=True, **given)
    with pytest.raises(UserError, match='2 such batches were left out before'):
        toy.runner(again).train()
    toy.runner(dict(again, skip_nonfinite=3, experiment_name='one_more')).train()
