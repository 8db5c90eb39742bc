"""One op of the Triton backend against the float64 equations: values and all gradients.

Shared by the tests in the interpreter (tiny tensors on the CPU) and those on a GPU.
"""

import copy
import importlib
from unittest import mock

import attention_cases
import conv_cases
import min_max_cases
import on_kernels
import rank1_cases
import torch

from mmattn.ops import dispatch, examples, reference
from mmattn.ops import triton as kernels
from mmattn.ops.triton import selfcheck

TAPS = (0.05, 0.2, 0.5, 0.2, 0.05)
# Axes of the factors of each scale.
GATES = {
    'channel_scale': ('nc',),
    'spatial_scale': ('nhw',),
    'product_scale': ('nc', 'nhw'),
    'sum_scale': ('nc', 'nhw'),
    'coord_scale': ('nch', 'ncw'),
    'rank1_scale': ('nc', 'nh', 'nw'),
    'dual_scale': ('nc', 'nh', 'nw', 'nc', 'nh', 'nw'),
}
POOLS = {
    'mean_pool': ('channel_pool', {}),
    'channel_pool': ('channel_pool', dict(maximum=True)),
    'coord_pool': ('strip_pool', {}),
    'strip_pool': ('strip_pool', dict(channel=True)),
    'spatial_pool': ('spatial_pool', {}),
    'entropy_pool': ('entropy_pool', {}),
    'entropy_pool_channel': ('entropy_pool', dict(spatial=False)),
    'entropy_pool_spatial': ('entropy_pool', dict(channel=False)),
    'entropy_pool_max': ('entropy_pool', dict(avg=False, ent=False)),
    'entropy_pool_ent': ('entropy_pool', dict(avg=False, max=False)),
    'entropy_pool_avg': ('entropy_pool', dict(max=False, ent=False)),
}
OPS = (*GATES, *POOLS)
GATES_OF = dict(se='SE', eca='ECA', cbam='CBAM', coord='CoordAttention', cat='CAT', drtam='DRTAM')
# What to make of normal values.
FILLS = {
    'normal': lambda x: x,
    'spread': lambda x: 30 * x,  # exponentials over- and underflow
    'large': lambda x: 1000 + x,
    'constant': lambda x: torch.full_like(x, -1.5),
    # Some channels far above the others.
    'rows': lambda x: x + 200 * (torch.arange(x.shape[1]) % 3)[:, None, None],
}


def flat(values):
    """The tensors in nested tuples, None left out."""
    for value in values:
        if isinstance(value, tuple):
            yield from flat(value)
        elif value is not None:
            yield value


def call(module, name, x, factors, taps):
    """An op of `mmattn.ops.reference`, or of `mmattn.ops` on the Triton kernels."""
    head = () if module is reference else (kernels,)
    if name in POOLS:
        op, kwargs = POOLS[name]
        more = (taps,) if op == 'entropy_pool' else factors
        return list(flat(getattr(module, op)(*head, x, *more, **kwargs)))
    if name == 'dual_scale':
        return [module.rank1_scale(*head, x, factors[:3], factors[3:])]
    if name == 'rank1_scale':
        return [module.rank1_scale(*head, x, factors)]
    return [getattr(module, name)(*head, x, *factors)]


def close(got, expected, eps, what):
    """Equal within eps of the expected tensor's size; NaN where NaN is expected."""
    got = got.detach().cpu().double()
    finite = expected[expected.isfinite()]
    atol = eps * max(1e-2, finite.abs().max().item() if finite.numel() else 0)
    torch.testing.assert_close(
        got, expected, rtol=eps, atol=atol, equal_nan=True, msg=lambda text: f'{what}: {text}'
    )


def compare(name, shape, dtype, last, fill='normal', device='cpu', taps=TAPS, nan=False):
    """Raise AssertionError unless the op's values and gradients are those of the equations."""
    generator = torch.Generator().manual_seed(len(name) + sum(shape))
    x = FILLS[fill](torch.randn(shape, generator=generator))
    if nan:
        x[0, -1, -1, -1] = float('nan')
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.to(device, dtype).contiguous(memory_format=layout)
    assert kernels.takes(x.device, x.dtype)
    sizes = dict(zip('nchw', shape, strict=True))
    axes = GATES.get(name) or (('nc',) if name == 'spatial_pool' else ())
    factors = [torch.rand([sizes[a] for a in ax], generator=generator).to(device) for ax in axes]
    taps = torch.tensor(taps, device=device)

    ours = [x.detach().requires_grad_(), *(f.clone().requires_grad_() for f in factors)]
    got = call(on_kernels, name, ours[0], tuple(ours[1:]), taps)
    exact = [t.detach().cpu().double().requires_grad_() for t in ours]
    expected = call(reference, name, exact[0], tuple(exact[1:]), taps.cpu().double())
    eps = 4 * torch.finfo(dtype).eps
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == (dtype if a.dim() == 4 else torch.float32) and a.shape == b.shape
        if a.dim() == 4:
            assert a.is_contiguous(memory_format=layout)
        close(a, b.detach(), eps if a.dim() == 4 else 1e-5, f'output {i}')

    weights = [torch.randn(a.shape, generator=generator).to(device, a.dtype) for a in got]
    grads = torch.autograd.grad(got, ours, weights)
    expected = torch.autograd.grad(expected, exact, [t.cpu().double() for t in weights])
    assert grads[0].dtype == dtype and grads[0].is_contiguous(memory_format=layout)
    if fill == 'constant':
        # Which of many equal maxima gets the gradient is open; what it gets is not.
        close(grads[0].double().sum((1, 2, 3)), expected[0].sum((1, 2, 3)), 16 * eps, 'sum of dx')
    elif not nan:
        close(grads[0], expected[0], max(eps, 2e-5), 'dx')
        for i, (a, b) in enumerate(zip(grads[1:], expected[1:], strict=True)):
            close(a, b, 1e-4, f'gradient of factor {i}')


def compare_gate(name, shape, last, device='cpu', identity=False):
    """A whole attention gate on these kernels against its reference form in float64."""
    from mmattn import attention

    torch.manual_seed(0)
    gate = getattr(attention, name)(shape[1]).train()
    with torch.no_grad():
        for p in gate.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    if identity:
        gate.identity_scale = torch.nn.Parameter(torch.linspace(-0.5, 0.5, shape[1]))
    exact = copy.deepcopy(gate).double()
    exact.impl = 'reference'
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(shape).contiguous(memory_format=layout)
    weight = torch.randn(shape)
    results = []
    for module, dtype, place in (
        (gate.to(device), torch.float32, device),
        (exact, torch.float64, 'cpu'),
    ):
        z = x.detach().to(place, dtype).requires_grad_()
        y = module(z)
        y.backward(weight.to(place, dtype))
        results.append((y.detach(), z.grad, *(p.grad for p in module.parameters())))
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        close(a, b, 2e-4, f'{name}, tensor {i}')


def compare_operator(op, shape, dtype, last):
    """A whole operator against its equations, as the self-check compares them."""
    assert not (problem := selfcheck.compare(op, 'cpu', dtype, shape, last)), problem


def compare_record(name, last):
    """What a gate tells of its pass, by kernels and by the equations."""
    from mmattn import attention, ops

    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=layout)
    gate, told = getattr(attention, name)(5), []
    for impl in ('fast', 'reference'):
        gate.impl = impl
        with ops.record() as records:
            gate(x)
        told.append({**records[0].pools, **records[0].factors})
    # CAT's layers tell entropies in nats, and the average as it is, not as it is convolved.
    keys = told[0].keys() & told[1].keys() - {'c_ent', 's_ent'}
    assert keys == told[1].keys() - {'c_ent', 's_ent', 's_avg' if name == 'CAT' else ''}
    for key in keys:
        close(told[0][key], told[1][key].double(), 1e-4, key)


def check_fake(op, last):
    """What an operator gives is what it tells tracing of: shapes, types and strides."""
    args = examples.arguments(op, (2, 5, 3, 4), torch.float32, last)
    torch.library.opcheck(getattr(torch.ops.mmattn, op), args, test_utils='test_faketensor')


def _cat_of(pools, alpha=True, beta=True, outer=True, sides=False, equation=True):
    def make(m):
        w1, _, w2, _ = m.mlp()
        count = sum(pools)
        vectors = [
            m.rand(length) if given else None
            for given, length in ((alpha, count), (beta, count), (outer, 2))
        ]
        kernel = m.around(1, count if sides else 1, 3, 3)
        return m.x(), m.taps(), w1, w2, kernel, *vectors, list(pools), 0.2, 0.9, equation, None

    return make


def _cbam_of(normed):
    def make(m):
        w1, b1, w2, _ = m.mlp()
        norm = [m.rand(1), m.rand(1), m.constant(1), m.constant(1)] if normed else []
        return m.x(), w1, b1, w2, None, m.around(1, 2, 3, 3), norm, False, 1e-5, None

    return make


def _coord_by_running_statistics(m):
    *args, _, eps, a = examples._coord(m)
    return *args, False, eps, a


# Whole operators with what `examples` does not ask of them.
VARIANTS = {
    'se, biases': ('se', lambda m: (m.x(), *m.mlp(), None)),
    'se, more hidden values': ('se', lambda m: (m.x(), *m.mlp(33), None)),
    'eca, five taps': ('eca', lambda m: (m.x(), m.around(1, 1, 5), None)),
    'cbam, no norm': ('cbam', _cbam_of(False)),
    'cbam, running statistics': ('cbam', _cbam_of(True)),
    'coord, running statistics': ('coord', _coord_by_running_statistics),
    'cat, plain': ('cat', _cat_of((True, True, True), False, False, False)),
    'cat, side by side': ('cat', _cat_of((True, True, True), sides=True)),
    'cat, side by side, plain': ('cat', _cat_of((True, False, True), False, False, sides=True)),
    'cat, algorithm': ('cat', _cat_of((True, True, True), equation=False)),
    'cat, algorithm, plain': ('cat', _cat_of((True, True, True), outer=False, equation=False)),
    'cat, maximum': ('cat', _cat_of((False, True, False))),
    'cat, entropy': ('cat', _cat_of((False, False, True))),
    'cat, average': ('cat', _cat_of((True, False, False), False)),
}


PLAIN = dict(examples.ARGUMENTS)


def _in_part(op, per_channel):
    def make(m):
        return *PLAIN[op](m)[:-1], m.rand(m.shape[1] if per_channel else 1)

    return make


def compare_in_part(op, per_channel, shape, last):
    """With a share of the identity, (C,) or (1,)."""
    make = _in_part(op, per_channel)
    with mock.patch.dict(examples.ARGUMENTS, {op: make}):
        compare_operator(op, shape, torch.float32, last)


def compare_variant(name, shape, last):
    op, make = VARIANTS[name]
    with mock.patch.dict(examples.ARGUMENTS, {op: make}):
        compare_operator(op, shape, torch.float32, last)


def compare_attention(*args, **kwargs):
    attention_cases.compare(kernels, *args, **kwargs)


def compare_planes(shape, chunks, taken, device='cpu', **kwargs):
    """DRTAM's descriptors of its planes, see `rank1_cases`."""
    args = rank1_cases.make(shape, chunks, taken)
    rank1_cases.compare(kernels, args, device=device, **kwargs)


def compare_min_max(values, shape, device='cpu'):
    min_max_cases.compare(kernels, values, shape, device=device)


def compare_conv(shape, k, device='cpu'):
    conv_cases.compare(kernels, shape, k, device=device)


def compare_planes_with_nan(shape, chunks, taken):
    for plane in range(3):
        args = rank1_cases.make(shape, chunks, taken)
        args[0][plane][-1, -1, -1] = float('nan')
        rank1_cases.compare(kernels, args, outputs_only=True)


def digest(shape, device='cpu'):
    """All bits of the values and gradients of an entropy pool and a scale, as one number."""
    torch.manual_seed(0)
    x = torch.randn(shape).to(device).requires_grad_()
    stats = list(flat(on_kernels.entropy_pool(kernels, x, torch.tensor(TAPS, device=device))))
    y = on_kernels.sum_scale(kernels, x, stats[0], stats[3])
    (grad,) = torch.autograd.grad([y, *stats], x, [torch.ones_like(t) for t in (y, *stats)])
    return hash(tuple(t.detach().cpu().numpy().tobytes() for t in (y, grad, *stats)))


def refuse_another_device():
    x, c = torch.ones(1, 2, 3, 3), torch.ones(1, 2)
    assert kernels.channel_scale(x, c).eq(1).all()
    try:
        kernels.channel_scale(x, c.to('meta'))
    except RuntimeError as error:
        assert 'Expected all tensors to be on the same device' in str(error)
    else:
        raise AssertionError('not refused')


def supported(shape, dtype, step=1):
    return dispatch.runs_kernels(torch.zeros(shape, dtype=dtype)[..., ::step], 'fast')


def on_cpu():
    """Take the Triton kernels for CPU tensors, where they are interpreted."""
    dispatch._BACKENDS['cpu'] = 'mmattn.ops.triton'
    torch.set_num_threads(1)
    patch_less()


def patch_less():
    """Triton's interpreter replaces its language's functions at each launch, and looks through all
    of them again, for what is left, at each call within a kernel: a quarter of its time. Here it
    looks once for each module that such functions are from."""
    from triton.runtime.interpreter import InterpretedFunction

    seen, call = set(), InterpretedFunction.__call__

    def quick_call(self, *args, **kwargs):
        if id(self.fn.__globals__) in seen and hasattr(self, 'rewrite'):
            return self.rewrite()(*args, **kwargs)
        seen.add(id(self.fn.__globals__))
        return call(self, *args, **kwargs)

    InterpretedFunction.__call__ = quick_call


def compare_in_small_blocks(*args, compare=compare):
    """`compare` with blocks of at most 4, so that small tensors take many of them."""
    names = ('common', *kernels.MODULES)
    modules = [importlib.import_module(f'mmattn.ops.triton.{name}') for name in names]
    pow2, split = modules[0].pow2, modules[0].split
    try:
        for module in modules:
            module.pow2 = lambda n, most: pow2(n, most if most > 4096 else min(most, 4))
            module.split = lambda programs, length, block, **_: split(programs, length, block, 2)
        compare(*args)
    finally:
        for module in modules:
            module.pow2, module.split = pow2, split
