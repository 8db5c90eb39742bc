"""What is recorded of a gate is what the kernels compute, and what the papers' equations say."""

import pytest
import torch
from torch import nn

import mmattn
from mmattn import ops
from mmattn.analysis.gates import gates_of, recording, select, stage_of
from mmattn.analysis.panels import panels, shown
from mmattn.attention import CAT, CBAM, DRTAM, ECA, SE, CoordAttention
from mmattn.ops import reference
from mmattn.ops.record import is_on as record_is_on

C = 16
GATES = [
    (SE, dict(reduction=4)),
    (ECA, dict()),
    (CBAM, dict(reduction=4)),
    (CoordAttention, dict()),
    (CAT, dict(reduction=4)),
    (CAT, dict(reduction=4, spatial_fusion='concat', formula='algorithm')),
    (CAT, dict(reduction=4, arrangement='channel-spatial')),
    (CAT, dict(reduction=4, arrangement='spatial', pools=('avg', 'max'))),
    (DRTAM, dict()),
    (DRTAM, dict(dual=False)),
    (DRTAM, dict(plane_max=True, chunk_max=True, num_channel_chunks=2)),
]
NAMES = [f'{cls.__name__}-{"-".join(map(str, kwargs.values()))}' for cls, kwargs in GATES]


def learnt(cls, **kwargs):
    gate = cls(C, **kwargs).eval()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_(0, 0.5)
    return gate


@pytest.fixture
def x():
    return torch.randn(2, C, 9, 7)


def record(gate, x):
    places = gates_of(nn.Sequential(gate))
    with torch.no_grad(), recording(places) as seen:
        gate(x)
    return seen['0']


@pytest.mark.parametrize('cls, kwargs', GATES, ids=NAMES)
def test_the_recorded_factors_give_what_the_kernels_give(cls, kwargs, x):
    if ops.backend_of(x) == 'reference':
        pytest.skip('no kernels here')
    gate = learnt(cls, **kwargs)
    with torch.no_grad():
        fast = gate(x)
    seen = record(gate, x)
    for sample in range(2):
        torch.testing.assert_close(
            x[sample] * seen.attention(sample), fast[sample], rtol=1e-5, atol=1e-5
        )
    ratio = fast.abs().sum(1) / x.abs().sum(1)
    torch.testing.assert_close(seen.ratio, ratio, rtol=1e-4, atol=1e-5)


def unit(entropies):
    """Eq. 4 of a batch; once more, it changes nothing."""
    return reference.min_max(entropies, 0, 1)


def test_cat_s_recorded_factors_are_those_of_its_operator(x):
    gate = learnt(CAT, reduction=4)
    layers = gate.mlp[0].weight, gate.mlp[2].weight
    interior = gate.channel_factors, gate.spatial_factors
    with torch.no_grad():
        _, c, s = ops.cat(
            x, gate.taps, layers, gate.conv.weight, interior, gate.exterior_logits.softmax(0),
            (True, True, True), (0, 1), True,
        )  # fmt: skip
        pools = ops.entropy_pool(x, gate.taps)
    seen = record(gate, x)
    torch.testing.assert_close(seen.factors, dict(c=c, s=s), rtol=1e-5, atol=1e-6)
    for axis, three in zip('cs', pools, strict=True):
        for name, pooled in zip(('avg', 'max', 'ent'), three, strict=True):
            key, sign = f'{axis}_{name}', 1
            if key == 's_avg' and 's_neg' in seen.pools:  # the operator takes it negated
                key, sign = 's_neg', -1
            told = sign * seen.pools[key]
            if name == 'ent':
                told, pooled = unit(told), unit(pooled)
            torch.testing.assert_close(told, pooled, rtol=1e-4, atol=1e-5)


def test_the_maps_are_those_of_the_equations(x):
    """CAT's three pools (eq. 2, 4, 6), written out here once more."""
    seen = record(learnt(CAT, reduction=4, gaussian_size=0), x)
    found = panels(seen, 1)
    p = x[1].softmax(0)
    found['s_ent'] = found['s_ent']._replace(
        values=unit(torch.tensor(found['s_ent'].values)[None])[0]
    )
    expected = dict(
        s_avg=x[1].mean(0),
        s_neg=-x[1].mean(0),
        s_max=x[1].amax(0),
        s_ent=unit(-(p * p.log()).sum(0)[None])[0],
        c_avg=x[1].mean((1, 2)),
        c_max=x[1].amax((1, 2)),
    )
    for key, values in expected.items():
        torch.testing.assert_close(torch.as_tensor(found[key].values), values, rtol=1e-4, atol=1e-5)
    whole = seen.factors['c'][1][:, None, None] + seen.factors['s'][1]
    torch.testing.assert_close(torch.tensor(found['gate'].values), whole.mean(0))


def test_drtam_s_two_maps_and_their_union(x):
    """Eq. 1 and 2: A_I = c o h o w, and A_I + (1 - A_I) A_C."""
    seen = record(learnt(DRTAM), x)
    f = {name: factor[0] for name, factor in seen.factors.items()}
    a_i = torch.einsum('c,h,w->chw', f['c'], f['h'], f['w'])
    a_c = torch.einsum('c,h,w->chw', f['c2'], f['h2'], f['w2'])
    found = panels(seen)
    for key, whole in (('a_i', a_i), ('a_c', a_c), ('gate', a_i + (1 - a_i) * a_c)):
        torch.testing.assert_close(torch.tensor(found[key].values), whole.mean(0))
    assert [panel.key for panel in shown(found, seen)] == [
        'd_c', 'd_h', 'd_w', 'a_i', 'a_c', 'gate',
    ]  # fmt: skip
    assert found['d_h'].values.shape == (9,) and found['d_w2'].values.shape == (7,)


@pytest.mark.parametrize(
    'cls, kwargs, keys',
    [
        (SE, {}, ['c_avg', 'c', 'ratio']),
        (ECA, {}, ['c_avg', 'c', 'ratio']),
        (CBAM, {}, ['c', 's_avg', 's_max', 's', 'gate']),
        (CoordAttention, {}, ['h', 'w', 'gate']),
        (CAT, {}, ['s_avg', 's_neg', 's_max', 's_ent', 's', 'c', 'gate']),
    ],
)
def test_each_gate_has_its_own_panels(cls, kwargs, keys, x):
    seen = record(learnt(cls, **kwargs), x)
    assert [panel.key for panel in shown(panels(seen), seen)] == keys


def test_recording_leaves_everything_as_it_was(x):
    gate = learnt(CAT, reduction=4, impl='fast')
    with pytest.raises(RuntimeError, match='in between'), recording(gates_of(nn.Sequential(gate))):
        raise RuntimeError('in between')
    assert gate.impl == 'fast' and not record_is_on()
    assert not gate._forward_hooks and not gate._forward_pre_hooks


@pytest.mark.parametrize(
    'name, stage',
    [
        ('backbone.layer3.0.cat', 3),
        ('backbone.after_stem.drtam', 0),
        ('backbone.layers.1.0.branch2.cat', 2),  # mmpretrain's ShuffleNetV2 counts from 0
        ('backbone.stages.0.1.se', 1),
        ('neck.gate', None),
        ('backbone.player2.cat', None),
    ],
)
def test_stages_by_name(name, stage):
    assert stage_of(name) == stage


def test_gates_of_a_host_and_their_selection(network):
    _, model = network('digits/resnet18-cat-r4_digits-in1k.py')
    places = gates_of(model)
    assert len(places) == 8
    assert [p.name for p in select(places)] == [f'backbone.layer{n}.0.cat' for n in (1, 2, 3, 4)]
    assert [p.name for p in select(places, stages=[4])] == ['backbone.layer4.0.cat']
    assert len(select(places, names=['*.layer2.*'])) == 2
    with pytest.raises(ValueError, match='no gate is in stage 7; gates are in the stages 1, 2'):
        select(places, stages=[7])
    with pytest.raises(ValueError, match='no gate is called nothing; there are: backbone.layer1.0'):
        select(places, names=['nothing'])
    with pytest.raises(ValueError, match='the model has no gates'):
        select([])


def test_a_foreign_gate_shows_what_it_let_through(network):
    plugin = dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv2')
    _, model = network(
        'digits/resnet18-cat-r4_digits-in1k.py', **{'model.backbone.plugins': [plugin]}
    )
    places = select(gates_of(model), stages=[2])
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad(), recording(places) as seen:
        model.extract_feat(x)
    (found,) = seen.values()
    assert found.kind == 'ContextBlock' and found.attention() is None
    assert [panel.key for panel in shown(panels(found), found)] == ['ratio']
    assert found.ratio.shape == (1, 6, 6)


@pytest.mark.parametrize('cls', [SE, CAT, DRTAM])
def test_an_identity_scale_is_part_of_the_gate(cls, x):
    gate = learnt(cls)
    gate.identity_scale = nn.Parameter(torch.rand(C))
    with torch.no_grad():
        y = gate(x)
    seen = record(gate, x)
    torch.testing.assert_close(seen.identity, gate.identity_scale.detach())
    torch.testing.assert_close(x[0] * seen.attention(), y[0], rtol=1e-4, atol=1e-5)


def test_a_plugged_gate_is_found_wherever_it_stands(x):
    model = nn.Sequential(nn.Conv2d(C, C, 3), nn.ReLU()).eval()
    mmattn.plug(model, nn.Hardswish(), at='0', channels=C)
    mmattn.plug(model, SE(C, 4), at='1', channels=C)
    kinds = [type(place.module).__name__ for place in gates_of(model)]
    assert kinds == ['Hardswish', 'SE']
    with torch.no_grad(), recording(gates_of(model)) as seen:
        model(x)
    assert [panel.key for one in seen.values() for panel in shown(panels(one), one)] == [
        'ratio', 'c_avg', 'c', 'ratio',
    ]  # fmt: skip


def test_what_the_others_pool(x):
    """Averages of SE and ECA, CBAM's of the map times its channels' factors (eq. 2 and 3)."""
    for cls in (SE, ECA, CBAM):
        found = panels(record(learnt(cls), x), 1)
        torch.testing.assert_close(torch.tensor(found['c_avg'].values), x[1].mean((1, 2)))
    scaled = x[1] * torch.tensor(found['c'].values)[:, None, None]
    for key, values in (('c_max', x[1].amax((1, 2))), ('s_avg', scaled.mean(0)),
                        ('s_max', scaled.amax(0))):  # fmt: skip
        torch.testing.assert_close(torch.tensor(found[key].values), values, rtol=1e-4, atol=1e-5)


def test_coordinate_attention_s_strips_make_its_gate(x):
    found = panels(record(learnt(CoordAttention), x), 1)
    h, w = torch.tensor(found['h'].values).T, torch.tensor(found['w'].values)
    assert h.shape == (C, 9) and w.shape == (C, 7)
    whole = h[:, :, None] * w[:, None, :]
    torch.testing.assert_close(torch.tensor(found['gate'].values), whole.mean(0))


def test_drtam_s_descriptors_are_those_of_the_equations(x):
    """Eq. 3 to 5, and 7 to 10, of the first module, written out here once more."""
    gate = learnt(DRTAM)
    found = panels(record(gate, x), 1)
    ch, cw, hw = x[1].mean(2), x[1].mean(1), x[1].mean(0)
    pooled = [
        part
        for cuts in zip(cw.chunk(3, 1), ch.chunk(3, 1), strict=True)
        for cut in cuts
        for part in (cut.mean(1), cut.amax(1))
    ]
    c = torch.stack(pooled, 1) @ gate.initial.channel_conv.weight[0]
    expected = dict(d_c=c)
    for key, conv, plane, side in (
        ('d_h', gate.initial.height_conv, hw, ch), ('d_w', gate.initial.width_conv, hw.T, cw),
    ):  # fmt: skip
        strips = [cut.mean(1) for cut in plane.chunk(3, 1)] + [side.mean(0), side.amax(0)]
        expected[key] = nn.functional.conv1d(torch.stack(strips), conv.weight, padding=1)[0]
    for key, values in expected.items():
        torch.testing.assert_close(
            torch.tensor(found[key].values), values.detach(), rtol=1e-4, atol=1e-5
        )
