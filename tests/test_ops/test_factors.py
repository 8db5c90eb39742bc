"""What lies between pools and scale: the CPU kernels against the float64 equations, which autograd
differentiates, and against the same in calls of PyTorch."""

import importlib
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from needs import needs_kernels

from mmattn.ops import layers, native, reference

pytestmark = needs_kernels
cat = importlib.import_module('mmattn.ops.cat')  # its name in the package is that of the function
# A backend without functions of its own for all of it: the way in calls of PyTorch.
PARTS = ('spatial_conv', 'spatial_conv_grad', 'min_max', 'min_max_grad')
CALLS = SimpleNamespace(**{name: getattr(native, name) for name in PARTS})
BACKENDS = dict(kernels=native, calls=CALLS)


def close(found, expected, dtype):
    rtol = 1e-4 if dtype is torch.float32 else 1e-9
    for name, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a is None) == (b is None), name
        if a is not None:
            scale = float(b.abs().max()) + 1e-6
            torch.testing.assert_close(
                a.double(), b, rtol=rtol, atol=rtol * scale, msg=lambda m, name=name: f'{name}: {m}'
            )


def random(*shapes):
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def leaves(tensors):
    return [None if t is None else t.clone().requires_grad_() for t in tensors]


def to(dtype, tensors):
    return [None if t is None else t.to(dtype) for t in tensors]


def grads_of(outputs, given, inputs):
    found = torch.autograd.grad(outputs, [t for t in inputs if t is not None], given)
    found = iter(found)
    return [None if t is None else next(found) for t in inputs]


@pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(
    ('n', 'channels', 'hidden', 'parts', 'biases'),
    (
        (1, 1, 1, 1, (True, True)),
        (3, 5, 2, 1, (False, True)),
        (5, 67, 9, 2, (True, False)),
        (2, 300, 17, 2, (True, True)),
        (9, 64, 4, 3, (False, False)),
    ),
)
def test_channel_factors(backend, n, channels, hidden, parts, biases, dtype):
    torch.manual_seed(0)
    kernels = BACKENDS[backend]
    b1, b2 = (t if has else None for t, has in zip(random(hidden, channels), biases, strict=True))
    w1, w2 = random((hidden, channels), (channels, hidden))
    weights, descriptors = [w1, b1, w2, b2], random(*[(n, channels)] * parts)
    given = random(*[(n, channels)] * 3)

    c, v, kept = layers.channel_factors(kernels, to(dtype, descriptors), to(dtype, weights))
    dv, dweights = layers.channel_factors_grad(
        kernels, to(dtype, [given[0], None, given[2]]), c, v, kept, to(dtype, weights)
    )

    inputs = leaves([*descriptors, *weights])
    w1, b1, w2, b2 = inputs[parts:]
    out = sum(F.linear(F.linear(d, w1, b1).relu(), w2, b2) for d in inputs[:parts]).sigmoid()
    close([c, *dv, *dweights], [out, *grads_of(out, given[0] + given[2], inputs)], dtype)


@pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('norm', ('batch', 'running', None))
@pytest.mark.parametrize('size', ((1, 1, 1, 7), (3, 5, 9, 3), (2, 20, 17, 7)), ids=str)
def test_spatial_factors(backend, size, norm, dtype):
    torch.manual_seed(0)
    n, h, w, k = size
    if norm == 'batch' and n * h * w == 1:  # of one value there is no variance
        n, h, w = 2, 3, 2
    kernels, by_batch, eps = BACKENDS[backend], norm == 'batch', 1e-3
    maps = random((n, h, w), (n, h, w))
    (kernel,) = random((1, 2, k, k))
    weight, bias, mean = random(1, 1, 1)
    state = [weight, bias, mean, mean.square() + 0.5] if norm else []
    given = random((n, h, w), (n, h, w))

    s, *kept, moments = layers.spatial_factors(
        kernels, to(dtype, maps), kernel.to(dtype), to(dtype, state), by_batch, eps
    )
    dmaps, dkernel, dnorm = layers.spatial_factors_grad(
        kernels, to(dtype, given), s, *kept[:2], kernel.to(dtype),
        weight.to(dtype) if norm else None, *kept[2:], by_batch, eps,
    )  # fmt: skip

    inputs = leaves([*maps, kernel, *state[:2]])
    v = F.conv2d(torch.stack(inputs[:2], 1), inputs[2], padding=k // 2)
    if norm:
        running = (None, None) if by_batch else (state[2], state[3])
        out = F.batch_norm(v, *running, *inputs[3:], by_batch, 0.0, eps)
    else:
        out = v
    out = out.squeeze(1).sigmoid()
    close([s, *dmaps, dkernel, *dnorm], [out, *grads_of(out, sum(given), inputs)], dtype)
    if by_batch:
        close([moments], [torch.stack((v.mean(), v.var())).detach()], dtype)


OPTIONS = [
    dict(pools=pools, equation=equation, side_by_side=side_by_side, factors=factors)
    for pools, equation, side_by_side, factors in (
        ((True, True, True), True, False, True),
        ((True, True, True), False, False, True),
        ((True, True, True), True, True, True),
        ((True, True, True), False, True, False),
        ((False, True, True), True, False, False),
        ((True, False, False), False, False, True),
        ((False, False, True), True, True, True),
    )
]


@pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_cat_factors(backend, options, dtype):
    torch.manual_seed(0)
    kernels, pools = BACKENDS[backend], options['pools']
    n, c, h, w, hidden, parts, low, high = 3, 21, 5, 6, 4, sum(pools), -1.0, 1.0
    channel, spatial = (
        [t if pool else None for t, pool in zip(random(*[shape] * 3), pools, strict=True)]
        for shape in ((n, c), (n, h, w))
    )
    maps = parts if options['side_by_side'] else 1
    weights = random((hidden, c), (c, hidden), (1, maps, 3, 3), parts, parts, 2)
    if not options['factors']:
        weights[3:] = [None] * 3
    given = random((n, c), (n, c), (n, h, w), (n, h, w))

    rest = low, high, options['equation']
    cast = [to(dtype, group) for group in (channel, spatial, weights)]
    *found, kept = cat.cat_factors(kernels, *cast, *rest)
    entropies = cast[0][2], cast[1][2]
    dchannel, dspatial, dweights = cat.cat_factors_grad(
        kernels, to(dtype, given), found, kept, entropies, pools, cast[2], *rest
    )

    inputs = leaves([*channel, *spatial, *weights])
    w1, w2, kernel, alpha, beta, outer = inputs[6:]
    ones = torch.ones(parts, dtype=torch.float64)
    alpha, beta = ones if alpha is None else alpha, ones if beta is None else beta
    outer = ones.new_ones(2) if outer is None else outer
    stacks = []
    for (avg, peak, ent), sign in ((inputs[:3], 1), (inputs[3:6], -1)):
        ent = None if ent is None else reference.min_max(ent, low, high)
        avg = None if avg is None else sign * avg
        stacks.append(torch.stack([t for t in (avg, peak, ent) if t is not None], 1))
    inner = ((stacks[0] @ w1.t()).relu() @ w2.t() * alpha[:, None]).sum(1)
    weighed = stacks[1] * beta[:, None, None]
    weighed = weighed if options['side_by_side'] else weighed.sum(1, keepdim=True)
    z = F.conv2d(weighed, kernel, padding=1).squeeze(1).sigmoid()
    if options['equation']:
        out = (inner * outer[0]).sigmoid(), (z * outer[1]).sigmoid()
    else:
        out = inner.sigmoid() * outer[0], z * outer[1]
    sums = given[0] + given[1], given[2] + given[3]
    expected = grads_of(out, sums, inputs)
    close([*found, *dchannel, *dspatial, *dweights], [*out, *expected], dtype)


@pytest.mark.parametrize('threads', (1, 2))
def test_bits_do_not_depend_on_threads(threads):
    """Products large enough to be shared."""
    torch.manual_seed(0)
    weights = [t.float() for t in random((65, 1030), 65, (1030, 65), 1030)]
    descriptors, given = torch.randn(2, 8, 1030).unbind(), [torch.randn(8, 1030), None, None]
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 1 + threads):
            torch.set_num_threads(count)
            c, v, hidden = native.channel_factors(descriptors, weights)
            dv, dweights = native.channel_factors_grad(given, c, v, hidden, weights)
            results.append([c, hidden, *dv, *dweights])
    finally:
        torch.set_num_threads(before)
    assert all(itertools.starmap(torch.equal, zip(*results, strict=True)))
