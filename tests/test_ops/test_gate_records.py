"""What gates tell of themselves is what their passes computed, by kernels and by equations."""

import copy
import threading

import pytest
import torch
from needs import needs_kernels
from torch import nn

import mmattn.attention as attention
from mmattn import ops
from mmattn.ops import reference

SHAPE = N, C, H, W = 2, 8, 7, 5
GATES = {
    'SE': {},
    'ECA': {},
    'CBAM': {},
    'CoordAttention': {},
    'CAT': {},
    'CAT-algorithm': dict(formula='algorithm'),
    'CAT-few': dict(pools=('avg', 'ent')),
    'CAT-spatial-channel': dict(arrangement='spatial-channel'),
    'DRTAM': {},
    'DRTAM-single': dict(dual=False),
}


def made(name):
    torch.manual_seed(0)
    gate = getattr(attention, name.partition('-')[0])(C, **GATES[name]).double()
    with torch.no_grad():
        for p in gate.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return gate


def told(gate, x):
    with ops.record() as records:
        y = gate(x)
    (record,) = records
    assert record.gate is gate
    return y, record


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(SHAPE, dtype=torch.float64)


@needs_kernels
@pytest.mark.parametrize('layout', (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize('name', GATES)
def test_kernels_tell_what_equations_tell(name, layout, x):
    gate = made(name)
    written = copy.deepcopy(gate)
    written.impl = 'reference'
    y, fast = told(gate, x.to(memory_format=layout))
    _, exact = told(written, x)
    assert fast.scale == exact.scale and fast.factors.keys() == exact.factors.keys()
    for key, factor in exact.factors.items():
        torch.testing.assert_close(fast.factors[key], factor)
    pools = dict(exact.pools)
    if 'C_A' in fast.pools:  # CAT's are told as they are used
        for axis in 'cs':
            if f'{axis}_ent' in pools:
                pools[f'{axis}_ent'] = reference.min_max(pools[f'{axis}_ent'], 0, 1)
        pools['s_neg'] = -pools.pop('s_avg')
        stats = [pools.get(f'c_{pool}') for pool in ('avg', 'max', 'ent')]
        stacked = torch.stack([t for t in stats if t is not None], 1)
        pools['C_A'] = torch.einsum('npc,p->nc', gate.mlp(stacked), gate.channel_factors)
        stats = [pools.get(f's_{pool}') for pool in ('neg', 'max', 'ent')]
        maps = torch.einsum(
            'nphw,p->nhw', torch.stack([t for t in stats if t is not None], 1), gate.spatial_factors
        )
        pools['S_A'] = reference.spatial_conv(maps[:, None], gate.conv.weight).sigmoid()
    assert fast.pools.keys() == pools.keys()
    for key, pool in pools.items():
        torch.testing.assert_close(
            fast.pools[key], pool, msg=lambda text, key=key: f'{key}: {text}'
        )
        assert not fast.pools[key].requires_grad
    torch.testing.assert_close(x * fast.attention(), y)


@pytest.mark.parametrize('impl', (None, 'reference'))
@pytest.mark.parametrize('name', GATES)
def test_the_attention_is_what_the_map_was_multiplied_by(name, impl, x):
    gate = made(name)
    gate.impl = impl
    y, record = told(gate, x)
    torch.testing.assert_close(x * record.attention(), y)
    gate.identity_scale = nn.Parameter(torch.linspace(-0.5, 1.5, C).double())
    y, record = told(gate, x)
    assert torch.equal(record.identity_scale, gate.identity_scale)
    torch.testing.assert_close(x * record.attention(), y)


def test_the_two_maps_of_drtam(x):
    _, record = told(made('DRTAM'), x)
    first, second = record.rank1()
    assert first.shape == second.shape == SHAPE
    torch.testing.assert_close(record.attention(), first + (1 - first) * second)
    _, record = told(made('DRTAM-single'), x)
    assert record.rank1()[1] is None


def test_each_gate_of_a_network_has_its_own(x):
    net = nn.Sequential(made('SE'), nn.ReLU(), made('CBAM'), made('SE'))
    with ops.record() as records:
        net(x)
        net(x)
    assert [r.gate for r in records] == 2 * [net[0], net[2], net[3]]
    before = len(records)
    net(x)  # nobody listens any longer
    assert len(records) == before


def test_other_threads_tell_nothing(x):
    with ops.record() as records:
        thread = threading.Thread(target=made('CAT'), args=(x,))
        thread.start()
        thread.join()
    assert not records


def test_ops_outside_of_gates(x):
    with ops.record() as records:
        ops.strip_pool(x, channel=True)
        ops.sum_scale(x, torch.rand(N, C).double(), torch.rand(N, H, W).double())
    pools, scale = records
    assert pools.gate is None and list(pools.pools) == ['ch', 'cw', 'hw']
    with pytest.raises(ValueError, match='no factors were recorded'):
        pools.attention()
    assert scale.attention().shape == SHAPE


@needs_kernels
def test_compiled_code_tells_nothing(x):
    torch._dynamo.reset()
    gate = made('CBAM').eval()
    compiled = torch.compile(gate, backend='eager', fullgraph=True)
    with ops.record() as records:
        y = compiled(x)
    assert not records
    torch.testing.assert_close(y, gate(x))


@needs_kernels
def test_nothing_is_told_of_pools_that_no_kernel_computed(x, monkeypatch):
    """The equations stood in for an operator: what it keeps for backward has no values."""
    from mmattn.ops import dispatch

    monkeypatch.setattr(dispatch, 'passes', lambda op, x: False)
    y, record = told(made('DRTAM'), x)
    # The equations told it themselves.
    torch.testing.assert_close(x * record.attention(), y)
    _, record = told(made('SE'), x.repeat(1, 1, 40, 50))
    assert not record.pools and list(record.factors) == ['c']
