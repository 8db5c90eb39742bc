"""What plugins start from: their own values in every host, unless their config says otherwise."""

import math

import pytest
import torch
from host_cases import CASES, GATES, each_host, entry, everywhere, gates, plugin_keys
from mmengine.model import BaseModule
from torch import nn


def layers(model):
    """The layers of the model's gates that hold a weight of their own to draw."""
    return [
        module
        for gate in gates(model).values()
        for module in gate.modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
    ]


def scaled(layers):
    """Their weights and biases, each over the bound 1 / sqrt(fan in) of PyTorch's default draw."""
    values = []
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                values.append(tensor.detach().flatten() / bound)
    return torch.cat(values)


@each_host
@pytest.mark.parametrize('kind', sorted({*GATES} - {'SimAM'}))  # it has no layers
def test_gates_start_as_pytorch_draws_them(case, kind):
    """Uniform on +- 1 / sqrt(fan in), by kind of layer: Kaiming's 7x7 would be twice as wide."""
    model = case.build(everywhere(case, (kind,)))
    model.init_weights()
    found = layers(model)
    assert found
    for type_ in {type(layer) for layer in found}:
        values = scaled([layer for layer in found if type(layer) is type_])
        assert values.abs().max() <= 1 + 1e-6
        # The sample's mean and standard deviation, to five of their own standard errors.
        error = 5 / math.sqrt(len(values))
        assert abs(values.mean()) < error / math.sqrt(3)
        assert abs(values.std() - 1 / math.sqrt(3)) < error / math.sqrt(15)


@each_host
def test_hosts_change_nothing_in_gates(case):
    model = case.build(everywhere(case))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    after = model.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert not changed & plugin_keys(model)
    # The CIFAR forms draw nothing unless they are told to.
    own = case.upstream in ('MobileNetV2_CIFAR', 'ShuffleNetV2_CIFAR')
    assert bool(changed) is not own


@each_host
def test_init_cfg_of_a_plugin(case):
    """In the plugin's config it draws that plugin's layers, and no others."""
    plugins = everywhere(case, ('CBAM',), each=2)
    for plugin in plugins[::2]:
        own = dict(type='Constant', layer='Conv2d', val=3)
        plugin['cfg'].update(init_cfg=own, postfix=f'_own_{plugin["position"]}')
    model = case.build(plugins)
    model.init_weights()
    found = gates(model)
    own = [gate for name, gate in found.items() if '_own_' in name]
    assert 2 * len(own) == len(found) > 0
    assert all((gate.conv.weight == 3).all() for gate in own)
    others = [gate.conv for gate in found.values() if gate not in own]
    assert scaled(others).abs().max() <= 1 + 1e-6


class Drawn(BaseModule):
    """A plugin of mmengine's kind: it takes `init_cfg` itself, and is drawn by `init_weights`."""

    _abbr_ = 'drawn'

    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x):
        return self.conv(x)


@each_host
def test_plugins_that_draw_themselves(case):
    init_cfg = dict(type='Constant', layer='Conv2d', val=0.5, bias=2)
    model = case.build([entry(Drawn, position, init_cfg=init_cfg) for position in case.positions])
    model.init_weights()
    convs = [m.conv for m in model.modules() if isinstance(m, Drawn)]
    assert convs
    assert all((c.weight == 0.5).all() and (c.bias == 2).all() for c in convs)


@each_host
def test_a_checkpoint_comes_last(case, tmp_path):
    """It brings what it has of gates; gates that it lacks keep their own start, drawn or not."""
    half = everywhere(case, ('CBAM',))
    whole = half + everywhere(case, ('SE',))
    saved = case.build(half).state_dict()
    saved = {key: torch.full_like(value, 7) for key, value in saved.items()}
    torch.save(saved, tmp_path / 'half.pth')
    init_cfg = [
        dict(type='Kaiming', layer=['Conv2d', 'Linear']),
        dict(type='Pretrained', checkpoint=str(tmp_path / 'half.pth')),
    ]
    model = case.build(whole, init_cfg=init_cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    after = model.state_dict()
    for key in plugin_keys(model):
        expected = saved[key] if key in saved else before[key]
        assert torch.equal(after[key], expected), key


def test_the_log_says_what_was_kept(tmp_path):
    """mmengine writes down how each weight was drawn; a gate's was not drawn by the host."""
    from mmengine.logging import MMLogger

    log = tmp_path / 'run.log'
    before = MMLogger._instance_dict.copy()
    MMLogger.get_instance('initialisation', log_file=str(log))
    model = BaseModule()
    model.backbone = CASES['mmpretrain-resnet18'].build([entry('CBAM', 'after_conv2')])
    model.init_weights()
    lines = log.read_text()
    MMLogger._instance_dict.clear()
    MMLogger._instance_dict.update(before)
    after = lines.split('backbone.layer1.0.cbam.conv.weight', 1)[1].split('backbone.', 1)[0]
    assert 'Kaiming' not in after and 'starts by itself' in after
    assert 'KaimingInit' in lines.split('backbone.conv1.weight', 1)[1].split('backbone.', 1)[0]


@each_host
def test_a_norm_that_starts_at_zero_does(case):
    """Hosts draw norms as well: to one."""
    model = case.build(
        [entry('CBAM', position, norm_weight=0) for position in case.positions],
        init_cfg=[dict(type='Constant', val=1, layer=['_BatchNorm'])],
    )
    model.init_weights()
    assert gates(model)
    assert all(gate.norm.weight.item() == 0 for gate in gates(model).values())


@each_host
def test_a_seed_gives_the_host_the_same_weights_with_any_gate(case):
    """Or runs with and without a gate would not pair by their seeds."""

    def host(plugins):
        torch.manual_seed(7)
        model = case.build(plugins)
        model.init_weights()
        following = torch.rand(3)  # as what is built next draws
        plugins = plugin_keys(model)
        return {k: v for k, v in model.state_dict().items() if k not in plugins}, following

    bare, after_bare = host(None)
    for kind in GATES:
        gated, after_gated = host(everywhere(case, (kind,)))
        assert bare.keys() == gated.keys()
        assert [key for key in bare if not torch.equal(bare[key], gated[key])] == [], kind
        assert torch.equal(after_bare, after_gated), kind


@each_host
def test_gates_of_a_seed_differ_from_each_other_and_from_other_seeds(case):
    def draw(seed):
        torch.manual_seed(seed)
        model = case.build(everywhere(case, ('SE',)))
        model.init_weights()
        return [layer.weight for layer in layers(model)]

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    alike = [
        (a, b)
        for i, a in enumerate(first)
        for b in first[i + 1 :]
        if a.shape == b.shape and torch.equal(a, b)
    ]
    assert not alike
