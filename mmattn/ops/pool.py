"""Pools of a feature map x (N, C, H, W) into descriptors, in `stats_dtype`.

channel_pool   avg, max (N, C)            mean and maximum over positions: SE, ECA, CBAM
spatial_pool   avg, max (N, H, W)         the same over the channels of x * c: CBAM
strip_pool     ch (N, C, H), cw (N, C, W), hw (N, H, W)   means over W, H, C: DRTAM, CA
entropy_pool   avg, max, ent of both axes: CAT
"""

from typing import Any

import torch
from torch import Tensor

from . import dispatch, record, reference
from .check import check_map, factors_of
from .dispatch import runs_kernels, stats_dtype, two_devices
from .library import Gradient, define
from .tensors import acc, dense, flat, ints, is_last, layout, some, unless_empty

# --------------------------------------------------------------------------- means and maxima


def channel_pool(x: Tensor, maximum: bool = False, impl: str | None = None) -> tuple[Tensor, ...]:
    """Average, and maximum if asked, of each channel: `(avg (N, C)[, max (N, C)])`."""
    check_map(x)
    if not runs_kernels(x, impl) or dispatch.declines('channel_pool', x, maximum=maximum):
        return _noted(('c_avg', 'c_max'), reference.channel_pool(x, maximum))
    found = torch.ops.mmattn.channel_pool(x, maximum)[: 2 if maximum else 1]
    return _noted(('c_avg', 'c_max'), found)


def _noted(names, found):
    if record.is_on():
        record.note(dict(zip(names, found, strict=False)))
    return found


def _like(x):
    """What backward needs to know of x, which it does not keep."""
    return x.shape, x.dtype, is_last(x)


def _buffer(g, shape, dtype, last):
    return g.new_empty(shape, dtype=dtype).contiguous(memory_format=layout(last))


def _keep_like(ctx, args, outputs):
    ctx.like = _like(args[0])
    return outputs[2:3]


define(
    'channel_pool(Tensor x, bool maximum) -> (Tensor avg, Tensor max, Tensor at)',
    kernel=lambda kernels, x, maximum: [
        some(t, x) for t in kernels.channel_pool(dense(x), maximum=maximum)
    ],
    fake=lambda x, maximum: (
        acc(x, *x.shape[:2]),
        acc(x, *x.shape[:2]) if maximum else some(None, x),
        ints(x, *x.shape[:2]) if maximum else some(None, x),
    ),
    equations=reference.channel_pool,
    gradient=Gradient(
        _keep_like,
        lambda ctx, saved, gavg, gmax: [ctx.backward_op(gavg, gmax, *saved, *ctx.like)],
        outputs=2,
    ),
)


def _channel_pool_backward(kernels, gavg, gmax, at, *like):
    dx = _buffer(gavg if gmax is None else gmax, *like)
    return kernels.channel_pool_grad(dx, flat(gavg), flat(gmax), at)


define(
    'channel_pool_backward(Tensor? gavg, Tensor? gmax, Tensor at, SymInt[] shape, '
    'ScalarType dtype, bool last) -> Tensor',
    kernel=_channel_pool_backward,
    fake=lambda gavg, gmax, at, *like: _buffer(at, *like),
)


def spatial_pool(x: Tensor, c: Tensor, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """Average and maximum over the channels of `x * c`: `(avg (N, H, W), max (N, H, W))`."""
    (c,) = factors_of(x, 'nc', c)
    if not runs_kernels(x, impl, c):
        return _noted(('s_avg', 's_max'), reference.spatial_pool(x, c))
    return _noted(('s_avg', 's_max'), torch.ops.mmattn.spatial_pool(x, c)[:2])


def _map_of(x):
    n, _, h, w = x.shape
    return n, h, w


def _keep_spatial(ctx, args, outputs):
    ctx.last = is_last(args[0])
    return *args, outputs[2]


def _spatial_pool_grads(ctx, saved, gavg, gmax):
    dx, dc = ctx.backward_op(gavg, gmax, *saved, ctx.last, ctx.needs[0])
    return dx if ctx.needs[0] else None, dc


define(
    'spatial_pool(Tensor x, Tensor c) -> (Tensor avg, Tensor max, Tensor at)',
    kernel=lambda kernels, x, c: kernels.spatial_pool(dense(x), flat(c)),
    fake=lambda x, c: (acc(x, *_map_of(x)), acc(x, *_map_of(x)), ints(x, *_map_of(x))),
    equations=reference.spatial_pool,
    gradient=Gradient(_keep_spatial, _spatial_pool_grads, outputs=2),
)


def _spatial_pool_backward(kernels, gavg, gmax, x, c, at, last, need_x):
    dx, dc = kernels.spatial_pool_grad(
        dense(x, last), flat(c), flat(gavg), flat(gmax), at, need_x=need_x
    )
    return some(dx, x), dc


define(
    'spatial_pool_backward(Tensor? gavg, Tensor? gmax, Tensor x, Tensor c, Tensor at, bool last, '
    'bool need_x) -> (Tensor, Tensor)',
    kernel=_spatial_pool_backward,
    fake=lambda gavg, gmax, x, c, at, last, need_x: (
        torch.empty_like(dense(x, last)) if need_x else some(None, x),
        acc(c, *c.shape),
    ),
)

# ------------------------------------------------------------------------------------ strips


def strip_pool(x: Tensor, channel: bool = False, impl: str | None = None) -> tuple[Tensor, ...]:
    """Averages along one axis: `(ch (N, C, H), cw (N, C, W)[, hw (N, H, W)])` over W, H and C."""
    check_map(x)
    if not runs_kernels(x, impl):
        return _noted(('ch', 'cw', 'hw'), reference.strip_pool(x, channel))
    return _noted(
        ('ch', 'cw', 'hw'), torch.ops.mmattn.strip_pool(x, channel)[: 3 if channel else 2]
    )


def planes_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    return acc(x, n, c, h), acc(x, n, c, w), acc(x, n, h, w)


def _strip_fake(x, channel):
    ch, cw, hw = planes_of(x)
    return ch, cw, hw if channel else some(None, x)


def _keep_nothing(ctx, args, outputs):
    ctx.like = _like(args[0])
    return ()


define(
    'strip_pool(Tensor x, bool channel) -> (Tensor ch, Tensor cw, Tensor hw)',
    kernel=lambda kernels, x, channel: [
        some(t, x) for t in kernels.strip_pool(dense(x), channel=channel)
    ],
    fake=_strip_fake,
    equations=reference.strip_pool,
    gradient=Gradient(
        _keep_nothing,
        lambda ctx, saved, gch, gcw, ghw: [ctx.backward_op([gch, gcw, ghw], *ctx.like)],
        outputs=3,
    ),
)


def _strip_pool_backward(kernels, grads, *like):
    dx = _buffer(next(g for g in grads if g is not None), *like)
    return kernels.strip_pool_grad(dx, *map(flat, grads))


define(
    'strip_pool_backward(Tensor?[] grads, SymInt[] shape, ScalarType dtype, bool last) -> Tensor',
    kernel=_strip_pool_backward,
    fake=lambda grads, *like: _buffer(next(g for g in grads if g is not None), *like),
)

# --------------------------------------------------------------------------- CAT's three pools


def entropy_pool(
    x: Tensor,
    taps: Tensor,
    channel: bool = True,
    spatial: bool = True,
    avg: bool = True,
    max: bool = True,
    ent: bool = True,
    impl: str | None = None,
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """CAT's pooling of both axes in one op: `(c_avg, c_max, c_ent), (s_avg, s_max, s_ent)`.

    The channel statistics are (N, C), the spatial ones (N, H, W); what is not asked for is None.
    Entropies are raw: of a softmax over positions (CAT, eq. 3) and over channels (eq. 6), in nats.
    `taps` holds the k weights of the Gaussian low-pass, zero-padded, that precedes each maximum:
    k x 1 (along H) for the channel maximum, k x k for the spatial one. One tap is no filter.
    """
    taps, constant = check_taps(x, taps)
    if not constant or not runs_kernels(x, impl, taps) or not dispatch.keeps_lists(x):
        found = reference.entropy_pool(x, taps, channel, spatial, avg, max, ent)
        _noted(_ENTROPY_POOLS, [*found[0], *found[1]])
        return found
    stats = torch.ops.mmattn.entropy_pool(x, taps, channel, spatial, avg, max, ent)[:6]
    wanted = [side and pool for side in (channel, spatial) for pool in (avg, max, ent)]
    stats = [t if want else None for t, want in zip(stats, wanted, strict=True)]
    _noted(_ENTROPY_POOLS, stats)
    return tuple(stats[:3]), tuple(stats[3:])


_ENTROPY_POOLS = 'c_avg', 'c_max', 'c_ent', 's_avg', 's_max', 's_ent'


def check_taps(x: Tensor, taps: Tensor) -> tuple[Tensor, bool]:
    """Taps where x is and in its `stats_dtype`, and whether they are constants, as kernels need."""
    check_map(x)
    if taps.dim() != 1 or len(taps) % 2 == 0:
        raise ValueError(f'taps must be 1-D and odd in number, got {tuple(taps.shape)}')
    constant = not (taps.requires_grad and torch.is_grad_enabled())
    if taps.device != x.device:
        if taps.is_meta:
            raise two_devices(x.device, taps.device)
        taps = taps.to(x.device)
    return taps.to(stats_dtype(x)), constant


def entropy_stats(
    x: Tensor, channel: bool, spatial: bool, avg: bool, max: bool, ent: bool
) -> list[Tensor]:
    """The six statistics as `entropy_pool` returns them, without values."""
    n, c, h, w = x.shape
    return [
        acc(x, *shape) if side and pool else some(None, x)
        for side, shape in ((channel, (n, c)), (spatial, (n, h, w)))
        for pool in (avg, max, ent)
    ]


def saved_like(name: str, x: Tensor, *options: Any) -> list[Tensor]:
    """What the backend of x's device keeps of an operator for backward, without values."""
    shapes = dispatch.backend(x.device.type).SAVED[name](x, *options)
    return [
        x.new_empty(shape, dtype=torch.int32 if integers else stats_dtype(x))
        for shape, integers in shapes
    ]


def _entropy_pool(kernels, x, taps, *wanted):
    names = 'channel', 'spatial', 'avg', 'max', 'ent'
    stats, saved = kernels.entropy_pool(
        dense(x), flat(taps), **dict(zip(names, wanted, strict=True))
    )
    empty = saved_like('entropy_pool', x, *wanted)  # of each one's type, where it is left out
    saved = [none if t is None else t for t, none in zip(saved, empty, strict=True)]
    return *(some(t, x) for t in stats), saved


def _entropy_equations(x, taps, *wanted):
    channel, spatial = reference.entropy_pool(x, taps, *wanted)
    return [some(t, x) for t in (*channel, *spatial)]


def _keep_entropy(ctx, args, outputs):
    ctx.last = is_last(args[0])
    return *args[:2], *outputs[6]


define(
    'entropy_pool(Tensor x, Tensor taps, bool channel, bool spatial, bool avg, bool max, bool ent)'
    ' -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[])',
    kernel=_entropy_pool,
    fake=lambda x, taps, *wanted: (
        *entropy_stats(x, *wanted),
        saved_like('entropy_pool', x, *wanted),
    ),
    equations=_entropy_equations,
    gradient=Gradient(
        _keep_entropy,
        lambda ctx, saved, *grads: [
            ctx.backward_op(list(grads), saved[0], saved[1], saved[2:], ctx.last),
            None,
        ],
        outputs=6,
    ),
)


def _entropy_pool_backward(kernels, grads, x, taps, saved, last):
    return kernels.entropy_pool_grad(
        dense(x, last), flat(taps), tuple(map(flat, grads)), tuple(unless_empty(saved))
    )


define(
    'entropy_pool_backward(Tensor?[] grads, Tensor x, Tensor taps, Tensor[] saved, bool last)'
    ' -> Tensor',
    kernel=_entropy_pool_backward,
    fake=lambda grads, x, taps, saved, last: torch.empty_like(dense(x, last)),
)
