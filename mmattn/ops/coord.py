"""All of coordinate attention as one operator: y = x * h * w, h (N, C, H), w (N, C, W).

    strips = [means of x over W, means over H]      (N, C, H + W)
    a = hardswish(norm(W1 strips + b1))             (N, K, H + W)
    h = sigmoid(Wh a + bh) of the first H, w = sigmoid(Ww a + bw) of the others

Forward reads x for the means, then x to write y: 3 times the map. Backward reads x and dy for the
gradients of h and w, then dy to write dx = dy h w + gh / W + gw / H: 4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import layers, reference
from .library import Gradient, define
from .pool import planes_of
from .tensors import acc, dense, flat, is_last, some


def coord(
    x: Tensor,
    first: Sequence[Tensor],
    norm: Sequence[Tensor],
    second: Sequence[Tensor],
    by_batch: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, its factors h (N, C, H) and w (N, C, W), and the batch's moments, by kernels.

    `first`: W1 (K, C), b1 (K,); `norm`: weight, bias, running mean and var, (K,) each; `second`:
    Wh (C, K), bh (C,), Ww, bw. `by_batch`: it normalises by the batch, whose means and unbiased
    variances are the moments (2, K).
    """
    y, h, w, moments, _ = torch.ops.mmattn.coord(x, *first, *norm, *second, by_batch, eps)
    return y, h, w, moments


def _product(matrix, v, bias):
    """matrix (K, C) times v (N, C, L), and bias (K,) added."""
    return torch.baddbmm(bias[:, None], matrix.expand(v.shape[0], -1, -1), v)


def _product_grad(g, matrix, v):
    """The gradients of `_product`'s three: g (N, K, L)."""
    rows = g.transpose(0, 1).flatten(1)
    dmatrix = rows @ v.transpose(0, 1).flatten(1).t()
    dv = torch.bmm(matrix.t().expand(g.shape[0], -1, -1), g)
    return dmatrix, dv, rows.sum(1)


def _coord(kernels, x, w1, b1, weight, bias, mean, var, wh, bh, ww, bw, by_batch, eps):
    x = dense(x)
    ch, cw, _ = kernels.strip_pool(x, channel=False)
    lengths = ch.shape[2], cw.shape[2]
    strips = torch.cat((ch, cw), 2)
    v = _product(w1, strips, b1)
    if by_batch:
        mean, var, moments = layers.batch_moments(v)
    else:
        mean, var, moments = mean.clone(), var.clone(), v.new_zeros(2, len(mean))
    u = layers.batch_norm(v, mean, var, weight, bias, eps)
    a = F.hardswish(u)
    ah, aw = a.split(lengths, 2)
    h, w = _product(wh, ah, bh).sigmoid_(), _product(ww, aw, bw).sigmoid_()
    return kernels.coord_gate(x, h, w), h, w, moments, [strips, v, u, mean, var]


def _fake(x, w1, b1, weight, bias, mean, var, wh, bh, ww, bw, by_batch, eps):
    n, c, h, w = x.shape
    k = w1.shape[0]
    ch, cw, _ = planes_of(x)
    saved = [
        acc(x, n, c, h + w), acc(x, n, k, h + w), acc(x, n, k, h + w), acc(x, k), acc(x, k),
    ]  # fmt: skip
    return torch.empty_like(dense(x)), ch, cw, acc(x, 2, k), saved


def _equations(x, w1, b1, weight, bias, mean, var, wh, bh, ww, bw, by_batch, eps):
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
    return reference.coord_gate(x, h, w), h, w, moments


def _keep(ctx, args, outputs):
    x, w1, _, weight, _, _, _, wh, _, ww, _, ctx.by_batch, ctx.eps = args
    ctx.last = is_last(x)
    return x, w1, weight, wh, ww, *outputs[1:3], *outputs[4]


def _grads(ctx, saved, dy, gh, gw):
    dx, dw1, db1, dweight, dbias, *second = torch.ops.mmattn.coord_backward(
        dy, gh, gw, *saved[:7], list(saved[7:]), ctx.by_batch, ctx.eps, ctx.last, ctx.needs[0]
    )
    return dx if ctx.needs[0] else None, dw1, db1, dweight, dbias, None, None, *second


def _backward(kernels, dy, gh, gw, x, w1, weight, wh, ww, h, w, saved, by_batch, eps, last, need_x):
    x = dense(x, last)
    dy = torch.zeros_like(x) if dy is None else dense(dy, last)
    strips, v, u, mean, var = saved
    carry, dh, dw = kernels.coord_gate_grad(x, h, w, dy=dy, need_x=need_x and kernels.CARRIES)
    dh = layers.sigmoid_grad(dh if gh is None else dh + gh, h)
    dw = layers.sigmoid_grad(dw if gw is None else dw + gw, w)
    lengths = h.shape[2], w.shape[2]
    ah, aw = F.hardswish(u).split(lengths, 2)
    dwh, dah, dbh = _product_grad(dh, wh, ah)
    dww, daw, dbw = _product_grad(dw, ww, aw)
    g = torch.ops.aten.hardswish_backward(torch.cat((dah, daw), 2), u)
    g, dweight, dbias = layers.batch_norm_grad(g, v, weight, mean, var, by_batch, eps)
    dw1, dstrips, db1 = _product_grad(g, w1, strips)
    dx = some(None, x)
    if need_x:
        gch, gcw = map(flat, dstrips.split(lengths, 2))
        dx = kernels.coord_dx(dy, h, w, gch, gcw, carry)
    return [dx, dw1, db1, dweight, dbias, dwh, dbh, dww, dbw]


def _backward_fake(dy, gh, gw, x, w1, weight, wh, ww, h, w, saved, by_batch, eps, last, need_x):
    k, c = w1.shape
    dx = torch.empty_like(dense(x, last)) if need_x else some(None, x)
    shapes = (k, c), (k,), (k,), (k,), (c, k), (c,), (c, k), (c,)
    return [dx, *(acc(x, *shape) for shape in shapes)]


define(
    'coord(Tensor x, Tensor w1, Tensor b1, Tensor weight, Tensor bias, Tensor mean, Tensor var, '
    'Tensor wh, Tensor bh, Tensor ww, Tensor bw, bool by_batch, float eps)'
    ' -> (Tensor y, Tensor h, Tensor w, Tensor moments, Tensor[] saved)',
    kernel=_coord,
    fake=_fake,
    equations=_equations,
    gradient=Gradient(_keep, _grads, outputs=3),
)
define(
    'coord_backward(Tensor? dy, Tensor? gh, Tensor? gw, Tensor x, Tensor w1, Tensor weight, '
    'Tensor wh, Tensor ww, Tensor h, Tensor w, Tensor[] saved, bool by_batch, float eps, '
    'bool last, bool need_x) -> Tensor[]',
    kernel=_backward,
    fake=_backward_fake,
)
