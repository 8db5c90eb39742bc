"""y = x + a (g(x) - x): the identity in part, of the six gates and of the scales."""

import copy

import pytest
import torch
from needs import needs_kernels
from torch import nn

import mmattn.attention as attention
from mmattn import ops

LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
GATES = {
    'SE': {},
    'ECA': {},
    'CBAM': {},
    'CBAM-no-norm': dict(norm=False),
    'CoordAttention': {},
    'CAT': {},
    'CAT-algorithm': dict(formula='algorithm'),
    'CAT-channel': dict(arrangement='channel'),
    'CAT-spatial': dict(arrangement='spatial'),
    'CAT-spatial-channel': dict(arrangement='spatial-channel'),
    'DRTAM': {},
    'DRTAM-single': dict(dual=False),
    'DRTAM-release': dict(plane_max=True, chunk_max=True, min_hidden=1),
}
SIX = ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM')
C = 8
each_gate = pytest.mark.parametrize('name', GATES)
each_layout = pytest.mark.parametrize('layout', LAYOUTS)


def made(name, a, dtype=torch.float64, **kwargs):
    """A gate with a as its identity scale; None: without."""
    torch.manual_seed(0)
    gate = getattr(attention, name.partition('-')[0])(C, **GATES[name], **kwargs)
    with torch.no_grad():
        for p in gate.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    if a is not None:
        gate.identity_scale = nn.Parameter(torch.as_tensor(a))
    return gate.to(dtype)


def a_map(shape, dtype, layout):
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    return x.to(memory_format=LAYOUTS[layout]).requires_grad_()


def several(count):
    return torch.linspace(-0.5, 1.5, count, dtype=torch.float64)


def by_formula(gate, x):
    """x + a (g(x) - x) in float64, g by the equations, a apart from it."""
    plain = copy.deepcopy(gate).double()
    a = plain.identity_scale
    plain.identity_scale, plain.impl = None, 'reference'
    y = x + a.view(-1, 1, 1) * (plain(x) - x)
    others = [p for p in plain.parameters() if p is not a]
    return y, [x, a, *others]


def outcome(y, leaves):
    weights = torch.linspace(-1, 1.5, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def leaves_of(gate, x):
    others = [p for p in gate.parameters() if p is not gate.identity_scale]
    return [x, gate.identity_scale, *others]


@each_gate
@each_layout
@pytest.mark.parametrize('train', (True, False), ids=('train', 'eval'))
@pytest.mark.parametrize('count, impl', ((1, None), (C, None), (C, 'reference')))
def test_values_and_gradients(name, layout, train, count, impl):
    gate = made(name, several(count) if count > 1 else [0.3], impl=impl).train(train)
    shape = (3, C, 9, 7)
    expected = outcome(*by_formula(gate, a_map(shape, torch.float64, layout)))
    x = a_map(shape, torch.float64, layout)
    y = gate(x)
    assert y.is_contiguous(memory_format=LAYOUTS[layout])
    for got, exact in zip(outcome(y, leaves_of(gate, x)), expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', SIX)
@each_layout
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_precision_on_larger_maps(name, layout, dtype):
    """Threads, several tiles and rows at once; what is rounded is rounded once."""
    gate, shape = made(name, several(C), torch.float32), (2, C, 72, 70)
    x = a_map(shape, dtype, layout)
    exact = outcome(*by_formula(gate, x.detach().double().requires_grad_()))
    # Some are zero but for rounding, as of a bias before a batch norm: small beside the others.
    floor = 1e-2 * max(float(t.abs().max()) for t in exact[2:])
    for got, right in zip(outcome(gate(x), leaves_of(gate, x)), exact, strict=True):
        bound = 1e-4 if dtype is torch.float32 else 1e-2  # `outcome` rounds its weights, too
        error = float((got.double() - right).abs().max()) / max(float(right.abs().max()), floor)
        assert error < bound, (error, got.shape)


@each_gate
@each_layout
@pytest.mark.parametrize('dtype', (torch.float64, torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize('count, impl', ((1, None), (C, None), (C, 'reference')))
def test_at_zero_it_is_the_identity(name, layout, dtype, impl, count):
    """To the bit, in training as well; a learns, the gate not yet: its gradients are zeros."""
    gate = made(name, torch.zeros(count), torch.promote_types(dtype, torch.float32), impl=impl)
    for train in (True, False):
        x = a_map((2, C, 9, 7), dtype, layout)
        y = gate.train(train)(x)
        assert torch.equal(y, x) and y.dtype is dtype
        gate.zero_grad()
        y.double().square().sum().backward()
        assert torch.equal(x.grad, 2 * x)
        found = {key: p.grad for key, p in gate.named_parameters()}
        da = found.pop('identity_scale')
        assert da.isfinite().all() and (da != 0).all() and da.shape == (count,)
        assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in found.values())


@pytest.mark.parametrize('name', SIX)
@pytest.mark.parametrize('convert', ('bfloat16', 'autocast'))
def test_in_16_bits(name, convert):
    """A converted model, whose layers run as layers; and autocast."""
    dtype = torch.bfloat16
    gate = made(name, torch.zeros(C), dtype if convert == 'bfloat16' else torch.float32)
    x = a_map((2, C, 6, 5), dtype, 'contiguous')
    with torch.autocast('cpu', dtype, enabled=convert == 'autocast'):
        y = gate(x)
    assert torch.equal(y, x)
    y.double().square().sum().backward()
    assert gate.identity_scale.grad.isfinite().all() and gate.identity_scale.grad.any()


@needs_kernels
@pytest.mark.parametrize('name', SIX)
def test_gradcheck(name):
    """The exact gradient, a's with it; also at a = 0, where only a and x have one."""
    for a in (several(C), torch.zeros(1, dtype=torch.float64)):
        gate = made(name, a)
        x = a_map((2, C, 4, 3), torch.float64, 'contiguous')
        keys = [key for key, _ in gate.named_parameters()]

        def call(x, *values, gate=gate, keys=keys):
            return torch.func.functional_call(gate, dict(zip(keys, values, strict=True)), (x,))

        given = [p.detach().clone().requires_grad_() for p in gate.parameters()]
        torch.autograd.gradcheck(call, (x, *given), eps=1e-6, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize('impl', (None, 'reference'))
@each_layout
@pytest.mark.parametrize('count', (1, C))
def test_scales(layout, impl, count):
    n, h, w = 2, 6, 5
    x = a_map((n, C, h, w), torch.float64, layout)
    sizes = dict(n=n, c=C, h=h, w=w)
    a = (several(count) if count > 1 else torch.tensor([0.7]).double()).requires_grad_()

    def factor(axes):
        return torch.rand([sizes[i] for i in axes], dtype=torch.float64, requires_grad=True)

    def rank1():
        return tuple(map(factor, ('nc', 'nh', 'nw')))

    cases = (
        (ops.channel_scale, [factor('nc')]),
        (ops.spatial_scale, [factor('nhw')]),
        (ops.product_scale, [factor('nc'), factor('nhw')]),
        (ops.sum_scale, [factor('nc'), factor('nhw')]),
        (ops.coord_scale, [factor('nch'), factor('ncw')]),
        (ops.rank1_scale, [rank1()]),
        (ops.rank1_scale, [rank1(), rank1()]),
    )
    for op, factors in cases:
        leaves = [x, a]
        for f in factors:
            leaves += f if isinstance(f, tuple) else [f]
        exact = x + a.view(-1, 1, 1) * (op(x, *factors, impl='reference') - x)
        found = op(x, *factors, impl=impl, identity_scale=a)
        for got, right in zip(outcome(found, leaves), outcome(exact, leaves), strict=True):
            torch.testing.assert_close(got, right)


@pytest.mark.parametrize('shape', ((2,), (C, 1, 1), (1, C), (C + 1,)), ids=str)
def test_other_shapes_are_refused(shape):
    for name in SIX:
        gate = made(name, torch.zeros(shape))
        with pytest.raises(ValueError, match='identity_scale must hold one number, or one for'):
            gate(a_map((2, C, 5, 4), torch.float64, 'contiguous'))


def test_a_gate_without_one_has_the_state_that_it_had():
    for name in SIX:
        gate = made(name, None)
        assert gate.identity_scale is None
        assert not any('identity' in key for key in gate.state_dict())


@needs_kernels
@pytest.mark.parametrize('name', SIX)
def test_compiled_in_one_graph_with_kernels(name):
    from test_compile import seen_by_the_compiler

    torch._dynamo.reset()
    gate, targets = made(name, several(C)), set()
    compiled = torch.compile(
        copy.deepcopy(gate), backend=seen_by_the_compiler(targets), fullgraph=True, dynamic=True
    )
    for shape in ((2, C, 6, 5), (3, C, 7, 9)):
        x = a_map(shape, torch.float64, 'contiguous')
        expected = outcome(gate(x), leaves_of(gate, x))
        found = outcome(compiled(x), leaves_of(compiled, x))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours = {target.split('.')[1] for target in targets if target.startswith('mmattn.')}
    assert any(t.endswith('_backward') for t in ours), targets
    compiled.identity_scale.data.zero_()
    assert torch.equal(compiled(x), x)
