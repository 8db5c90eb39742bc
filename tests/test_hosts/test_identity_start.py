"""A gate that starts as the identity changes no bit of what a host computes, and learns at once."""

import copy
import warnings

import pytest
import torch
from host_cases import (
    CASES,
    GATES,
    each_host,
    entry,
    everywhere,
    gates,
    image,
    in_mode,
    randomise,
)
from torch import nn

from mmattn.hosts.decay import spare_identity_scales
from mmattn.hosts.identity import blend, identity_scales, signal
from mmattn.hosts.slots import find_type

FOREIGN = (
    dict(type='ContextBlock', ratio=1 / 4, fusion_types=('channel_mul',)),
    dict(type='NonLocal2d', reduction=2, zeros_init=False),
    dict(type='SimAM'),
)
# What starts as the identity by itself.
ZEROS = (
    dict(type='ContextBlock', ratio=1 / 4),
    dict(type='GeneralizedAttention', num_heads=2, attention_type='0010', kv_stride=2),
    dict(type='NonLocal2d', reduction=2),
)


def begun(case, entries, **kwargs):
    """The host with gates that start as the identity, and the bare one of the same weights."""
    model = randomise(case.build([dict(e, start='identity') for e in entries], **kwargs))
    bare = case.build(**kwargs)
    missing, _ = bare.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return model, bare


def outputs(model, training, x):
    torch.manual_seed(0)  # stochastic depth
    return in_mode(model, training)(x)


def same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def check_begins_as_bare(case, entries):
    """The model, and its outputs in training, which have the bare model's bits."""
    model, bare = begun(case, entries)
    scales = identity_scales(model)
    assert len(scales) == len(gates(model)) > 0
    for name, gate in gates(model).items():
        assert scales[f'{name}.identity_scale'].shape == (gate.in_channels,)
    x = image(32)
    with torch.no_grad():
        same_bits(outputs(model, False, x), outputs(bare, False, x))
    outs = outputs(model, True, x)
    with torch.no_grad():
        same_bits(outs, outputs(bare, True, x))
    return model, outs


def check_begins_and_learns(case, entries):
    """Of a gate that is the identity, only the scale has a gradient."""
    model, outs = check_begins_as_bare(case, entries)
    sum(out.square().mean() for out in outs).backward()
    for name, found in gates(model).items():
        assert found.identity_scale.grad.any(), name
        for key, parameter in found.named_parameters():
            if key != 'identity_scale':
                assert parameter.grad is not None and not parameter.grad.any(), (name, key)


@each_host
@pytest.mark.parametrize('first', range(0, len(GATES), 3))
def test_every_host_and_gate(case, first):
    """Every host has three positions or more: so every gate is in one of each host's."""
    check_begins_and_learns(case, everywhere(case, GATES[first:] + GATES[:first]))


@pytest.mark.slow
@each_host
@pytest.mark.parametrize('gate', GATES)
def test_every_host_gate_and_position(case, gate):
    check_begins_and_learns(case, everywhere(case, (gate,)))


@pytest.mark.slow
@each_host
@pytest.mark.parametrize('gate', GATES)
def test_alone_in_each_position(case, gate):
    for position in case.positions:
        check_begins_as_bare(case, [entry(gate, position)])


@pytest.mark.parametrize('gate', GATES)
def test_the_gate_learns_from_the_second_step(gate):
    case = CASES['mmpretrain-resnet18']
    model = randomise(case.build([dict(entry(gate, 'after_conv2'), start='identity')]))
    in_mode(model, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(image(32))).backward()
        learns = [
            p.grad.any()
            for found in gates(model).values()
            for name, p in found.named_parameters()
            if name != 'identity_scale'
        ]
        assert any(learns) == (step == 1) or not learns
        optimizer.step()


@pytest.mark.parametrize('cfg', FOREIGN, ids=lambda cfg: cfg['type'])
def test_foreign_gates(cfg):
    case = CASES['mmdet-resnet18']
    type_ = dict(cfg)['type']
    plugin = dict(cfg=dict(cfg), position='after_conv2')
    plain = case.build([plugin])
    model, bare = begun(case, [plugin])
    assert {k for k in model.state_dict() if 'identity_scale' not in k} == set(plain.state_dict())
    cls = find_type(type_)
    found = [m for m in model.modules() if isinstance(m, cls)]
    assert len(found) == 8
    for training in (False, True):
        same_bits(outputs(model, training, image(32)), outputs(bare, training, image(32)))
    sum(out.square().mean() for out in outputs(model, True, image(32))).backward()
    assert all(m.identity_scale.grad.any() for m in found)
    assert all(p.grad is not None for m in found for p in m.parameters())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_every_bit_behind_a_foreign_gate(dtype):
    """Also where x is -0.0, and whichever of the two is larger: x + 0 (y - x) would be 0.0."""
    x = torch.tensor([-0.0, 0.0, -1.5, 2.0, 1e-30], dtype=dtype).view(1, 5, 1, 1).expand(1, 5, 3, 1)
    y = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype).view(1, 1, 3, 1) + x
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    for scale in (torch.zeros(5), torch.zeros(1), -torch.zeros(5)):
        found = blend(x, y, scale)
        assert torch.equal(found.view(bits), x.contiguous().view(bits))
    torch.testing.assert_close(blend(x, y, torch.full((5,), 0.25)), x + 0.25 * (y - x))


@pytest.mark.parametrize('cfg', ZEROS, ids=lambda cfg: cfg['type'])
def test_what_is_the_identity_already(cfg):
    """Two factors of 0, one behind the other, would have no gradient for good."""
    plugin = dict(cfg=dict(cfg), position='after_conv2', start='identity')
    with pytest.raises(ValueError, match='starts as the identity by itself'):
        CASES['mmdet-resnet18'].build([plugin])


@pytest.mark.parametrize('start', ['identity', 'identity-scalar'])
def test_between_identity_and_gate(start):
    """y = x + a (g(x) - x): at a = 1 the model is the one that starts as the paper has it."""
    case = CASES['mmpretrain-resnet18']
    plugin = entry('SE', 'after_conv2')
    model = case.build([dict(plugin, start=start)])
    plain = case.build([plugin])
    plain.load_state_dict(model.state_dict(), strict=False)
    for scale in identity_scales(model).values():
        assert not scale.any()
        assert scale.dim() == 1 and (scale.numel() == 1) == (start == 'identity-scalar')
        nn.init.ones_(scale)
    for ours, theirs in zip(
        outputs(model, False, image(32)), outputs(plain, False, image(32)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    se = next(iter(gates(model).values()))
    nn.init.constant_(se.identity_scale, 0.25)
    x = torch.randn(2, se.in_channels, 4, 6)
    with torch.no_grad():
        plain = copy.deepcopy(se)
        plain.identity_scale = None
        torch.testing.assert_close(se(x), x + 0.25 * (plain(x) - x))


def test_as_a_default_of_the_host():
    case = CASES['mmseg-resnet18']
    plugins = [entry('SE', 'after_conv1'), dict(entry('ECA', 'after_conv2'), start=None)]
    model = case.build(plugins, plugin_defaults=dict(start='identity'))
    assert len(identity_scales(model)) == 8
    for wrong in ('identidy', True, 1, 'None'):
        with pytest.raises(ValueError, match="allowed: None, 'identity', 'identity-scalar'"):
            case.build([dict(entry('SE', 'after_conv1'), start=wrong)])


def test_stays_zero_through_the_hosts_initialisation():
    for name in ('mmdet-resnet50', 'mmpretrain-mobilenet'):
        case = CASES[name]
        model = case.build([dict(entry('CAT', p), start='identity') for p in case.positions])
        model.init_weights()
        assert not any(scale.any() for scale in identity_scales(model).values())


@each_host
def test_refused_in_a_frozen_stage(case):
    last = [dict(entry('SE', 'after_stage'), start='identity')]
    frozen = dict(frozen_stages=1)
    with pytest.raises(ValueError, match='SE.* in a frozen stage, .*identity_scale would stay 0'):
        case.build(last, **frozen)
    stages = 7 if 'Mobile' in case.host else 3 if 'Shuffle' in case.host else 4
    learning = (False,) + (True,) * (stages - 1)
    for allowed in (dict(last[0], stages=learning), dict(last[0], freeze=False)):
        model = in_mode(case.build([allowed], **frozen), True)
        assert all(scale.requires_grad for scale in identity_scales(model).values())


def warned(make):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        made = make()
    texts = [str(w.message) for w in found if w.category is UserWarning]
    return made, [text for text in texts if 'plugin' in text]


def test_warned_of_in_a_frozen_stage():
    case = CASES['mmdet-resnet18']
    plugins = [entry('SE', 'after_conv1'), entry('ECA', 'after_conv2')]
    _, texts = warned(lambda: case.build(plugins, frozen_stages=1))
    assert len(texts) == 1 and 'frozen stage' in texts[0]
    assert "'SE' at after_conv1 (output over input 0.5" in texts[0]
    spared = [dict(plugin, freeze=False) for plugin in plugins]
    for entries, kwargs in ((plugins, {}), (spared, dict(frozen_stages=1))):
        assert not warned(lambda e=entries, k=kwargs: case.build(e, **k))[1]


@pytest.mark.parametrize('name', ['mmdet-resnet18', 'mmpretrain-resnet18', 'mmpretrain-mobilenet'])
def test_warned_of_fresh_on_pretrained_weights(name, tmp_path):
    case, file = CASES[name], tmp_path / 'weights.pth'
    plugins = [entry('SE', case.positions[1])]
    load = dict(init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    torch.save(case.build().state_dict(), file)
    _, texts = warned(lambda: case.build(plugins, **load).init_weights())
    assert len(texts) == 1 and 'fresh on pretrained weights' in texts[0]
    assert "start='identity'" in texts[0]
    begins = [dict(plugins[0], start='identity')]
    assert not warned(lambda: case.build(begins, **load).init_weights())[1]
    assert not warned(lambda: case.build(plugins).init_weights())[1]
    torch.save(case.build(plugins).state_dict(), file)
    assert not warned(lambda: case.build(plugins, **load).init_weights())[1]


def test_signal():
    """What fresh gates do to the signal, as issues of public repositories tell of."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cat, se = (find_type(name)(64) for name in ('CAT', 'SE'))
    assert signal(se, 64) == pytest.approx(0.5, abs=0.05)
    assert signal(cat, 64) == pytest.approx(1.06, abs=0.1)
    assert signal(nn.Identity(), 64) == 1


def test_no_weight_decay():
    case = CASES['mmpretrain-resnet18']
    model = case.build([dict(entry('SE', 'after_conv1'), start='identity')])
    model.my_identity_scale_too = nn.Parameter(torch.ones(3))  # not by a part of its name
    scales = identity_scales(model)
    assert len(scales) == 8
    for groups in (
        model.parameters(),
        [dict(params=[p], weight_decay=0.1) for p in model.parameters()],
    ):
        optimizer = torch.optim.AdamW(groups, weight_decay=0.1, lr=0.0625)
        before = copy.deepcopy(optimizer.param_groups[0])
        assert spare_identity_scales(model, optimizer) == 8
        assert spare_identity_scales(model, optimizer) == 0
        ids, decays = {id(p) for p in scales.values()}, {}
        for group in optimizer.param_groups:
            assert {k: v for k, v in group.items() if k not in ('params', 'weight_decay')} == {
                k: v for k, v in before.items() if k not in ('params', 'weight_decay')
            }
            decays.update({id(p): group['weight_decay'] for p in group['params']})
        assert decays == {id(p): 0.0 if id(p) in ids else 0.1 for p in model.parameters()}
