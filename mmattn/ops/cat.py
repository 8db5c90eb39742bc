"""All of CAT's parallel arrangement as one operator (eq. 1-7): y = x * (c + s).

    c = sigmoid(C'_A C_w), C'_A = sum of alpha_p MLP(pool p)                 (N, C)
    s = sigmoid(S'_A S_w), S'_A = sigmoid(kernel * sum of beta_p map p)      (N, H, W)

Pools are average, maximum of the low-passed map and normalised entropy (eq. 4), of positions and of
channels; the average map is subtracted. By Algorithm 1, c = C_w sigmoid(C'_A) and s = S_w S'_A.

Forward reads x for all pools in one pass, and to write y: 3 times the map. Backward reads x and dy
for the gradients of c and s, then both again to write dx: 5.

With an `identity_scale` a, y = x * (u + v s), u = 1 + a (c - 1), v = a (`identity`).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import identity, layers, record, reference
from .dispatch import by_kernels
from .library import Gradient, define
from .pool import check_taps, saved_like
from .tensors import acc, dense, dense_pair, flat, is_last, of_given, some, unless_empty


def cat(
    x: Tensor,
    taps: Tensor,
    mlp: Sequence[Tensor],
    kernel: Tensor,
    interior: Sequence[Tensor | None],
    exterior: Tensor | None,
    pools: Sequence[bool],
    entropy_range: Sequence[float],
    equation: bool,
    identity_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y and its factors c (N, C) and s (N, H, W), by kernels.

    `mlp`: w1 (K, C), w2 (C, K); `kernel` (1, 1, k, k) convolves the weighted sum of the maps,
    (1, P, k, k) the weighted maps side by side; `interior`: alpha and beta, (P,) each or None for
    ones; `exterior`: C_w and S_w (2,), or None for ones; `pools`: which of average, maximum and
    entropy. `equation`: by eq. 1, else by Algorithm 1. With an `identity_scale` a, (1,) or (C,),
    y = x + a (x (c + s) - x); ValueError of another shape.
    """
    identity.check_identity_scale(identity_scale, x.shape[1])
    taps, constant = check_taps(x, taps)
    assert constant
    low, high = map(float, entropy_range)
    y, c, s, saved = torch.ops.mmattn.cat(
        x, taps, *mlp, kernel, *interior, exterior, list(pools), low, high, equation,
        identity_scale,
    )  # fmt: skip
    if record.is_on():
        found = None
        if by_kernels('cat', x, identity_scale):
            inner, z, channel, spatial, *_ = saved
            found = dict(C_A=inner, S_A=z)
            for names, stack in (
                (('c_avg', 'c_max', 'c_ent'), channel),
                (('s_neg', 's_max', 's_ent'), spatial),
            ):
                wanted = [name for name, want in zip(names, pools, strict=True) if want]
                found.update(zip(wanted, stack.unbind(1), strict=True))
        record.note(found, dict(c=c, s=s), 'sum', identity_scale)
    return y, c, s


def _stack(stats, entropy, signs):
    """The pools' results side by side, the entropy as it is normalised."""
    found = [
        s if sign > 0 else -s for s, sign in zip(stats[:2], signs, strict=True) if s is not None
    ]
    return torch.stack(found if entropy is None else [*found, entropy], 1)


def _normalised(kernels, ent, low, high):
    if ent is None:
        return None
    return kernels.min_max(ent.flatten(1)[:, None], low, high).view_as(ent)


def _maps(stack, beta, side_by_side):
    if side_by_side:
        return stack if beta is None else stack * beta[:, None, None]
    if beta is None:
        return stack.sum(1, keepdim=True)
    return torch.einsum('nphw,p->nhw', stack, beta)[:, None].contiguous()


@layers.or_own
def cat_factors(
    kernels: Any,
    channel: Sequence[Tensor | None],
    spatial: Sequence[Tensor | None],
    weights: Sequence[Any],
    low: float,
    high: float,
    equation: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """c (N, C) and s (N, H, W) of the pools, (average, maximum, entropy) each, and what their
    gradient needs: the stacks (N, P, C) and (N, P, H, W), hidden values, C'_A and the sigmoid S'_A.

    `weights`: w1, w2, kernel, alpha, beta, exterior weights.
    """
    w1, w2, kernel, alpha, beta, outer = weights
    channels = _stack(channel[:2], _normalised(kernels, channel[2], low, high), (1, 1))
    positions = _stack(spatial[:2], _normalised(kernels, spatial[2], low, high), (-1, 1))
    inner, hidden = layers.mlp(channels, w1, None, w2, None, alpha)
    z = kernels.spatial_conv(_maps(positions, beta, kernel.shape[1] > 1), kernel).sigmoid_()
    c_w, s_w = (1.0, 1.0) if outer is None else outer.unbind()
    if equation:
        c, s = (inner * c_w).sigmoid_(), (z * s_w).sigmoid_()
    else:
        c, s = inner.sigmoid() * c_w, z * s_w
    return c, s, [channels, positions, hidden, inner, z]


def _cat(kernels, x, taps, w1, w2, kernel, alpha, beta, outer, pools, low, high, equation, a):
    x, kernel = dense(x), flat(kernel)
    avg, peak, ent = pools
    stats, pooled = kernels.entropy_pool(
        x, flat(taps), channel=True, spatial=True, avg=avg, max=peak, ent=ent
    )
    weights = w1, w2, kernel, alpha, beta, outer
    c, s, (*inner, hidden, c_a, s_a) = cat_factors(
        kernels, stats[:3], stats[3:], weights, low, high, equation
    )
    ents = [some(stats[2], x), some(stats[5], x)]
    empty = saved_like('entropy_pool', x, True, True, *pools)
    pooled = [none if t is None else t for t, none in zip(pooled, empty, strict=True)]
    if a is None:
        y = kernels.sum_scale(x, c, s)
    else:
        y = kernels.affine_scale(x, *identity.part_of_sum(c, a), s)
    return y, c, s, [c_a, s_a, *inner, hidden, *ents, *pooled]


def results(
    x: Tensor,
    taps: Tensor,
    w1: Tensor,
    w2: Tensor,
    kernel: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    outer: Tensor | None,
    pools: Sequence[bool],
    low: float,
    high: float,
    equation: bool,
    a: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Tensors for what the operator returns, whose values a kernel writes."""
    n, c, h, w = x.shape
    p = sum(pools)
    saved = [
        acc(x, n, c), acc(x, n, h, w), acc(x, n, p, c), acc(x, n, p, h, w),
        acc(x, n, p, w1.shape[0]),
        acc(x, n, c) if pools[2] else some(None, x),
        acc(x, n, h, w) if pools[2] else some(None, x),
    ]  # fmt: skip
    saved += saved_like('entropy_pool', x, True, True, *pools)
    return torch.empty_like(dense(x)), acc(x, n, c), acc(x, n, h, w), saved


def _equations(x, taps, w1, w2, kernel, alpha, beta, outer, pools, low, high, equation, a):
    channel, spatial = reference.entropy_pool(x, taps, True, True, *pools)
    stacks = []
    for (avg, peak, ent), sign in ((channel, 1), (spatial, -1)):
        ent = None if ent is None else reference.min_max(ent, low, high)
        stacks.append(_stack((avg, peak), ent, (sign, 1)))
    stats, maps = stacks
    out = F.linear(F.linear(stats, w1).relu(), w2)
    inner = out.sum(1) if alpha is None else torch.einsum('npc,p->nc', out, alpha)
    z = reference.spatial_conv(_maps(maps, beta, kernel.shape[1] > 1), kernel).sigmoid()
    c_w, s_w = (1.0, 1.0) if outer is None else outer.unbind()
    if equation:
        c, s = (inner * c_w).sigmoid(), (z * s_w).sigmoid()
    else:
        c, s = inner.sigmoid() * c_w, z * s_w
    return reference.sum_scale(x, c, s, a), c, s


def _keep(ctx, args, outputs):
    *tensors, ctx.pools, ctx.low, ctx.high, ctx.equation, a = args
    ctx.last = is_last(args[0])
    return *tensors, a, *outputs[1:3], *outputs[3]


def _grads(ctx, saved, dy, gc, gs):
    x, taps, w1, w2, kernel, alpha, beta, outer, a, c, s, *saved = saved
    dx, dw1, dw2, dkernel, *more = ctx.backward_op(
        dy, gc, gs, x, taps, w1, w2, kernel, alpha, beta, outer, a, c, s, saved, ctx.pools,
        ctx.low, ctx.high, ctx.equation, ctx.last, ctx.needs[0],
    )  # fmt: skip
    vectors = of_given((alpha, beta, outer, a), iter(more))
    return dx if ctx.needs[0] else None, None, dw1, dw2, dkernel, *vectors


def _exterior_grad(t, inner, factor, weight, equation):
    """Of a factor sigmoid(inner * weight) (`equation`) or act * weight, t its gradient: those of
    inner and weight. `inner` is act itself where it is that already."""
    if equation:
        t = layers.sigmoid_grad(t, factor)
    return t if weight is None else t * weight, None if weight is None else (t * inner).sum()


def _unstack(kernels, dstack, ent, pools, signs, low, high):
    """The gradients of average, maximum and raw entropy."""
    parts, found = iter(dstack.unbind(1)), []
    for wanted, sign in zip(pools[:2], signs, strict=True):
        g = next(parts) if wanted else None
        found.append(g if g is None else flat(g if sign > 0 else -g))
    if not pools[2]:
        return [*found, None]
    g = kernels.min_max_grad(
        ent.flatten(1)[:, None], low, high, dy=flat(next(parts).flatten(1)[:, None])
    )
    return [*found, g.view_as(ent)]


@layers.or_own
def cat_factors_grad(
    kernels: Any,
    grads: Sequence[Tensor | None],
    factors: Sequence[Tensor],
    kept: Sequence[Tensor],
    entropies: Sequence[Tensor | None],
    pools: Sequence[bool],
    weights: Sequence[Any],
    low: float,
    high: float,
    equation: bool,
) -> tuple[Any, Any, list[Tensor | None]]:
    """The gradients of both triples of pools, and of `weights`.

    `grads`: of c two, added up, then of s; the second of each may be None. `kept`: as `cat_factors`
    leaves it; `entropies`: as they were pooled, or None.
    """
    (c, s), (channel, spatial, hidden, inner, z) = factors, kept
    w1, w2, kernel, alpha, beta, outer = weights
    c_w, s_w = (None, None) if outer is None else outer.unbind()
    act = inner if equation else inner.sigmoid()
    dinner, dc_w = _exterior_grad(layers.added(grads[:2]), act, c, c_w, equation)
    if not equation:
        dinner = layers.sigmoid_grad(dinner, act)
    dz, ds_w = _exterior_grad(layers.added(grads[2:]), z, s, s_w, equation)
    dz = layers.sigmoid_grad(dz, z)

    dchannel, (dw1, _, dw2, _), dalpha = layers.mlp_grad(
        dinner, channel, hidden, w1, None, w2, None, alpha
    )
    side_by_side = kernel.shape[1] > 1
    dmaps, dkernel = kernels.spatial_conv_grad(
        flat(_maps(spatial, beta, side_by_side)), kernel, dy=flat(dz)
    )
    dbeta = None if beta is None else (dmaps * spatial).sum((0, 2, 3))
    dspatial = dmaps.expand_as(spatial) if beta is None else dmaps * beta[:, None, None]
    stacks = zip((dchannel, dspatial), entropies, (1, -1), strict=True)
    of_pools = [_unstack(kernels, g, ent, pools, (sign, 1), low, high) for g, ent, sign in stacks]
    douter = None if outer is None else torch.stack((dc_w, ds_w))
    return *of_pools, [dw1, dw2, dkernel, dalpha, dbeta, douter]


def _backward(
    kernels, dy, gc, gs, x, taps, w1, w2, kernel, alpha, beta, outer, a, c, s, saved, pools, low,
    high, equation, last, need_x,
):  # fmt: skip
    (x, dy), kernel = dense_pair(x, dy, last), flat(kernel)
    c_a, s_a, *inner, hidden, c_ent, s_ent = saved[:7]
    by, in_part, da = c, (), []
    if a is None:
        _, dc, ds = kernels.sum_scale_grad(x, c, s, dy=dy, need_x=False)
    else:
        by, v = identity.part_of_sum(c, a)
        in_part = (v,)
        _, du, dv, ds = kernels.affine_scale_grad(x, by, v, s, dy=dy, need_x=False)
        dc, *da = identity.part_of_sum_grad(du, dv, c, a)
    dchannel, dspatial, dweights = cat_factors_grad(
        kernels, (dc, gc, ds, gs), (c, s), [*inner, hidden, c_a, s_a], unless_empty((c_ent, s_ent)),
        pools, (w1, w2, kernel, alpha, beta, outer), low, high, equation,
    )  # fmt: skip
    dx = some(None, x)
    if need_x:
        kept = tuple(unless_empty(saved[7:]))
        dx = kernels.entropy_dx(
            x, flat(taps), dy, by, s, (*dchannel, *dspatial), kept, *in_part
        )  # fmt: skip
    return [dx, *(t for t in dweights if t is not None), *da]


def backward_results(
    dy: Tensor | None,
    gc: Tensor | None,
    gs: Tensor | None,
    x: Tensor,
    taps: Tensor,
    w1: Tensor,
    w2: Tensor,
    kernel: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    outer: Tensor | None,
    a: Tensor | None,
    c: Tensor,
    s: Tensor,
    saved: Sequence[Tensor],
    pools: Sequence[bool],
    low: float,
    high: float,
    equation: bool,
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    """The same of its backward."""
    return [
        torch.empty_like(dense(x, last)) if need_x else some(None, x),
        *(acc(x, *t.shape) for t in (w1, w2, kernel, alpha, beta, outer, a) if t is not None),
    ]


define(
    'cat(Tensor x, Tensor taps, Tensor w1, Tensor w2, Tensor kernel, Tensor? alpha, Tensor? beta, '
    'Tensor? outer, bool[] pools, float low, float high, bool equation, Tensor? identity_scale)'
    ' -> (Tensor y, Tensor c, Tensor s, Tensor[] saved)',
    kernel=_cat,
    fake=results,
    equations=_equations,
    gradient=Gradient(_keep, _grads, outputs=3),
    part=lambda *args: args[-1] is not None,
)
define(
    'cat_backward(Tensor? dy, Tensor? gc, Tensor? gs, Tensor x, Tensor taps, Tensor w1, Tensor w2, '
    'Tensor kernel, Tensor? alpha, Tensor? beta, Tensor? outer, '
    'Tensor? identity_scale, Tensor c, Tensor s, Tensor[] saved, bool[] pools, '
    'float low, float high, bool equation, bool last, bool need_x)'
    ' -> Tensor[]',
    kernel=_backward,
    fake=backward_results,
)
