"""`frozen_stages`, `norm_eval` and `norm_cfg` reach the gates as their entries say."""

import copy

import pytest
import torch
from host_cases import CASES, each_host, entry, everywhere, gates, image, in_mode, randomise
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMED = ('CBAM', 'CoordAttention', 'DRTAM')


def stage_of(name):
    """The stage a module lies in, counted from 1; 0 is the stem."""
    parts = name.split('.')
    if parts[0] == 'layers':
        return int(parts[1]) + 1
    return int(parts[0].removeprefix('layer')) if parts[0].startswith('layer') else 0


@each_host
@pytest.mark.parametrize('frozen', [-1, 0, 2])
def test_frozen_stages(case, frozen):
    model = randomise(case.build(everywhere(case), frozen_stages=frozen))
    model.train()
    assert {stage_of(name) for name in gates(model)} >= {0, 1, 2, 3}
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    for name, gate in gates(model).items():
        learns = stage_of(name) > frozen
        assert all(p.requires_grad is learns for p in gate.parameters()), name
        assert all(m.training is learns for m in gate.modules()), name
    with torch.no_grad():
        model(image(32))
    for name, gate in gates(model).items():
        for key, value in gate.named_buffers():
            if key.endswith('running_mean'):
                still = torch.equal(value, buffers[f'{name}.{key}'])
                assert still is (stage_of(name) <= frozen), f'{name}.{key}'


@pytest.mark.parametrize('name', ['mmpretrain-resnet18', 'mmdet-resnet18', 'mmseg-resnet18-v1c'])
def test_frozen_from_the_start(name):
    """Upstream's ResNets freeze in their constructor, before anyone calls `train`."""
    case = CASES[name]
    model = case.build(everywhere(case), frozen_stages=1)
    for name, gate in gates(model).items():
        assert all(p.requires_grad is (stage_of(name) > 1) for p in gate.parameters())


@each_host
@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval(case, norm_eval):
    model = case.build(everywhere(case, NORMED), norm_eval=norm_eval)
    model.train()
    for gate in gates(model).values():
        norms = [m for m in gate.modules() if isinstance(m, _BatchNorm)]
        assert gate.training and norms
        assert all(norm.training is not norm_eval for norm in norms)
    model.train(False)
    assert not any(m.training for m in model.modules())


def norms(model):
    """The batch norms of the gates and those of the network, by their names."""
    theirs = tuple(f'{name}.' for name in gates(model))
    found = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    ours = {name: m for name, m in found.items() if name.startswith(theirs)}
    return ours, {name: m for name, m in found.items() if name not in ours}


@each_host
@pytest.mark.parametrize('host', [True, False], ids=['host sleeps', 'host trains'])
@pytest.mark.parametrize('own', ['host', True, False], ids='gates {}'.format)
def test_norms_of_gates_sleep_as_their_entries_say(case, host, own):
    """Those of frozen stages sleep whatever is said; statistics move where norms do not sleep."""
    model = case.build(
        everywhere(case, NORMED),
        norm_eval=host,
        frozen_stages=1,
        plugin_defaults=dict(norm_eval=own),
    )
    model.train()
    asleep = host if own == 'host' else own
    ours, theirs = norms(model)
    assert ours and theirs
    before = {name: norm.running_var.clone() for name, norm in ours.items()}
    with torch.no_grad():
        model(image(32))
    for name, norm in ours.items():
        trains = not asleep and stage_of(name) > 1
        assert norm.training is trains, name
        assert torch.equal(norm.running_var, before[name]) is not trains, name
    for name, norm in theirs.items():
        if stage_of(name) > 1:
            assert norm.training is not host, name
    assert model.norm_eval is host
    model.train(False)
    assert not any(m.training for m in model.modules())


def test_an_entry_outdoes_the_defaults():
    case = CASES['mmdet-resnet18']
    defaults = dict(norm_eval=False, norm_cfg='host', freeze=False)
    plugins = [
        entry('CBAM', 'after_conv1'),
        dict(entry('CBAM', 'after_conv2'), norm_eval='host', norm_cfg=None, freeze=True),
    ]
    model = case.build(
        plugins,
        norm_eval=True,
        frozen_stages=1,
        norm_cfg=dict(type='SyncBN'),
        plugin_defaults=defaults,
    )
    model.train()
    for name, gate in gates(model).items():
        first = not name.endswith('2')
        assert isinstance(gate.norm, nn.SyncBatchNorm) is first, name
        assert gate.norm.training is first, name
        assert gate.conv.weight.requires_grad is (first or stage_of(name) > 1), name
    assert len(gates(model)) == 16


@each_host
@pytest.mark.parametrize('frozen', [0, 2])
def test_gates_of_frozen_stages_may_learn(case, frozen):
    model = case.build(everywhere(case), frozen_stages=frozen, plugin_defaults=dict(freeze=False))
    if hasattr(model, 'res_layers'):  # which freezes in its constructor
        assert all(p.requires_grad for gate in gates(model).values() for p in gate.parameters())
    spared = next(iter(gates(model).values()))
    first = next(spared.parameters()).requires_grad_(False)  # somebody's own wish
    model.train()
    for name, gate in gates(model).items():
        assert all(m.training for m in gate.modules()), name
        assert all(p.requires_grad is (p is not first) for p in gate.parameters()), name
    sum(out.square().mean() for out in model(image())).backward()
    within = tuple(f'{name}.' for name in gates(model))
    for name, parameter in model.named_parameters():
        # MobileNetV2's conv2 is its last layer.
        if stage_of(name) <= frozen and not name.startswith('conv2'):
            learns = name.startswith(within) and parameter is not first
            assert (parameter.grad is not None) is learns, name


KINDS = {
    'BN': (dict(type='BN', momentum=0.3), _BatchNorm),
    'SyncBN': (dict(type='SyncBN'), nn.SyncBatchNorm),
    'GN': (dict(type='GN', num_groups=4), nn.GroupNorm),
}


@each_host
@pytest.mark.parametrize('kind', KINDS)
def test_norms_of_gates_are_the_hosts(case, kind):
    cfg, expected = KINDS[kind]
    if 'ShuffleNet' in case.host and kind == 'GN':
        cfg = dict(cfg, num_groups=2)
    plugins = everywhere(case, NORMED)
    model = case.build(plugins, norm_cfg=cfg, plugin_defaults=dict(norm_cfg='host'))
    kinds = (_BatchNorm, nn.GroupNorm)
    found = [m for gate in gates(model).values() for m in gate.modules() if isinstance(m, kinds)]
    assert found and all(isinstance(norm, expected) for norm in found)
    # And by default they are not.
    own = norms(case.build(plugins, norm_cfg=cfg))[0]
    assert own and not any(isinstance(norm, nn.SyncBatchNorm) for norm in own.values())


def test_converted_norms_keep_what_they_had():
    """SyncBN computes what BN does in one process; learnt, frozen, momentum, values stay."""
    case = CASES['mmseg-resnet50']
    own = randomise(case.build(everywhere(case, NORMED)))
    synced = case.build(
        everywhere(case, NORMED),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        plugin_defaults=dict(norm_cfg='host'),
    )
    assert own.state_dict().keys() == synced.state_dict().keys()
    synced.load_state_dict(own.state_dict())
    with torch.no_grad():
        for mode in (True, False):
            for a, b in zip(
                in_mode(own, mode)(image()), in_mode(synced, mode)(image()), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for name, norm in norms(synced)[0].items():
        before = own.get_submodule(name)
        assert (norm.momentum, norm.eps) == (before.momentum, before.eps), name
    still = case.build(
        everywhere(case, NORMED),
        norm_cfg=dict(type='SyncBN', requires_grad=False),
        plugin_defaults=dict(norm_cfg='host'),
    )
    assert not any(p.requires_grad for norm in norms(still)[0].values() for p in norm.parameters())
    assert any(p.requires_grad for gate in gates(still).values() for p in gate.parameters())


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_group_norm_everywhere(scope):
    """Upstream's own test of ResNet-50 with group norm, with gates: no batch norm is left."""
    case = CASES[f'{scope}-resnet50']
    cfg = dict(type='GN', num_groups=8, requires_grad=True)
    model = case.build(everywhere(case), norm_cfg=cfg, plugin_defaults=dict(norm_cfg='host'))
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    groups = {m.num_groups for g in gates(model).values() for m in g.modules() if is_group(m)}
    assert groups == {1, 8}  # one channel has one group
    copied = copy.deepcopy(model)
    outs = in_mode(model, True)(image())
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad is not None for gate in gates(model).values() for p in gate.parameters())
    torch.testing.assert_close(in_mode(copied, True)(image()), outs)


def is_group(module):
    return isinstance(module, nn.GroupNorm)


def test_a_norm_that_gates_cannot_have():
    case = CASES['mmdet-resnet18']
    refused = dict(norm_cfg=dict(type='IN'), plugin_defaults=dict(norm_cfg='host'))
    with pytest.raises(ValueError, match="plugin 'CBAM' at after_conv2: .*'IN'.* BN, SyncBN, GN"):
        case.build([entry('CBAM', 'after_conv2')], **refused)
    assert gates(case.build([entry('SE', 'after_conv2')], **refused))  # has none
