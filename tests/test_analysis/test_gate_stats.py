"""`GateStatsHook`: its numbers, that it changes nothing, and what it costs."""

import statistics
import time

import pytest
import torch
from mmengine.registry import HOOKS
from torch import nn

from mmattn.attention import CAT, ECA, SE


class Runner:
    """As much of mmengine's runner as the hook needs, with a training of its own."""

    def __init__(self, model, batches):
        self.model, self.batches, self.iter, self.written, self.warnings = model, batches, 0, [], []
        self.visualizer = self.logger = self
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def add_scalars(self, scalars, step):
        self.written.append((step, scalars))

    def warning(self, text):
        self.warnings.append(text)

    def step(self, hook, x):
        if hook is not None:
            hook.before_train_iter(self, self.iter)
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()
        if hook is not None:
            hook.after_train_iter(self, self.iter)
        self.iter += 1

    def train(self, hook=None):
        if hook is not None:
            hook.before_train(self)
        for x in self.batches:
            self.step(hook, x)
        return self


class Foreign(nn.Module):
    def forward(self, x):
        return 3 * x


class Net(nn.Sequential):
    def _plugin_modules(self):
        return [(None, module) for module in self if isinstance(module, Foreign)]


def net():
    torch.manual_seed(1)
    return Net(nn.Conv2d(3, 16, 3), SE(16, 4), nn.ReLU(), CAT(16, 4), Foreign(), ECA(16))


@pytest.fixture
def batches():
    return [torch.randn(4, 3, 12, 10) for _ in range(6)]


def hook(interval=None):
    given = {} if interval is None else dict(interval=interval)
    return HOOKS.build(dict(type='GateStatsHook', **given))


def test_the_numbers_are_the_gates(batches):
    runner, model = Runner(net(), batches[:1]), net()
    with torch.no_grad():
        model[5].conv.weight.mul_(1e3)  # its sigmoids are all but 0 or 1
    runner.model.load_state_dict(model.state_dict())
    runner.train(hook(1))
    with torch.no_grad():
        x = model[0](batches[0])
        y = model[1](x)
        g, after = (y / x)[0], model[2](y)
        c = (model[3](after) / after)[0][after[0] > 1e-4]
        z = model[4](model[3](after))
        e = (model[5](z) / z)[0][z[0] > 1e-4]
    ((step, found),) = runner.written
    assert step == 1
    for name, values, most in (('1', g, 1), ('3', c, 2), ('5', e, 1)):
        assert found[f'gates/{name}/mean'] == pytest.approx(float(values.mean()), rel=1e-3)
        spread = float(values.std(correction=0))
        assert found[f'gates/{name}/spread'] == pytest.approx(spread, rel=1e-2, abs=1e-5)
        share = ((values < 0.05 * most) | (values > 0.95 * most)).float().mean()
        assert found[f'gates/{name}/saturated'] == pytest.approx(float(share), abs=1e-2)
    assert found['gates/5/saturated'] > 0.5 and found['gates/1/saturated'] == 0
    assert found['gates/4/mean'] == pytest.approx(3) and 'gates/4/saturated' not in found


def test_the_training_is_the_same_to_the_last_bit(batches):
    bare, listened = Runner(net(), batches).train(), Runner(net(), batches).train(hook(2))
    for a, b in zip(bare.model.parameters(), listened.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [step for step, _ in listened.written] == [2, 4, 6]
    assert not any(module._forward_hooks for module in listened.model.modules())


def test_who_cannot_be_heard_is_said_once(batches):
    class Deaf(Net):
        def forward(self, x):
            return self[0](x)

    runner = Runner(Deaf(*net()), batches).train(hook(1))
    assert runner.warnings == ['GateStatsHook hears no gate: is the model compiled?']
    with pytest.raises(ValueError, match='the model has no gates'):
        hook(1).before_train(Runner(nn.Conv2d(3, 3, 1), []))
    with pytest.raises(ValueError, match='interval must be an integer >= 1, got True'):
        hook(True)


@pytest.mark.slow
def test_it_costs_less_than_a_hundredth_of_a_step(network):
    """At the default interval, on a network of which the gates are a large part."""
    _, model = network('digits/resnet18-cat-r4_digits-in1k.py')
    whole = nn.Sequential()
    whole.backbone = model.backbone
    runner = Runner(whole.train(), [])
    runner.model.forward = lambda x: whole.backbone(x)[-1]
    x, listening = torch.randn(32, 3, 48, 48), hook(1)
    listening.before_train(runner)
    times = {None: [], listening: []}
    for _ in range(25):
        for one, found in times.items():
            began = time.process_time()
            runner.step(one, x)
            found.append(time.process_time() - began)
    bare, listened = (statistics.median(found[3:]) for found in times.values())
    assert (listened - bare) / bare / hook().interval < 0.01
    print(f'\na step {1e3 * bare:.1f} ms, listened to {1e3 * listened:.1f} ms')
