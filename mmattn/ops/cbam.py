"""All of CBAM as one operator: y = x * c * s.

    c = sigmoid(MLP(mean of x) + MLP(maximum of x))           over positions; (N, C)
    s = sigmoid(norm(kernel * [maximum, mean] of x * c))      over channels; (N, H, W)

Forward reads x for each pool, and x to write y: 4 times the map. Backward reads x and dy for the
gradients of c and s, x for what the second pool adds to that of c, and dy to write dx: 5.

With an `identity_scale` a, y = x * (u + v s), u = 1 - a, v = a c (`identity`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import identity, layers, record, reference
from .dispatch import by_kernels
from .library import Gradient, define
from .tensors import acc, dense, dense_pair, flat, ints, is_last, of_given, some


def cbam(
    x: Tensor,
    mlp: Sequence[Tensor | None],
    kernel: Tensor,
    norm: Sequence[Tensor],
    by_batch: bool,
    eps: float,
    identity_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, factors c (N, C) and s (N, H, W), and the batch's moments, by kernels.

    `mlp`: w1 (K, C), b1 (K,) or None, w2 (C, K), b2; `kernel` (1, 2, k, k); `norm`: weight, bias,
    running mean and var, (1,) each, or nothing for none. `by_batch`: it normalises by the batch,
    whose mean and unbiased variance are the moments (2,). With an `identity_scale` a, (1,) or (C,),
    y = x + a (x c s - x); ValueError of another shape.
    """
    identity.check_identity_scale(identity_scale, x.shape[1])
    y, c, s, moments, saved = torch.ops.mmattn.cbam(
        x, *mlp, kernel, list(norm), by_batch, eps, identity_scale
    )
    if record.is_on():
        pools = None
        if by_kernels('cbam', x, identity_scale):
            pooled, _, _, maps, *_ = saved
            avg, peak = pooled.unbind(1)
            pools = dict(c_avg=avg, c_max=peak, s_max=maps[:, 0], s_avg=maps[:, 1])
        record.note(pools, dict(c=c, s=s), 'product', identity_scale)
    return y, c, s, moments


def _cbam(kernels, x, w1, b1, w2, b2, kernel, norm, by_batch, eps, a):
    x, kernel = dense(x), flat(kernel)
    avg, peak, channel_at = kernels.channel_pool(x, maximum=True)
    c, pooled, hidden = layers.channel_factors(kernels, (avg, peak), (w1, b1, w2, b2))
    avg, peak, at = kernels.spatial_pool(x, c)
    s, maps, *norm_state, moments = layers.spatial_factors(
        kernels, (peak, avg), kernel, norm, by_batch, eps
    )
    saved = [pooled, channel_at, hidden, maps, at, *norm_state]
    if a is None:
        y = kernels.product_scale(x, c, s)
    else:
        y = kernels.affine_scale(x, *identity.part_of_product(c, a), s)
    return y, c, s, moments, saved


def results(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    kernel: Tensor,
    norm: Sequence[Tensor],
    by_batch: bool,
    eps: float,
    a: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Tensors for what the operator returns, whose values a kernel writes."""
    n, c, h, w = x.shape
    one = acc(x, 1) if norm else acc(x, 0)
    saved = [
        acc(x, n, 2, c), ints(x, n, c), acc(x, n, 2, w1.shape[0]), acc(x, n, 2, h, w),
        ints(x, n, h, w), acc(x, n, h, w), one, torch.empty_like(one),
    ]  # fmt: skip
    return torch.empty_like(dense(x)), acc(x, n, c), acc(x, n, h, w), acc(x, 2), saved


def _equations(x, w1, b1, w2, b2, kernel, norm, by_batch, eps, a):
    avg, peak = reference.channel_pool(x, True)
    logits = [F.linear(F.linear(v, w1, b1).relu(), w2, b2) for v in (avg, peak)]
    c = (logits[0] + logits[1]).sigmoid()
    avg, peak = reference.spatial_pool(x, c)
    v = reference.spatial_conv(torch.stack((peak, avg), 1), kernel).unsqueeze(1)
    moments = v.new_zeros(2)
    if norm:
        weight, bias, mean, var = norm
        if by_batch:
            with torch.no_grad():
                moments = torch.stack((v.mean(), v.var()))
            v = F.batch_norm(v, None, None, weight, bias, True, 0.0, eps)
        else:
            v = F.batch_norm(v, mean, var, weight, bias, False, 0.0, eps)
    s = v.squeeze(1).sigmoid()
    return reference.product_scale(x, c, s, a), c, s, moments


def _keep(ctx, args, outputs):
    x, *rest, norm, ctx.by_batch, ctx.eps, a = args
    ctx.last, ctx.norm = is_last(x), len(norm)
    return x, *rest, a, *norm[:1], *outputs[1:3], *outputs[4]


def _grads(ctx, saved, dy, gc, gs):
    x, w1, b1, w2, b2, kernel, a, *rest = saved
    weight = [rest.pop(0)] if ctx.norm else []
    dx, *grads = ctx.backward_op(
        dy, gc, gs, x, w1, b1, w2, b2, kernel, a, weight, rest, ctx.by_batch, ctx.eps, ctx.last,
        ctx.needs[0],
    )  # fmt: skip
    grads = iter(grads)
    found = of_given((w1, b1, w2, b2, kernel), grads)
    norm = [next(grads), next(grads), None, None] if ctx.norm else []
    return dx if ctx.needs[0] else None, *found, *norm, None if a is None else next(grads)


def _backward(
    kernels, dy, gc, gs, x, w1, b1, w2, b2, kernel, a, weight, saved, by_batch, eps, last, need_x
):
    (x, dy), kernel = dense_pair(x, dy, last), flat(kernel)
    c, s, pooled, channel_at, hidden, maps, at, before, mean, var = saved
    in_part, da = (), []
    if a is None:
        _, dc, ds = kernels.product_scale_grad(x, c, s, dy=dy, need_x=False)
    else:
        in_part = (identity.per_channel(a, c),)
        u, v = identity.part_of_product(c, *in_part)
        _, du, dv, ds = kernels.affine_scale_grad(x, u, v, s, dy=dy, need_x=False)
        dc, *da = identity.part_of_product_grad(du, dv, c, a)
    (gm, ga), dkernel, norm = layers.spatial_factors_grad(
        kernels, (ds, gs), s, maps, before, kernel, weight[0] if weight else None, mean, var,
        by_batch, eps,
    )  # fmt: skip
    _, more = kernels.spatial_pool_grad(x, c, ga, gm, at, need_x=False)
    (gavg, gmax), grads = layers.channel_factors_grad(
        kernels, (dc, more, gc), c, pooled, hidden, (w1, b1, w2, b2)
    )
    dx = some(None, x)
    if need_x:
        dx = kernels.cbam_dx(dy, c, s, ga, gm, at, gavg, gmax, channel_at, *in_part)
    return [dx, *(t for t in grads if t is not None), dkernel, *norm, *da]


def backward_results(
    dy: Tensor | None,
    gc: Tensor | None,
    gs: Tensor | None,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    kernel: Tensor,
    a: Tensor | None,
    weight: Sequence[Tensor],
    saved: Sequence[Tensor],
    by_batch: bool,
    eps: float,
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    """The same of its backward."""
    return [
        torch.empty_like(dense(x, last)) if need_x else some(None, x),
        *(acc(x, *t.shape) for t in (w1, b1, w2, b2, kernel) if t is not None),
        *(acc(x, 1) for _ in [*weight, *weight]),
        *([] if a is None else [acc(x, *a.shape)]),
    ]


define(
    'cbam(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor kernel, Tensor[] norm, '
    'bool by_batch, float eps, Tensor? identity_scale)'
    ' -> (Tensor y, Tensor c, Tensor s, Tensor moments, Tensor[] saved)',
    kernel=_cbam,
    fake=results,
    equations=_equations,
    gradient=Gradient(_keep, _grads, outputs=3),
    part=lambda *args: args[-1] is not None,
)
define(
    'cbam_backward(Tensor? dy, Tensor? gc, Tensor? gs, Tensor x, Tensor w1, Tensor? b1, '
    'Tensor w2, Tensor? b2, Tensor kernel, Tensor? identity_scale, Tensor[] weight, '
    'Tensor[] saved, bool by_batch, float eps, bool last, bool need_x) -> Tensor[]',
    kernel=_backward,
    fake=backward_results,
)
