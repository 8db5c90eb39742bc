"""The arithmetic of the gates: pooling a feature map into descriptors, applying factors to it.

A gate is pool -> middle (layers on descriptors) -> apply. Every pooling op of a feature map returns
that map first, and the gate hands it on to the applying op: the gradient of the feature map then
flows back through the pooling op, which adds its own terms in the same pass. `rank1_pool`,
`min_max` and `spatial_conv` belong to middles; the rest of these is plain PyTorch modules.
`rank1_attention` is all three in one.

Feature maps `x` and outputs `y` are (N, C, H, W) of one dtype and one memory format. Descriptors
are float32 (float64 for a float64 `x`); factors are brought to that. `c` is (N, C), `s` (N, H, W);
a factor of another shape is a ValueError.
Every op takes `impl`: None (the default of `mmattn.ops.dispatch`), 'fast' or 'reference'.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import functions, reference
from .dispatch import (
    PLAIN,
    check_impl,
    get_impl,
    kernels_for,
    set_impl,
    stats_dtype,
    two_devices,
    use_impl,
)
from .norm import Norm

__all__ = [
    'PLAIN',
    'Norm',
    'channel_gate',
    'channel_pool',
    'check_impl',
    'coord_gate',
    'entropy_pool',
    'get_impl',
    'min_max',
    'product_gate',
    'rank1_attention',
    'rank1_gate',
    'rank1_pool',
    'rank1_strips',
    'set_impl',
    'spatial_conv',
    'spatial_gate',
    'spatial_pool',
    'stats_dtype',
    'strip_pool',
    'sum_gate',
    'two_devices',
    'use_impl',
]


def _run(op, x, impl, *args, **kwargs):
    kernels = kernels_for(x, impl, *args)
    if kernels is None or kernels.declines(op, x, **kwargs):
        return getattr(reference, op)(x, *args, **kwargs)
    return getattr(functions, op)(kernels, x, *args, **kwargs)


def _impl_in(descriptors, impl):
    """`impl`, but the equations for descriptors in 16 bits, which no kernel takes."""
    return impl if descriptors.dtype == stats_dtype(descriptors) else 'reference'


def _check_map(x):
    """Raise ValueError unless x is a floating-point (N, C, H, W)."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f'the ops take a floating-point map (N, C, H, W), got {x.dtype} of {tuple(x.shape)}'
        )


def _check_shapes(shape, axes, tensors):
    """Raise ValueError unless each has its axes of the (N, C, H, W) `shape`: 'nc' is (N, C)."""
    if torch.jit.is_tracing():
        return
    for names, tensor in zip(axes.split(), tensors, strict=True):
        allowed = tuple(shape['nchw'.index(axis)] for axis in names)
        if tuple(tensor.shape) != allowed:
            raise ValueError(
                f'a factor of an input {tuple(shape)} must be ({names.upper()}) = '
                f'{allowed}, got {tuple(tensor.shape)}'
            )


def _factors(x, axes, *factors):
    """The factors in `stats_dtype`, their shapes checked."""
    _check_map(x)
    _check_shapes(x.shape, axes, factors)
    dtype = stats_dtype(x)
    return [f if f.dtype is dtype else _real(f).to(dtype) for f in factors]


def _real(factor):
    if factor.is_complex():
        raise ValueError(f'a factor must be real, got {factor.dtype}')
    return factor


def channel_pool(x: Tensor, maximum: bool = False, impl: str | None = None) -> tuple[Tensor, ...]:
    """Average, and maximum if asked, of each channel: `x, avg (N, C)[, max (N, C)]`."""
    _check_map(x)
    return _run('channel_pool', x, impl, maximum=maximum)


def channel_gate(x: Tensor, c: Tensor, impl: str | None = None) -> Tensor:
    """`x * c`, one factor a channel."""
    return _run('channel_gate', x, impl, *_factors(x, 'nc', c))


def strip_pool(x: Tensor, channel: bool = False, impl: str | None = None) -> tuple[Tensor, ...]:
    """Averages along one axis: `x, ch (N, C, H), cw (N, C, W)[, hw (N, H, W)]` over W, H and C."""
    _check_map(x)
    return _run('strip_pool', x, impl, channel)


def coord_gate(x: Tensor, h: Tensor, w: Tensor, impl: str | None = None) -> Tensor:
    """`x * h * w` with `h` (N, C, H) and `w` (N, C, W)."""
    return _run('coord_gate', x, impl, *_factors(x, 'nch ncw', h, w))


def rank1_gate(
    x: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | None = None,
    impl: str | None = None,
) -> Tensor:
    """`x * A`, A = c o h o w from `first` = (c (N, C), h (N, H), w (N, W)).

    With a `second` triple, `x * (A + (1 - A) * A2)` (DRTAM, eq. 1 and 2).
    """
    first = _factors(x, 'nc nh nw', *first)
    second = None if second is None else _factors(x, 'nc nh nw', *second)
    return _run('rank1_gate', x, impl, first, second)


def min_max(v: Tensor, low: float, high: float, impl: str | None = None) -> Tensor:
    """Each sample of entropies v (N, ...) stretched to [low, high] (CAT, eq. 4).

    A constant sample becomes `low`. Differences that rounding alone can make count as none: eq. 4
    would blow them up to the whole range.
    """
    if v.dim() < 2 or not v.is_floating_point():
        raise ValueError(
            f'min_max takes floating-point samples (N, ...), got {v.dtype} of {tuple(v.shape)}'
        )
    samples = v.flatten(1).unsqueeze(1)  # as planes, which kernels take
    return _run('min_max', samples, _impl_in(v, impl), float(low), float(high)).view_as(v)


def rank1_strips(chunks: Sequence[int], maxima: Sequence[bool] = (False, False)) -> int:
    """How many strips height and width are each made of, see `rank1_pool`: S + M + 1 as a rule."""
    plane, channels = chunks
    plane_max, chunk_max = maxima
    return plane * (1 + plane_max) + channels + (channels if chunk_max else 1)


def _check_chunks(chunks, maxima):
    """`maxima` as two bools; of a single chunk of channels, the maximum is that of all.

    Raise ValueError unless there is at least one chunk an axis.
    """
    if len(chunks) != 2 or min(chunks) < 1:
        raise ValueError(f'chunks must be two integers >= 1, got {tuple(chunks)}')
    if len(maxima) != 2:
        raise ValueError(f'maxima must be two of True and False, got {maxima!r}')
    return bool(maxima[0]), bool(maxima[1]) and chunks[1] > 1


def _check_weights(weights, chunks, maxima):
    """Raise ValueError unless these are `rank1_pool`'s three."""
    channel, strips = (1, 4 * chunks[0]), (1, rank1_strips(chunks, maxima), 3)
    for weight, allowed in zip(weights, (channel, strips, strips), strict=True):
        if tuple(weight.shape) != allowed:
            raise ValueError(
                f'with {tuple(chunks)} chunks and {tuple(maxima)} maxima the weights must be '
                f'{(channel, strips, strips)}, got '
                f'{tuple(tuple(weight.shape) for weight in weights)}'
            )


def rank1_pool(
    planes: Iterable[Tensor],
    weights: Sequence[Tensor],
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None = None,
    maxima: Sequence[bool] = (False, False),
    impl: str | None = None,
) -> tuple[Tensor, ...]:
    """DRTAM's descriptors of three planes, not yet normalised (eq. 3-10, 12-14).

    Gives c (N, C), h (N, H), w (N, W) of `planes`, which are ch (N, C, H), cw (N, C, W) and hw
    (N, H, W) as `strip_pool` gives them. `chunks` = (S, M) counts the chunks of height and width,
    and of the channels. `weights` are those of the channels' convolution (1, 4 S), of which chunk s
    takes 4 s to 4 s + 3 for average and maximum of cw, average and maximum of ch; and those of
    height and width (1, S + M + 1, 3), over the averages of the S chunks of hw, the averages of the
    M chunks of the channels, and the channels' maximum. With `taken`, the (c, h, w) of a first
    attention map, each plane first loses what that map took.

    Two `maxima` may be added, of which no kernel knows: those of the S chunks of hw, after their
    averages, and one of each of the M chunks of the channels in place of one of all.
    """
    maxima = _check_chunks(chunks, maxima)
    ch, cw, _ = planes = tuple(planes)
    shape = (*ch.shape, cw.shape[2])
    _check_shapes(shape, 'nch ncw nhw', planes)
    if taken is not None:
        _check_shapes(shape, 'nc nh nw', taken)
    _check_weights(weights, chunks, maxima)
    dtype = stats_dtype(ch)
    planes = tuple(plane.to(dtype) for plane in planes)
    weights = tuple(weight.to(dtype) for weight in weights)
    taken = None if taken is None else tuple(factor.to(dtype) for factor in taken)
    kernels = None if any(maxima) else kernels_for(planes[0], impl, planes, weights, taken)
    if kernels is None:
        return reference.rank1_pool(planes, weights, chunks, taken, maxima)
    return functions.rank1_pool(kernels, planes, weights, chunks, taken)


def rank1_attention(
    x: Tensor,
    modules: Sequence[tuple[Sequence[Tensor], Sequence[Norm]]],
    mlp: Sequence[Tensor],
    chunks: Sequence[int],
    maxima: Sequence[bool] = (False, False),
    impl: str | None = None,
) -> Tensor:
    """All of DRTAM: `x * A` of one attention module, `x * (A + (1 - A) * A2)` of two.

    `modules` holds for each the `weights` of its `rank1_pool`, and a `Norm` of each descriptor: c,
    h and w. A descriptor is normalised as of one channel; c passes the MLP (eq. 6), `mlp` = weight
    (hidden, C), bias (hidden,), weight (C, hidden), bias (C,); then all pass a sigmoid (eq. 11) and
    are the factors of the map (eq. 2). The mean and var of a norm with a momentum are updated. With
    one of the `maxima` of `rank1_pool`, kernels run the passes over the map, equations the rest.
    """
    maxima = _check_chunks(chunks, maxima)
    channels, hidden = x.shape[1], mlp[0].shape[0]
    allowed = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    if tuple(tuple(t.shape) for t in mlp) != allowed:
        raise ValueError(
            f'of {channels} channels the MLP must be {allowed}, got '
            f'{tuple(tuple(t.shape) for t in mlp)}'
        )
    for weights, _ in modules:
        _check_weights(weights, chunks, maxima)
    tensors = [*mlp]
    for weights, norms in modules:
        tensors += (*weights, *(t for norm in norms for t in norm[:4]))
    kernels = None if any(maxima) else kernels_for(x, impl, tensors)
    if kernels is not None:
        dtype = stats_dtype(x)
        if all(t.dtype == dtype for t in tensors):
            return functions.rank1_attention(kernels, x, modules, mlp, chunks)
    x, *planes = strip_pool(x, channel=True, impl=impl)
    factors = []
    for weights, norms in modules:
        taken = factors[0] if factors else None
        descriptors = rank1_pool(planes, weights, chunks, taken, maxima, impl=impl)
        factors.append(reference.rank1_layers(descriptors, norms, mlp))
    return rank1_gate(x, *factors, impl=impl)


def spatial_conv(maps: Tensor, weight: Tensor, impl: str | None = None) -> Tensor:
    """The zero-padded convolution of maps (N, M, H, W) by a weight (1, M, kh, kw): (N, H, W).

    kh and kw are odd. Maps and weight are of one dtype, which the result has.
    """
    if not torch.jit.is_tracing() and (
        maps.dim() != 4
        or weight.dim() != 4
        or weight.shape[:2] != (1, maps.shape[1])
        or weight.shape[2] % 2 == 0
        or weight.shape[3] % 2 == 0
        or maps.dtype != weight.dtype
    ):
        raise ValueError(
            'spatial_conv takes maps (N, M, H, W), a weight (1, M, odd, odd) of one dtype, got '
            f'{maps.dtype} of {tuple(maps.shape)} and {weight.dtype} of {tuple(weight.shape)}'
        )
    return _run('spatial_conv', maps, _impl_in(maps, impl), weight)


def spatial_pool(x: Tensor, c: Tensor, impl: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Average and maximum over the channels of `x * c`: `x, avg (N, H, W), max (N, H, W)`."""
    return _run('spatial_pool', x, impl, *_factors(x, 'nc', c))


def spatial_gate(x: Tensor, s: Tensor, impl: str | None = None) -> Tensor:
    """`x * s`, one factor a position."""
    return _run('spatial_gate', x, impl, *_factors(x, 'nhw', s))


def product_gate(x: Tensor, c: Tensor, s: Tensor, impl: str | None = None) -> Tensor:
    """`x * c * s`."""
    return _run('product_gate', x, impl, *_factors(x, 'nc nhw', c, s))


def sum_gate(x: Tensor, c: Tensor, s: Tensor, impl: str | None = None) -> Tensor:
    """`x * (c + s)`."""
    return _run('sum_gate', x, impl, *_factors(x, 'nc nhw', c, s))


def entropy_pool(
    x: Tensor,
    taps: Tensor,
    channel: bool = True,
    spatial: bool = True,
    avg: bool = True,
    max: bool = True,
    ent: bool = True,
    impl: str | None = None,
) -> tuple[Tensor, tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """CAT's pooling of both axes in one op: `x, (c_avg, c_max, c_ent), (s_avg, s_max, s_ent)`.

    The channel statistics are (N, C), the spatial ones (N, H, W); what is not asked for is None.
    Entropies are raw: of a softmax over positions (CAT, eq. 3) and over channels (eq. 6), in nats.
    `taps` holds the k weights of the Gaussian low-pass, zero-padded, that precedes each maximum:
    k x 1 (along H) for the channel maximum, k x k for the spatial one. One tap is no filter.
    """
    _check_map(x)
    if taps.dim() != 1 or len(taps) % 2 == 0:
        raise ValueError(f'taps must be 1-D and odd in number, got {tuple(taps.shape)}')
    if taps.requires_grad and torch.is_grad_enabled():
        impl = 'reference'  # the kernels take them for constants
    if taps.device != x.device:
        if taps.is_meta:
            raise two_devices(x.device, taps.device)
        taps = taps.to(x.device)
    taps = taps.to(stats_dtype(x))
    return _run('entropy_pool', x, impl, taps, channel, spatial, avg, max, ent)
