"""The CPU kernels (the C++ beside this file), a backend as `mmattn.ops.backend` describes one."""

import ctypes
import functools
import math

import torch

from ..chunks import windows
from ..dispatch import stats_dtype
from .build import added as added
from .build import library
from .call import DTYPES, run

SMALL = 2**17  # elements
# What can leave a share of the identity, by the operators that a gate may take whole.
IDENTITY = frozenset(
    ('se', 'eca', 'cbam', 'coord', 'cat', 'drtam', 'affine_scale', 'coord_scale', 'rank1_scale')
)
_CHANNEL, _SPATIAL, _PRODUCT, _SUM, _DUAL, _AFFINE, _PART_OF_DUAL = range(7)
_FACTORS = 5  # channel, position, channel, position, channel


def works(device):
    """Whether there are kernels: a C++ compiler."""
    return library() is not None


def takes(device, dtype):
    return dtype in DTYPES and works(device)


def declines(op, x, maximum=False, **_):
    """On small maps PyTorch's own mean and product take less time than calling ours."""
    return (
        op in ('channel_pool', 'channel_scale', 'se')
        and not maximum
        and x.numel() < SMALL
        and x.dtype in (torch.float32, torch.float64)
    )


def _meta(x):
    """The sizes of x and its layout, as the kernels take them."""
    n, c, h, w = x.shape
    # A map of one position is both; as rows of channels it has rows worth the name.
    return n, c, h, w, h * w == 1 or not x.is_contiguous()


def _acc(x, *shape):
    return x.new_empty(shape, dtype=stats_dtype(x))  # where x is, whatever the default device


def _ints(x, *shape):
    return x.new_empty(shape, dtype=torch.int32)


def _scale(kind, x, *factors):
    y = torch.empty_like(x)
    run('scale', x, kind, x, y, *_meta(x), *factors, *[None] * (_FACTORS - len(factors)))
    return y


def _scale_grad(kind, x, factors, dy, need_x):
    dx = torch.empty_like(x) if need_x else None
    grads = [None if f is None else torch.empty_like(f) for f in factors]
    spare = [None] * (_FACTORS - len(factors))
    run('scale_grad', x, kind, x, dy, dx, *_meta(x), *factors, *spare, *grads, *spare)
    return dx, *[g for g in grads if g is not None]


def channel_scale(x, c):
    return _scale(_CHANNEL, x, c)


def channel_scale_grad(x, c, *, dy, need_x):
    return _scale_grad(_CHANNEL, x, (c, None), dy, need_x)


def spatial_scale(x, s):
    return _scale(_SPATIAL, x, None, s)


def spatial_scale_grad(x, s, *, dy, need_x):
    return _scale_grad(_SPATIAL, x, (None, s), dy, need_x)


def product_scale(x, c, s):
    return _scale(_PRODUCT, x, c, s)


def product_scale_grad(x, c, s, *, dy, need_x):
    return _scale_grad(_PRODUCT, x, (c, s), dy, need_x)


def sum_scale(x, c, s):
    return _scale(_SUM, x, c, s)


def sum_scale_grad(x, c, s, *, dy, need_x):
    return _scale_grad(_SUM, x, (c, s), dy, need_x)


def affine_scale(x, u, v, s):
    return _scale(_AFFINE, x, u, s, v)


def affine_scale_grad(x, u, v, s, *, dy, need_x):
    dx, du, ds, dv = _scale_grad(_AFFINE, x, (u, s, v), dy, need_x)
    return dx, du, dv, ds


def _outer(x, h, w):
    n, _, rows, cols = x.shape
    q = _acc(x, n, rows, cols)
    run('outer', x, n, rows, cols, h, w, q)
    return q


def _outer_grad(x, h, w, dq):
    n, _, rows, cols = x.shape
    dh, dw = torch.empty_like(h), torch.empty_like(w)
    run('outer_grad', x, n, rows, cols, h, w, dq, dh, dw)
    return dh, dw


def rank1_scale(x, c, h, w, c2=None, h2=None, w2=None, a=None):
    q = _outer(x, h, w)
    if c2 is None:
        return _scale(_PRODUCT, x, c, q)
    q2 = _outer(x, h2, w2)
    if a is None:
        return _scale(_DUAL, x, c, q, c2, q2)
    return _scale(_PART_OF_DUAL, x, c, q, c2, q2, a)


def rank1_scale_grad(x, c, h, w, c2=None, h2=None, w2=None, a=None, *, dy, need_x):
    q = _outer(x, h, w)
    if c2 is None:
        dx, dc, dq = _scale_grad(_PRODUCT, x, (c, q), dy, need_x)
        return dx, dc, *_outer_grad(x, h, w, dq)
    factors = (c, q, c2, _outer(x, h2, w2))
    if a is None:
        dx, dc, dq, dc2, dq2 = _scale_grad(_DUAL, x, factors, dy, need_x)
        da = ()
    else:
        dx, dc, dq, dc2, dq2, *da = _scale_grad(_PART_OF_DUAL, x, (*factors, a), dy, need_x)
    return dx, dc, *_outer_grad(x, h, w, dq), dc2, *_outer_grad(x, h2, w2, dq2), *da


def coord_scale(x, h, w, u=None):
    y = torch.empty_like(x)
    run('coord', x, x, None, y, *_meta(x), h, w, u, None, None, None)
    return y


def coord_scale_grad(x, h, w, u=None, *, dy, need_x):
    dx, dh, dw = torch.empty_like(x) if need_x else None, torch.empty_like(h), torch.empty_like(w)
    du = None if u is None else torch.empty_like(u)
    run('coord', x, x, dy, dx, *_meta(x), h, w, u, dh, dw, du)
    return (dx, dh, dw) if u is None else (dx, dh, dw, du)


def _pool(x, factor, shape, maximum):
    avg = _acc(x, *shape)
    peak = torch.empty_like(avg) if maximum else None
    argmax = _ints(x, *shape) if maximum else None
    run('pool', x, len(shape) == 2, x, *_meta(x), factor, avg, peak, argmax)
    return avg, peak, argmax


def channel_pool(x, *, maximum):
    return _pool(x, None, x.shape[:2], maximum)


def channel_pool_grad(dx, gavg, gmax, at):
    run('pool_grad', dx, None, dx, *_meta(dx), None, gavg, gmax, at if gmax is not None else None)
    return dx


def channel_dx(dy, c, gavg, gmax, at):
    """SE's and ECA's dx = dy * c + gavg / (H W) + [argmax] gmax."""
    dx = torch.empty_like(dy)
    run('pool_grad', dx, dy, dx, *_meta(dx), c, gavg, gmax, at)
    return dx


def cbam_dx(dy, c, s, ga, gm, at, gavg, gmax, channel_at, a=None):
    dx = torch.empty_like(dy)
    run('cbam_grad', dx, dy, dx, *_meta(dx), c, s, ga, gm, at, gavg, gmax, channel_at, a)
    return dx


def coord_dx(dy, h, w, gch, gcw, u=None):
    dx = torch.empty_like(dy)
    run('coord_dx', dx, dy, dx, *_meta(dx), h, w, u, gch, gcw)
    return dx


def entropy_dx(x, taps, dy, c, s, grads, saved, v=None):
    return entropy_pool_grad(x, taps, grads, saved, dy=dy, c=c, s=s, v=v)


def spatial_pool(x, c):
    n, _, h, w = x.shape
    return _pool(x, c, (n, h, w), True)


def spatial_pool_grad(x, c, gavg, gmax, at, *, need_x):
    dx, dc = torch.empty_like(x) if need_x else None, torch.empty_like(c)
    run('spatial_pool_grad', x, x, dx, *_meta(x), c, gavg, gmax, at, dc)
    return dx, dc


def strip_pool(x, *, channel):
    n, c, h, w = x.shape
    ch, cw, hw = _acc(x, n, c, h), _acc(x, n, c, w), _acc(x, n, h, w) if channel else None
    run('strips', x, x, *_meta(x), ch, cw, hw)
    return ch, cw, hw


def strip_pool_grad(dx, gch, gcw, ghw):
    run('strips_grad', dx, None, dx, *_meta(dx), gch, gcw, ghw)
    return dx


def spatial_conv(maps, weight):
    n, _, h, w = maps.shape
    out = _acc(maps, n, h, w)
    run('spatial_conv', maps, maps, weight, out, *maps.shape, *weight.shape[2:])
    return out


def spatial_conv_grad(maps, weight, *, dy):
    dmaps, dweight = torch.empty_like(maps), torch.empty_like(weight)
    sizes = *maps.shape, *weight.shape[2:]
    run('spatial_conv_grad', maps, maps, weight, dy, dmaps, dweight, *sizes)
    return dmaps, dweight


def min_max(v, low, high):
    out = torch.empty_like(v)
    run('min_max', v, v, out, v.shape[0], v[0].numel(), low, high)
    return out


def min_max_grad(v, low, high, *, dy):
    dv = torch.empty_like(v)
    run('min_max_grad', v, v, dy, dv, v.shape[0], v[0].numel(), high - low)
    return dv


def _like(tensors):
    return [None if t is None else torch.empty_like(t) for t in tensors]


def channel_factors(descriptors, weights):
    first = descriptors[0]
    (n, c), parts, hidden = first.shape, len(descriptors), weights[0].shape[0]
    v, hiddens, out = _acc(first, n, parts, c), _acc(first, n, parts, hidden), torch.empty_like(first)
    run(
        'channel_factors', first, descriptors, n, parts, c, hidden, weights, v, hiddens, out,
    )  # fmt: skip
    return out, v, hiddens


def channel_factors_grad(grads, c, v, hiddens, weights):
    dv, dweights = [torch.empty_like(c) for _ in range(v.shape[1])], _like(weights)
    grads = (*grads, None, None)[:3]
    sizes = *v.shape, weights[0].shape[0]
    run('channel_factors_grad', c, grads, c, v, hiddens, *sizes, weights, dv, dweights)
    return dv, dweights


def spatial_factors(descriptors, kernel, norm, by_batch, eps):
    first = descriptors[0]
    (n, h, w), m = first.shape, len(descriptors)
    maps, v, s, moments = _acc(first, n, m, h, w), *_like((first, first)), _acc(first, 2).zero_()
    weight, bias, *state = norm or (None, None, None, None)
    if norm:  # what it normalises by
        state = _like(state) if by_batch else [t.clone() for t in state]
    sizes = *maps.shape, *kernel.shape[2:]
    run(
        'spatial_factors', first, descriptors, *sizes, kernel, (weight, bias), *state, by_batch, eps,
        maps, v, s, moments,
    )  # fmt: skip
    return s, maps, v, *(state if norm else (v.new_empty(0), v.new_empty(0))), moments


def spatial_factors_grad(grads, s, maps, v, kernel, weight, mean, var, by_batch, eps):
    dmaps, dkernel = [torch.empty_like(s) for _ in range(maps.shape[1])], torch.empty_like(kernel)
    dnorm, state = [], (None, None)
    if weight is not None:
        dnorm, state = _like((weight, weight)), (mean, var)
    run(
        'spatial_factors_grad', s, (*grads, None)[:2], s, maps, v, *maps.shape, *kernel.shape[2:], kernel,
        (weight, weight), *state, by_batch, eps, dmaps, (dkernel, *(dnorm or (None, None))),
    )  # fmt: skip
    return dmaps, dkernel, dnorm


def cat_factors(channel, spatial, weights, low, high, equation):
    w1, _, kernel, *_ = weights
    given = [t for t in channel if t is not None]
    first, parts = given[0], len(given)
    (n, c), (_, h, w) = first.shape, next(t.shape for t in spatial if t is not None)
    kept = [
        _acc(first, *shape)
        for shape in ((n, parts, c), (n, parts, h, w), (n, parts, w1.shape[0]), (n, c), (n, h, w))
    ]
    factors = _like(kept[3:])
    sizes = n, c, h, w, parts, w1.shape[0], *kernel.shape[1:]
    run(
        'cat_factors', first, channel, spatial, *sizes, weights, low, high, equation, kept, *factors
    )
    return *factors, kept


def cat_factors_grad(grads, factors, kept, entropies, pools, weights, low, high, equation):
    (n, c), (_, h, w) = (t.shape for t in factors)
    w1, _, kernel, *_ = weights
    dchannel, dspatial = (_like(like if pool else None for pool in pools) for like in factors)
    dweights = _like(weights)
    sizes = n, c, h, w, sum(pools), w1.shape[0], *kernel.shape[1:]
    run(
        'cat_factors_grad', factors[0], grads, factors, kept, entropies, *sizes, weights, low, high,
        equation, dchannel, dspatial, dweights,
    )  # fmt: skip
    return dchannel, dspatial, dweights


@functools.lru_cache
def _cuts(height, width, channels, chunks, channel_chunks):
    """The windows of the three axes of a map, begin and end of one after the other."""
    axes = (height, chunks), (width, chunks), (channels, channel_chunks)
    edges = [edge for axis in axes for window in windows(*axis) for edge in window]
    return (ctypes.c_int64 * len(edges))(*edges)


def _rank1(name, planes, chunks, *groups):
    """Call a kernel on DRTAM's planes; `groups`: tuples of tensors."""
    ch, cw, _ = planes
    (n, c, h), w = ch.shape, cw.shape[2]
    run(name, ch, *planes, n, c, h, w, *chunks, _cuts(h, w, c, *chunks), *groups)


def rank1_pool(planes, weights, chunks, taken):
    ch, cw, _ = planes
    (n, c, h), w, rows = ch.shape, cw.shape[2], sum(chunks) + 1
    out = _acc(ch, n, c), _acc(ch, n, h), _acc(ch, n, w)
    strips = _acc(ch, n, rows, h), _acc(ch, n, rows, w)
    at = _ints(ch, n, h), _ints(ch, n, w)
    _rank1('rank1_pool', planes, chunks, weights, taken or (None,) * 3, out, strips, at)
    return out, (*strips, *at)


def rank1_pool_grad(planes, weights, chunks, taken, grads, saved):
    dplanes, dweights, dtaken = (
        tuple(torch.empty_like(t) for t in group) if group else None
        for group in (planes, weights, taken)
    )
    none = (None,) * 3
    _rank1(
        'rank1_pool_grad', planes, chunks, weights, taken or none, grads, saved[:2], saved[2:],
        dplanes, dweights, dtaken or none,
    )  # fmt: skip
    return dplanes, dweights, dtaken


def _kept(x, params, chunks):
    """How many floats and integers `rank1_attention` keeps for backward (`lay_out` in C++)."""
    (n, c, h, w), hidden, strips = x.shape, params[0].shape[0], sum(chunks) + 1
    modules = (len(params) - 4) // 9
    planes = n * (c * h + c * w + h * w)
    each = n * (2 * (c + h + w) + strips * (h + w) + c + hidden) + 6
    return ((planes + modules * each,), False), ((modules * n * (h + w),), True)


def _kept_of_entropy(x, channel, spatial, avg, max, ent):
    n, c, h, w = x.shape
    found = [((n,), False)]
    for wanted, shape in ((channel, (n, c)), (spatial, (n, h, w))):
        # Entropy, log s, reference of wide samples; arg-max
        found += [(shape if wanted and ent else (0,), False)] * 3
        found.append((shape if wanted and max else (0,), True))
    return found


# What operators keep for backward, as (shape, whether of integers).
SAVED = dict(rank1_attention=_kept, entropy_pool=_kept_of_entropy)


def _attention(x, params, rules, chunks):
    """What the kernels of `rank1_attention` take after x: sizes, parameters and rules."""
    n, c, h, w, last = _meta(x)
    cuts = _cuts(h, w, c, *chunks)
    modules = (len(params) - 4) // 9
    rules = [r for momentum, eps in rules for r in (-1.0 if momentum is None else momentum, eps)]
    return (
        (n, c, h, w, last, *chunks, cuts, params[0].shape[0], modules, params),
        (ctypes.c_double * len(rules))(*rules),
    )


def rank1_attention(x, params, states, chunks, a=None):
    y = torch.empty_like(x)
    sizes, rules = _attention(x, params, [state[2:] for state in states], chunks)
    running = [t for state in states for t in state[:2]]
    (floats, _), (ints, _) = _kept(x, params, chunks)
    kept = _acc(x, *floats), _ints(x, *ints)
    run('rank1_attention', x, x, y, *sizes, running, rules, a, *kept)
    return y, kept


def rank1_attention_parts(x, params, chunks, saved):
    (n, c, h, w), hidden, strips = x.shape, params[0].shape[0], sum(chunks) + 1
    left, used = saved[0], 0

    def take(*shape):
        nonlocal used
        used += math.prod(shape)
        return left[used - math.prod(shape) : used].view(shape)

    planes, stages = (take(n, c, h), take(n, c, w), take(n, h, w)), []
    for _ in range((len(params) - 4) // 9):  # as `lay_out` in C++ does
        pairs = [(take(n, length), take(n, length)) for length in (c, h, w)]
        stages.append(tuple(zip(*pairs, strict=True)))
        take(n * strips * (h + w) + 6 + n * c + n * hidden)
    return planes, stages


def rank1_attention_grad(x, params, rules, chunks, saved, a=None, *, dy, need_x):
    dx = torch.empty_like(x) if need_x else None
    da = None if a is None else torch.empty_like(a)
    dparams = [torch.empty_like(p) for p in params]
    sizes, rules = _attention(x, params, rules, chunks)
    run('rank1_attention_grad', x, x, dy, dx, *sizes, rules, a, *saved, dparams, da)
    return (dx, dparams) if a is None else (dx, dparams, da)


def entropy_pool(x, taps, *, channel, spatial, avg, max, ent):
    n, c, h, w = x.shape
    sides = []
    for wanted, shape in ((channel, (n, c)), (spatial, (n, h, w))):
        # avg, max, ent, log s, reference of wide samples; arg-max
        vectors = [_acc(x, *shape) if wanted and a else None for a in (avg, max, ent, ent, ent)]
        if vectors[4] is not None:
            vectors[4].zero_()  # not all samples are wide
        sides += [vectors, _ints(x, *shape) if wanted and max else None]
    refs = _acc(x, n)
    run('entropy', x, x, *_meta(x), taps, taps.numel(), *sides, refs)
    saved = [refs]
    for (_, _, entropy, log, ref), argmax in (sides[:2], sides[2:]):
        # As a copy: of the result itself a backward would be another way to reach it.
        saved += [None if entropy is None else entropy.clone(), log, ref, argmax]
    return (*sides[0][:3], *sides[2][:3]), tuple(saved)


def entropy_pool_grad(x, taps, grads, saved, *, dy=None, c=None, s=None, v=None):
    dx = torch.empty_like(x)
    refs, *vectors = saved
    sides = []
    for (g_avg, g_max, g_ent), (entropy, log, ref, argmax) in zip(
        (grads[:3], grads[3:]), (vectors[:4], vectors[4:]), strict=True
    ):
        sides += [(g_avg, g_ent, g_max, entropy, log, ref), argmax]
    run('entropy_grad', x, x, dy, dx, *_meta(x), taps, taps.numel(), *sides, refs, c, s, v)
    return dx
