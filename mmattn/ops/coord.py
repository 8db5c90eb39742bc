"""All of coordinate attention as one operator: y = x * h * w, h (N, C, H), w (N, C, W).

    strips = [means of x over W, means over H]      (N, C, H + W)
    a = hardswish(norm(W1 strips + b1))             (N, K, H + W)
    h = sigmoid(Wh a + bh) of the first H, w = sigmoid(Ww a + bw) of the others

Forward reads x for the means, then x to write y: 3 times the map. Backward reads x and dy for the
gradients of h and w, then dy to write dx = dy h w + gh / W + gw / H: 4.

With an `identity_scale` a, y = x * (u + v w), u = 1 - a, v = a h (`identity`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch, identity, layers, record, reference
from .dispatch import by_kernels
from .library import Gradient, define
from .pool import planes_of
from .tensors import acc, dense, dense_pair, is_last, some


def coord(
    x: Tensor,
    first: Sequence[Tensor],
    norm: Sequence[Tensor],
    second: Sequence[Tensor],
    by_batch: bool,
    eps: float,
    identity_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, its factors h (N, C, H) and w (N, C, W), and the batch's moments, by kernels.

    `first`: W1 (K, C), b1 (K,); `norm`: weight, bias, running mean and var, (K,) each; `second`:
    Wh (C, K), bh (C,), Ww, bw. `by_batch`: it normalises by the batch, whose means and unbiased
    variances are the moments (2, K). With an `identity_scale` a, (1,) or (C,),
    y = x + a (x h w - x); ValueError of another shape.
    """
    identity.check_identity_scale(identity_scale, x.shape[1])
    y, h, w, moments, saved = torch.ops.mmattn.coord(
        x, *first, *norm, *second, by_batch, eps, identity_scale
    )
    if record.is_on():
        pools = None
        if by_kernels('coord', x, identity_scale):
            # A backend's own whole operator may keep them side by side.
            own = getattr(dispatch.backend(x.device.type), 'coord_strips', None)
            pools = None if own is None else own(x, first[0], saved[0])
            if pools is None:
                strips = _samples(saved[0], x.shape[0])
                pools = strips.split((h.shape[2], w.shape[2]), 2)
            pools = dict(zip(('ch', 'cw'), pools, strict=True))
        record.note(pools, dict(h=h, w=w), 'coord', identity_scale)
    return y, h, w, moments


# The layers work on all samples at once, as columns: (C, N (H + W)). One product of matrices is
# several times quicker than a batch of small ones.


def _columns(v):
    """v (N, C, L) as (C, N L)."""
    return v.transpose(0, 1).flatten(1)


def _samples(v, n):
    """v (C, N L) as (N, C, L)."""
    return v.view(v.shape[0], n, -1).transpose(0, 1).contiguous()


def _split(v, n, lengths):
    """v (K, N (H + W)) as (K, N H) and (K, N W)."""
    return [part.flatten(1) for part in v.view(v.shape[0], n, -1).split(lengths, 2)]


def _joined(first, second, n):
    """The other way round."""
    return torch.cat([t.view(t.shape[0], n, -1) for t in (first, second)], 2).flatten(1)


def _product_grad(g, matrix, v):
    """The gradients of matrix (K, C), of v (C, L) and of a bias (K,), g that of their product."""
    return g @ v.t(), matrix.t() @ g, g.sum(1)


def _coord(kernels, x, w1, b1, weight, bias, mean, var, wh, bh, ww, bw, by_batch, eps, a):
    x, n = dense(x), x.shape[0]
    ch, cw, _ = kernels.strip_pool(x, channel=False)
    lengths = ch.shape[2], cw.shape[2]
    strips = torch.cat((ch.transpose(0, 1), cw.transpose(0, 1)), 2).flatten(1)
    v = torch.addmm(b1[:, None], w1, strips)
    if by_batch:
        mean, var, moments = layers.batch_moments(v[None])
    else:
        mean, var, moments = mean.clone(), var.clone(), v.new_zeros(2, len(mean))
    u = layers.batch_norm(v[None], mean, var, weight, bias, eps)[0]
    ah, aw = _split(F.hardswish(u), n, lengths)
    h = _samples(torch.addmm(bh[:, None], wh, ah), n).sigmoid_()
    w = _samples(torch.addmm(bw[:, None], ww, aw), n).sigmoid_()
    if a is None:
        y = kernels.coord_scale(x, h, w)
    else:
        plus, rows = identity.part_of_rows(h, a)
        y = kernels.coord_scale(x, rows, w, plus)
    return y, h, w, moments, [strips, v, u, mean, var]


def _fake(x, w1, b1, weight, bias, mean, var, wh, bh, ww, bw, by_batch, eps, a):
    n, c, h, w = x.shape
    k = w1.shape[0]
    ch, cw, _ = planes_of(x)
    saved = [acc(x, rows, n * (h + w)) for rows in (c, k, k)] + [acc(x, k), acc(x, k)]
    return torch.empty_like(dense(x)), ch, cw, acc(x, 2, k), saved


def _equations(x, w1, b1, weight, bias, mean, var, wh, bh, ww, bw, by_batch, eps, a):
    ch, cw = reference.strip_pool(x)
    strips = torch.cat((ch, cw), 2)
    v = torch.matmul(w1, strips) + b1[:, None]
    moments = v.new_zeros(2, v.shape[1])
    if by_batch:
        with torch.no_grad():
            moments = torch.stack((v.mean((0, 2)), v.var((0, 2))))
        v = F.batch_norm(v, None, None, weight, bias, True, 0.0, eps)
    else:
        v = F.batch_norm(v, mean, var, weight, bias, False, 0.0, eps)
    ah, aw = F.hardswish(v).split((ch.shape[2], cw.shape[2]), 2)
    h = (torch.matmul(wh, ah) + bh[:, None]).sigmoid()
    w = (torch.matmul(ww, aw) + bw[:, None]).sigmoid()
    return reference.coord_scale(x, h, w, a), h, w, moments


def _keep(ctx, args, outputs):
    x, w1, _, weight, _, _, _, wh, _, ww, _, ctx.by_batch, ctx.eps, a = args
    ctx.last = is_last(x)
    return x, w1, weight, wh, ww, a, *outputs[1:3], *outputs[4]


def _grads(ctx, saved, dy, gh, gw):
    dx, dw1, db1, dweight, dbias, *second = ctx.backward_op(
        dy, gh, gw, *saved[:8], list(saved[8:]), ctx.by_batch, ctx.eps, ctx.last, ctx.needs[0]
    )
    if saved[5] is None:
        second.append(None)
    return dx if ctx.needs[0] else None, dw1, db1, dweight, dbias, None, None, *second


def _backward(
    kernels, dy, gh, gw, x, w1, weight, wh, ww, a, h, w, saved, by_batch, eps, last, need_x
):
    x, dy = dense_pair(x, dy, last)
    strips, v, u, mean, var = saved
    rows, in_part, da = h, (), []
    if a is None:
        _, dh, dw = kernels.coord_scale_grad(x, h, w, dy=dy, need_x=False)
    else:
        plus, rows = identity.part_of_rows(h, a)
        in_part = (plus,)
        _, dv, dw, du = kernels.coord_scale_grad(x, rows, w, plus, dy=dy, need_x=False)
        dh, *da = identity.part_of_rows_grad(du, dv, h, a)
    dh = _columns(layers.sigmoid_grad(dh if gh is None else dh + gh, h))
    dw = _columns(layers.sigmoid_grad(dw if gw is None else dw + gw, w))
    n, lengths = x.shape[0], (h.shape[2], w.shape[2])
    ah, aw = _split(F.hardswish(u), n, lengths)
    dwh, dah, dbh = _product_grad(dh, wh, ah)
    dww, daw, dbw = _product_grad(dw, ww, aw)
    g = torch.ops.aten.hardswish_backward(_joined(dah, daw, n), u)
    g, dweight, dbias = layers.batch_norm_grad(g[None], v[None], weight, mean, var, by_batch, eps)
    dw1, dstrips, db1 = _product_grad(g[0], w1, strips)
    dx = some(None, x)
    if need_x:
        gch, gcw = (_samples(t, n) for t in _split(dstrips, n, lengths))
        dx = kernels.coord_dx(dy, rows, w, gch, gcw, *in_part)
    return [dx, dw1, db1, dweight, dbias, dwh, dbh, dww, dbw, *da]


def _backward_fake(dy, gh, gw, x, w1, weight, wh, ww, a, h, w, saved, by_batch, eps, last, need_x):
    k, c = w1.shape
    dx = torch.empty_like(dense(x, last)) if need_x else some(None, x)
    shapes = [(k, c), (k,), (k,), (k,), (c, k), (c,), (c, k), (c,)]
    shapes += [] if a is None else [a.shape]
    return [dx, *(acc(x, *shape) for shape in shapes)]


define(
    'coord(Tensor x, Tensor w1, Tensor b1, Tensor weight, Tensor bias, Tensor mean, Tensor var, '
    'Tensor wh, Tensor bh, Tensor ww, Tensor bw, bool by_batch, float eps, '
    'Tensor? identity_scale)'
    ' -> (Tensor y, Tensor h, Tensor w, Tensor moments, Tensor[] saved)',
    kernel=_coord,
    fake=_fake,
    equations=_equations,
    gradient=Gradient(_keep, _grads, outputs=3),
    part=lambda *args: args[-1] is not None,
)
define(
    'coord_backward(Tensor? dy, Tensor? gh, Tensor? gw, Tensor x, Tensor w1, Tensor weight, '
    'Tensor wh, Tensor ww, Tensor? identity_scale, Tensor h, Tensor w, Tensor[] saved, '
    'bool by_batch, float eps, bool last, bool need_x) -> Tensor[]',
    kernel=_backward,
    fake=_backward_fake,
)
