"""The CPU kernels (the C++ beside this file), a backend as `mmattn.ops.backend` describes one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..tensors import acc, ints
from .build import added as added
from .build import library
from .call import DTYPES, run
from .factors import cat_factors as cat_factors
from .factors import cat_factors_grad as cat_factors_grad
from .factors import channel_factors as channel_factors
from .factors import channel_factors_grad as channel_factors_grad
from .factors import spatial_factors as spatial_factors
from .factors import spatial_factors_grad as spatial_factors_grad
from .rank1 import kept_of_rank1
from .rank1 import rank1_attention as rank1_attention
from .rank1 import rank1_attention_grad as rank1_attention_grad
from .rank1 import rank1_attention_parts as rank1_attention_parts
from .rank1 import rank1_pool as rank1_pool
from .rank1 import rank1_pool_grad as rank1_pool_grad
from .sizes import meta
from .whole import operator as operator

SMALL = 2**17  # elements
# What can leave a share of the identity, by the operators that a gate may take whole.
IDENTITY = frozenset(
    ('se', 'eca', 'cbam', 'coord', 'cat', 'drtam', 'affine_scale', 'coord_scale', 'rank1_scale')
)
_CHANNEL, _SPATIAL, _PRODUCT, _SUM, _DUAL, _AFFINE, _PART_OF_DUAL = range(7)
_FACTORS = 5  # channel, position, channel, position, channel


def works(device: torch.device) -> bool:
    """Whether there are kernels: a C++ compiler."""
    return library() is not None


def takes(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype in DTYPES and works(device)


def declines(op: str, x: Tensor, maximum: bool = False, **_: Any) -> bool:
    """On small maps PyTorch's own mean and product take less time than calling ours."""
    return left_to_compilers(op, x.dtype, maximum) > 0 and x.numel() < SMALL


def left_to_compilers(op: str, dtype: torch.dtype, maximum: bool = False, **_: Any) -> int:
    """A compiler fuses a mean and a product with what stands before and behind them. Of maps so
    large that ours stores the result past the caches, that gains no more. In 16 bits, layers would
    lose their float32: AOTAutograd traces their backward under the autocast that is on outside."""
    simple = op in ('channel_pool', 'channel_scale', 'se') and not maximum
    return 2**24 if simple and dtype in (torch.float32, torch.float64) else 0


def _scale(kind, x, *factors):
    y = torch.empty_like(x)
    run('scale', x, kind, x, y, *meta(x), *factors, *[None] * (_FACTORS - len(factors)))
    return y


def _scale_grad(kind, x, factors, dy, need_x):
    dx = torch.empty_like(x) if need_x else None
    grads = [None if f is None else torch.empty_like(f) for f in factors]
    spare = [None] * (_FACTORS - len(factors))
    run('scale_grad', x, kind, x, dy, dx, *meta(x), *factors, *spare, *grads, *spare)
    return dx, *[g for g in grads if g is not None]


def channel_scale(x: Tensor, c: Tensor) -> Tensor:
    return _scale(_CHANNEL, x, c)


def channel_scale_grad(x: Tensor, c: Tensor, *, dy: Tensor, need_x: bool) -> tuple[Tensor, ...]:
    return _scale_grad(_CHANNEL, x, (c, None), dy, need_x)


def spatial_scale(x: Tensor, s: Tensor) -> Tensor:
    return _scale(_SPATIAL, x, None, s)


def spatial_scale_grad(x: Tensor, s: Tensor, *, dy: Tensor, need_x: bool) -> tuple[Tensor, ...]:
    return _scale_grad(_SPATIAL, x, (None, s), dy, need_x)


def product_scale(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return _scale(_PRODUCT, x, c, s)


def product_scale_grad(
    x: Tensor, c: Tensor, s: Tensor, *, dy: Tensor, need_x: bool
) -> tuple[Tensor, ...]:
    return _scale_grad(_PRODUCT, x, (c, s), dy, need_x)


def sum_scale(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return _scale(_SUM, x, c, s)


def sum_scale_grad(
    x: Tensor, c: Tensor, s: Tensor, *, dy: Tensor, need_x: bool
) -> tuple[Tensor, ...]:
    return _scale_grad(_SUM, x, (c, s), dy, need_x)


def affine_scale(x: Tensor, u: Tensor, v: Tensor, s: Tensor) -> Tensor:
    return _scale(_AFFINE, x, u, s, v)


def affine_scale_grad(
    x: Tensor, u: Tensor, v: Tensor, s: Tensor, *, dy: Tensor, need_x: bool
) -> tuple[Tensor, ...]:
    dx, du, ds, dv = _scale_grad(_AFFINE, x, (u, s, v), dy, need_x)
    return dx, du, dv, ds


def _outer(x, h, w):
    n, _, rows, cols = x.shape
    q = acc(x, n, rows, cols)
    run('outer', x, n, rows, cols, h, w, q)
    return q


def _outer_grad(x, h, w, dq):
    n, _, rows, cols = x.shape
    dh, dw = torch.empty_like(h), torch.empty_like(w)
    run('outer_grad', x, n, rows, cols, h, w, dq, dh, dw)
    return dh, dw


def rank1_scale(
    x: Tensor,
    c: Tensor,
    h: Tensor,
    w: Tensor,
    c2: Tensor | None = None,
    h2: Tensor | None = None,
    w2: Tensor | None = None,
    a: Tensor | None = None,
) -> Tensor:
    q = _outer(x, h, w)
    if c2 is None:
        return _scale(_PRODUCT, x, c, q)
    q2 = _outer(x, h2, w2)
    if a is None:
        return _scale(_DUAL, x, c, q, c2, q2)
    return _scale(_PART_OF_DUAL, x, c, q, c2, q2, a)


def rank1_scale_grad(
    x: Tensor,
    c: Tensor,
    h: Tensor,
    w: Tensor,
    c2: Tensor | None = None,
    h2: Tensor | None = None,
    w2: Tensor | None = None,
    a: Tensor | None = None,
    *,
    dy: Tensor,
    need_x: bool,
) -> tuple[Tensor, ...]:
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


def coord_scale(x: Tensor, h: Tensor, w: Tensor, u: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x)
    run('coord', x, x, None, y, *meta(x), h, w, u, None, None, None)
    return y


def coord_scale_grad(
    x: Tensor, h: Tensor, w: Tensor, u: Tensor | None = None, *, dy: Tensor, need_x: bool
) -> tuple[Tensor | None, ...]:
    dx, dh, dw = torch.empty_like(x) if need_x else None, torch.empty_like(h), torch.empty_like(w)
    du = None if u is None else torch.empty_like(u)
    run('coord', x, x, dy, dx, *meta(x), h, w, u, dh, dw, du)
    return (dx, dh, dw) if u is None else (dx, dh, dw, du)


def _pool(x, factor, shape, maximum):
    avg = acc(x, *shape)
    peak = torch.empty_like(avg) if maximum else None
    argmax = ints(x, *shape) if maximum else None
    run('pool', x, len(shape) == 2, x, *meta(x), factor, avg, peak, argmax)
    return avg, peak, argmax


def channel_pool(x: Tensor, *, maximum: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return _pool(x, None, x.shape[:2], maximum)


def channel_pool_grad(
    dx: Tensor, gavg: Tensor | None, gmax: Tensor | None, at: Tensor | None
) -> Tensor:
    run('pool_grad', dx, None, dx, *meta(dx), None, gavg, gmax, at if gmax is not None else None)
    return dx


def channel_dx(
    dy: Tensor, c: Tensor, gavg: Tensor | None, gmax: Tensor | None, at: Tensor | None
) -> Tensor:
    """SE's and ECA's dx = dy * c + gavg / (H W) + [argmax] gmax."""
    dx = torch.empty_like(dy)
    run('pool_grad', dx, dy, dx, *meta(dx), c, gavg, gmax, at)
    return dx


def cbam_dx(
    dy: Tensor,
    c: Tensor,
    s: Tensor,
    ga: Tensor,
    gm: Tensor,
    at: Tensor,
    gavg: Tensor,
    gmax: Tensor,
    channel_at: Tensor,
    a: Tensor | None = None,
) -> Tensor:
    dx = torch.empty_like(dy)
    run('cbam_dx', dx, dy, dx, *meta(dx), c, s, ga, gm, at, gavg, gmax, channel_at, a)
    return dx


def coord_dx(
    dy: Tensor,
    h: Tensor,
    w: Tensor,
    gch: Tensor | None,
    gcw: Tensor | None,
    u: Tensor | None = None,
) -> Tensor:
    dx = torch.empty_like(dy)
    run('coord_dx', dx, dy, dx, *meta(dx), h, w, u, gch, gcw)
    return dx


def entropy_dx(
    x: Tensor,
    taps: Tensor,
    dy: Tensor,
    c: Tensor,
    s: Tensor,
    grads: Sequence[Tensor | None],
    saved: Sequence[Any],
    v: Tensor | None = None,
) -> Tensor:
    return entropy_pool_grad(x, taps, grads, saved, dy=dy, c=c, s=s, v=v)


def spatial_pool(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    n, _, h, w = x.shape
    return _pool(x, c, (n, h, w), True)


def spatial_pool_grad(
    x: Tensor,
    c: Tensor,
    gavg: Tensor | None,
    gmax: Tensor | None,
    at: Tensor | None,
    *,
    need_x: bool,
) -> tuple[Tensor | None, Tensor]:
    dx, dc = torch.empty_like(x) if need_x else None, torch.empty_like(c)
    run('spatial_pool_grad', x, x, dx, *meta(x), c, gavg, gmax, at, dc)
    return dx, dc


def strip_pool(x: Tensor, *, channel: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    n, c, h, w = x.shape
    ch, cw, hw = acc(x, n, c, h), acc(x, n, c, w), acc(x, n, h, w) if channel else None
    run('strips', x, x, *meta(x), ch, cw, hw)
    return ch, cw, hw


def strip_pool_grad(
    dx: Tensor, gch: Tensor | None, gcw: Tensor | None, ghw: Tensor | None
) -> Tensor:
    run('strips_grad', dx, None, dx, *meta(dx), gch, gcw, ghw)
    return dx


def spatial_conv(maps: Tensor, weight: Tensor) -> Tensor:
    n, _, h, w = maps.shape
    out = acc(maps, n, h, w)
    run('spatial_conv', maps, maps, weight, out, *maps.shape, *weight.shape[2:])
    return out


def spatial_conv_grad(maps: Tensor, weight: Tensor, *, dy: Tensor) -> tuple[Tensor, Tensor]:
    dmaps, dweight = torch.empty_like(maps), torch.empty_like(weight)
    sizes = *maps.shape, *weight.shape[2:]
    run('spatial_conv_grad', maps, maps, weight, dy, dmaps, dweight, *sizes)
    return dmaps, dweight


def min_max(v: Tensor, low: float, high: float) -> Tensor:
    out = torch.empty_like(v)
    run('min_max', v, v, out, v.shape[0], v[0].numel(), low, high)
    return out


def min_max_grad(v: Tensor, low: float, high: float, *, dy: Tensor) -> Tensor:
    dv = torch.empty_like(v)
    run('min_max_grad', v, v, dy, dv, v.shape[0], v[0].numel(), high - low)
    return dv


def _kept_of_entropy(x, channel, spatial, avg, max, ent):
    n, c, h, w = x.shape
    found = [((n,), False)]
    for wanted, shape in ((channel, (n, c)), (spatial, (n, h, w))):
        # Entropy, log s, reference of wide samples; arg-max
        found += [(shape if wanted and ent else (0,), False)] * 3
        found.append((shape if wanted and max else (0,), True))
    return found


# What operators keep for backward, as (shape, whether of integers).
SAVED = dict(rank1_attention=kept_of_rank1, entropy_pool=_kept_of_entropy)


def entropy_pool(
    x: Tensor, taps: Tensor, *, channel: bool, spatial: bool, avg: bool, max: bool, ent: bool
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    n, c, h, w = x.shape
    sides: list[Any] = []
    for wanted, shape in ((channel, (n, c)), (spatial, (n, h, w))):
        # avg, max, ent, log s, reference of wide samples; arg-max
        vectors = [acc(x, *shape) if wanted and a else None for a in (avg, max, ent, ent, ent)]
        if vectors[4] is not None:
            vectors[4].zero_()  # not all samples are wide
        sides += [vectors, ints(x, *shape) if wanted and max else None]
    refs = acc(x, n)
    run('entropy', x, x, *meta(x), taps, taps.numel(), *sides, refs)
    saved: list[Tensor | None] = [refs]
    for (_, _, entropy, log, ref), argmax in (sides[:2], sides[2:]):
        # As a copy: of the result itself a backward would be another way to reach it.
        saved += [None if entropy is None else entropy.clone(), log, ref, argmax]
    return (*sides[0][:3], *sides[2][:3]), tuple(saved)


def entropy_pool_grad(
    x: Tensor,
    taps: Tensor,
    grads: Sequence[Tensor | None],
    saved: Sequence[Any],
    *,
    dy: Tensor | None = None,
    c: Tensor | None = None,
    s: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    dx = torch.empty_like(x)
    refs, *vectors = saved
    sides = []
    for (g_avg, g_max, g_ent), (entropy, log, ref, argmax) in zip(
        (grads[:3], grads[3:]), (vectors[:4], vectors[4:]), strict=True
    ):
        sides += [(g_avg, g_ent, g_max, entropy, log, ref), argmax]
    run('entropy_grad', x, x, dy, dx, *meta(x), taps, taps.numel(), *sides, refs, c, s, v)
    return dx
