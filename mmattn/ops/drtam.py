"""All of DRTAM as one operator: y = x * A, or x * (A + (1 - A) * A2) (eq. 1).

Forward reads the map twice and writes y: the means of its three planes (`strip_pool`), then the
scale. Backward reads x and dy for the gradients of the factors, then dy to write dx: the scaled dy
and the planes' gradients in one pass. That is 7 times the map, where `y = 1.5 x` moves 4.

With an `identity_scale` a, y = x * (1 - a (1 - A) (1 - A2)) (`identity`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch, identity, record, reference
from .check import check_map, check_shapes
from .dispatch import by_kernels, keeps_lists, knows_identity, runs_kernels, stats_dtype
from .library import Gradient, define
from .pool import saved_like, strip_pool
from .scale import rank1_scale
from .tensors import acc, dense, ints, is_last, some


class Norm(NamedTuple):
    """The state of a batch norm of one channel; its tensors are (1,).

    With a momentum it normalises by the batch, and mean and var move by that towards the batch's;
    without (None) it normalises by mean and var.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    momentum: float | None
    eps: float


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
        if weight.shape != allowed:
            raise ValueError(
                f'with {tuple(chunks)} chunks and {tuple(maxima)} maxima the weights must be '
                f'{(channel, strips, strips)}, got '
                f'{tuple(tuple(weight.shape) for weight in weights)}'
            )


# ------------------------------------------------------------------------------- descriptors


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
    check_shapes(shape, 'nch ncw nhw', planes)
    if taken is not None:
        check_shapes(shape, 'nc nh nw', taken)
    _check_weights(weights, chunks, maxima)
    dtype = stats_dtype(ch)
    planes, weights, taken = (
        [t.to(dtype) for t in group] for group in (planes, weights, taken or ())
    )
    kernels = runs_kernels(planes[0], impl, planes, weights, taken) and keeps_lists(planes[0])
    if any(maxima) or not kernels:
        return _noted(reference.rank1_pool(planes, weights, chunks, taken or None, maxima), taken)
    return _noted(torch.ops.mmattn.rank1_pool(planes, weights, taken, list(chunks))[:3], taken)


def _noted(descriptors, taken):
    if record.is_on():
        number = '2' if taken else '1'
        record.note({axis + number: v for axis, v in zip('chw', descriptors, strict=True)})
    return descriptors


def _sizes(planes):
    ch, cw, _ = planes
    return *ch.shape, cw.shape[2]


def _pool_fake(planes, weights, taken, chunks):
    x, (n, c, h, w), rows = planes[0], _sizes(planes), sum(chunks) + 1
    out = acc(x, n, c), acc(x, n, h), acc(x, n, w)
    return *out, [acc(x, n, rows, h), acc(x, n, rows, w), ints(x, n, h), ints(x, n, w)]


def _pool_kernel(kernels, planes, weights, taken, chunks):
    out, saved = kernels.rank1_pool(planes, weights, tuple(chunks), taken or None)
    return *out, list(saved)


def _keep_pool(ctx, args, outputs):
    *groups, ctx.chunks = args
    ctx.lengths = [len(group) for group in groups]
    return *(t for group in groups for t in group), *outputs[3]


def _pool_grads(ctx, saved, *grads):
    a, b, c = ctx.lengths
    groups = saved[:a], saved[a : a + b], saved[a + b : a + b + c]
    return ctx.backward_op(list(grads), *map(list, groups), ctx.chunks, list(saved[a + b + c :]))


def _pool_backward(kernels, grads, planes, weights, taken, chunks, saved):
    dplanes, dweights, dtaken = kernels.rank1_pool_grad(
        planes, weights, tuple(chunks), taken or None, grads, saved
    )
    return [*dplanes, *dweights, *(dtaken or ())]


define(
    'rank1_pool(Tensor[] planes, Tensor[] weights, Tensor[] taken, int[] chunks)'
    ' -> (Tensor c, Tensor h, Tensor w, Tensor[] saved)',
    kernel=_pool_kernel,
    fake=_pool_fake,
    equations=lambda planes, weights, taken, chunks: reference.rank1_pool(
        planes, weights, chunks, taken or None
    ),
    gradient=Gradient(_keep_pool, _pool_grads, outputs=3),
)
define(
    'rank1_pool_backward(Tensor?[] grads, Tensor[] planes, Tensor[] weights, Tensor[] taken, '
    'int[] chunks, Tensor[] saved) -> Tensor[]',
    kernel=_pool_backward,
    fake=lambda grads, planes, weights, taken, chunks, saved: [
        acc(t, *t.shape) for t in (*planes, *weights, *taken)
    ],
)

# ------------------------------------------------------------------------------------- DRTAM


def rank1_attention(
    x: Tensor,
    modules: Sequence[tuple[Sequence[Tensor], Sequence[Norm]]],
    mlp: Sequence[Tensor],
    chunks: Sequence[int],
    maxima: Sequence[bool] = (False, False),
    impl: str | None = None,
    identity_scale: Tensor | None = None,
) -> Tensor:
    """All of DRTAM: `x * A` of one attention module, `x * (A + (1 - A) * A2)` of two.

    `modules` holds for each the `weights` of its `rank1_pool`, and a `Norm` of each descriptor: c,
    h and w. A descriptor is normalised as of one channel; c passes the MLP (eq. 6), `mlp` = weight
    (hidden, C), bias (hidden,), weight (C, hidden), bias (C,); then all pass a sigmoid (eq. 11) and
    are the factors of the map (eq. 2). The mean and var of a norm with a momentum are updated. With
    one of the `maxima` of `rank1_pool`, kernels run the passes over the map, equations the rest.
    With an `identity_scale` a, (1,) or (C,), x + a (y - x) in place of y.
    """
    check_map(x)
    identity.check_identity_scale(identity_scale, x.shape[1])
    maxima = _check_chunks(chunks, maxima)
    channels, hidden = x.shape[1], mlp[0].shape[0]
    allowed = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    if any(t.shape != shape for t, shape in zip(mlp, allowed, strict=True)):
        raise ValueError(
            f'of {channels} channels the MLP must be {allowed}, got '
            f'{tuple(tuple(t.shape) for t in mlp)}'
        )
    for weights, _ in modules:
        _check_weights(weights, chunks, maxima)
    norms, params = [], [*mlp]
    for weights, three in modules:
        c, h, w = three
        params += [*weights, c.weight, h.weight, w.weight, c.bias, h.bias, w.bias]
        norms += three
    running, by_batch, eps = [], [], []
    for norm in norms:
        running += norm.mean, norm.var
        by_batch.append(norm.momentum is not None)
        eps.append(norm.eps)
    dtype, a = stats_dtype(x), identity_scale
    every = [*params, *running] if a is None else [*params, *running, a]
    if all(by_batch):
        running = []  # that nobody reads
    if (
        any(maxima)
        or not runs_kernels(x, impl, every)
        or not keeps_lists(x)
        or any(t.dtype != dtype for t in every)
        or not (a is None or knows_identity('drtam', x))
    ):
        y, moments = _composed(x, params, running, by_batch, eps, chunks, a, maxima, impl)
    else:
        y, moments, saved = torch.ops.mmattn.drtam(
            x, params, running, by_batch, eps, list(chunks), a
        )
        if record.is_on():
            _note(x, params, tuple(chunks), a, saved)
    _update(norms, moments)
    return y


def _note(x, params, chunks, a, saved):
    if not by_kernels('drtam', x, a):
        return
    parts = dispatch.backend(x.device.type).rank1_attention_parts
    planes, stages = parts(x, params, chunks, saved)
    pools, factors = dict(zip(('ch', 'cw', 'hw'), planes, strict=True)), {}
    for number, (descriptors, out) in enumerate(stages, 1):
        behind = '' if number == 1 else '2'
        for axis, v, factor in zip('chw', descriptors, out, strict=True):
            pools[f'{axis}{number}'], factors[axis + behind] = v, factor
    record.note(pools, factors, 'rank1', a)


def _update(norms, moments):
    """Move the running statistics towards the batch's moments, (norms, 2)."""
    moving = [i for i, norm in enumerate(norms) if norm.momentum is not None]
    if not moving:
        return
    first = norms[moving[0]]
    with torch.no_grad():
        if len(moving) == len(norms) and all(
            norm.momentum == first.momentum and norm.mean.dtype is moments.dtype for norm in norms
        ):
            running = [t for norm in norms for t in (norm.mean, norm.var)]
            torch._foreach_lerp_(running, moments.view(-1, 1).unbind(), first.momentum)
            return
        for i in moving:
            norm, pair = norms[i], moments[i].split(1)
            for running, moment in zip((norm.mean, norm.var), pair, strict=True):
                # Not by lerp: it makes a NaN of two infinities, as a variance in 16 bits may be.
                running.mul_(1 - norm.momentum).add_(moment * norm.momentum)


def _modules(params):
    """Of each module the weights of its convolutions, of its norms, and the norms' biases."""
    return [tuple(params[i + k : i + k + 3] for k in (0, 3, 6)) for i in range(4, len(params), 9)]


def _composed(
    x, params, running, by_batch, eps, chunks, a=None, maxima=(False, False), impl='reference'
):
    """y and the norms' moments, by the pools and the scale around layers of PyTorch."""
    planes = strip_pool(x, channel=True, impl=impl)
    mlp, factors, moments, none = params[:4], [], [], (None, None)
    for i, (weights, scales, shifts) in enumerate(_modules(params)):
        taken = factors[0] if factors else None
        descriptors = rank1_pool(planes, weights, chunks, taken, maxima, impl=impl)
        norms = [
            (scales[k], shifts[k], *(running[2 * j : 2 * j + 2] or none), by_batch[j], eps[j])
            for k, j in enumerate(range(3 * i, 3 * i + 3))
        ]
        out, found = reference.rank1_layers(descriptors, norms, mlp)
        factors.append(out)
        moments += found
    zeros = x.new_zeros(2, dtype=stats_dtype(x))
    moments = [zeros if pair is None else pair for pair in moments]
    y = rank1_scale(x, *factors, impl=impl, identity_scale=a)
    return y, torch.stack(moments)


def _fake(x, params, running, by_batch, eps, chunks, a):
    return (
        torch.empty_like(dense(x)),
        acc(x, len(eps), 2),
        saved_like('rank1_attention', x, params, chunks),
    )


def _kernel(kernels, x, params, running, by_batch, eps, chunks, a):
    return kernels.rank1_attention(
        dense(x), params, running, by_batch, eps, tuple(chunks), *_in_part(x, a)
    )


def _in_part(x, a):
    return () if a is None else (a.reshape(-1).expand(x.shape[:2]).contiguous(),)


def _keep(ctx, args, outputs):
    x, params, _, *ctx.rules, a = args
    ctx.last, ctx.count = is_last(x), len(params)
    return x, a, *params, *outputs[2]


def _grads(ctx, saved, dy):
    x, a, *rest = saved
    params, kept = rest[: ctx.count], rest[ctx.count :]
    dx, *dparams = ctx.backward_op(dy, x, params, a, *ctx.rules, kept, ctx.last, ctx.needs[0])
    da = None if a is None else dparams.pop()
    none = [None] * (len(ctx.needs) - 2 - ctx.count)
    return dx if ctx.needs[0] else None, *dparams, *none, da


def _backward(kernels, dy, x, params, a, by_batch, eps, chunks, saved, last, need_x):
    dx, dparams, *da = kernels.rank1_attention_grad(
        dense(x, last), params, by_batch, eps, tuple(chunks), saved, *_in_part(x, a),
        dy=dense(dy, last), need_x=need_x,
    )  # fmt: skip
    return [some(dx, x), *dparams, *(identity.summed(t, a) for t in da)]


# running: mean and variance of each norm, or none where all normalise by the batch.
define(
    'drtam(Tensor x, Tensor[] params, Tensor[] running, bool[] by_batch, float[] eps, '
    'int[] chunks, Tensor? identity_scale) -> (Tensor y, Tensor moments, Tensor[] saved)',
    kernel=_kernel,
    fake=_fake,
    equations=_composed,
    gradient=Gradient(_keep, _grads),
    part=lambda *args: args[-1] is not None,
)
define(
    'drtam_backward(Tensor dy, Tensor x, Tensor[] params, Tensor? identity_scale, '
    'bool[] by_batch, float[] eps, int[] chunks, Tensor[] saved, bool last, bool need_x)'
    ' -> Tensor[]',
    kernel=_backward,
    fake=lambda dy, x, params, a, by_batch, eps, chunks, saved, last, need_x: [
        torch.empty_like(dense(x, last)) if need_x else some(None, x),
        *(acc(x, *p.shape) for p in params),
        *([] if a is None else [acc(x, *a.shape)]),
    ],
)
