"""Gates of one factor a channel: y = x * c, c made of the means of the channels.

    se    c = sigmoid(W2 relu(W1 mean + b1) + b2)      squeeze-and-excitation
    eca   c = sigmoid(kernel * mean), along the channels   efficient channel attention

Forward reads x for the means, then x to write y: 3 times the map. Backward reads x and dy for the
gradient of c, then dy to write dx = dy * c + g / (H W): 4.

With an `identity_scale` a, c' = 1 + a (c - 1) takes the place of c (`identity`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import identity, layers, record, reference
from .dispatch import by_kernels
from .library import Gradient, define
from .tensors import acc, dense, dense_pair, flat, is_last, of_given, some


def se(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    identity_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and its factors c (N, C), by kernels; w1 (K, C), b1 (K,), w2 (C, K), b2 (C,).

    With an `identity_scale` a, (1,) or (C,), y = x + a (x c - x); ValueError of another shape.
    """
    identity.check_identity_scale(identity_scale, x.shape[1])
    y, c, avg, _ = torch.ops.mmattn.se(x, w1, b1, w2, b2, identity_scale)
    _note('se', x, c, avg, identity_scale)
    return y, c


def eca(x: Tensor, kernel: Tensor, identity_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y and its factors c (N, C), by kernels; kernel (1, 1, k); `identity_scale` as of `se`."""
    identity.check_identity_scale(identity_scale, x.shape[1])
    y, c, avg = torch.ops.mmattn.eca(x, kernel, identity_scale)
    _note('eca', x, c, avg, identity_scale)
    return y, c


def _note(op, x, c, avg, identity_scale):
    if record.is_on():
        pools = dict(c_avg=avg) if by_kernels(op, x, identity_scale) else None
        record.note(pools, dict(c=c), 'channel', identity_scale)


def _se(kernels, x, w1, b1, w2, b2, a):
    x = dense(x)
    avg, _, _ = kernels.channel_pool(x, maximum=False)
    c, _, hidden = layers.channel_factors(kernels, (avg,), (w1, b1, w2, b2))
    return kernels.channel_scale(x, identity.part(c, a)), c, avg, hidden


def _se_equations(x, w1, b1, w2, b2, a):
    (avg,) = reference.channel_pool(x)
    c = F.linear(F.linear(avg, w1, b1).relu(), w2, b2).sigmoid()
    return reference.channel_scale(x, c, a), c


def _keep(ctx, args, outputs):
    ctx.last = is_last(args[0])
    return *args, *outputs[1:]


def _se_grads(ctx, saved, dy, gc):
    dx, *grads = ctx.backward_op(dy, gc, *saved, ctx.last, ctx.needs[0])
    return dx if ctx.needs[0] else None, *of_given(saved[1:6], iter(grads))


def _finish(kernels, dy, x, by, gavg, need_x):
    """dx, or what stands for none; `by`: what x was multiplied by."""
    return kernels.channel_dx(dy, by, gavg, None, None) if need_x else some(None, x)


def _factors_grad(kernels, dy, gc, x, c, a, last):
    """dy as kernels read it, what x was multiplied by, gradients of c, that of a as a list."""
    x, dy = dense_pair(x, dy, last)
    by, da = identity.part(c, a), []
    _, dc = kernels.channel_scale_grad(x, by, dy=dy, need_x=False)
    if a is not None:
        dc, *da = identity.part_grad(dc, c, a)
    return dy, by, (dc, gc), da


def _se_backward(kernels, dy, gc, x, w1, b1, w2, b2, a, c, avg, hidden, last, need_x):
    dy, by, dc, da = _factors_grad(kernels, dy, gc, x, c, a, last)
    (gavg,), grads = layers.channel_factors_grad(
        kernels, dc, c, avg[:, None], hidden, (w1, b1, w2, b2)
    )
    dx = _finish(kernels, dy, x, by, gavg, need_x)
    return [dx, *(t for t in grads if t is not None), *da]


def _dx_fake(x, last, need_x):
    return torch.empty_like(dense(x, last)) if need_x else some(None, x)


def _in_part(*args):
    return args[-1] is not None


define(
    'se(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? identity_scale)'
    ' -> (Tensor y, Tensor c, Tensor avg, Tensor hidden)',
    kernel=_se,
    fake=lambda x, w1, b1, w2, b2, a: (
        torch.empty_like(dense(x)),
        acc(x, *x.shape[:2]),
        acc(x, *x.shape[:2]),
        acc(x, x.shape[0], 1, w1.shape[0]),
    ),
    equations=_se_equations,
    gradient=Gradient(_keep, _se_grads, outputs=2),
    part=_in_part,
)
define(
    'se_backward(Tensor? dy, Tensor? gc, Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, '
    'Tensor? identity_scale, Tensor c, Tensor avg, Tensor hidden, bool last, bool need_x)'
    ' -> Tensor[]',
    kernel=_se_backward,
    fake=lambda dy, gc, x, w1, b1, w2, b2, a, c, avg, hidden, last, need_x: [
        _dx_fake(x, last, need_x),
        *(acc(x, *t.shape) for t in (w1, b1, w2, b2, a) if t is not None),
    ],
)


def _row(avg, kernel):
    """A descriptor as a map one position high, and its kernel."""
    return avg[:, None, None], flat(kernel).unsqueeze(2)


def _eca(kernels, x, kernel, a):
    x = dense(x)
    avg, _, _ = kernels.channel_pool(x, maximum=False)
    c = kernels.spatial_conv(*_row(avg, kernel)).squeeze(1).sigmoid_()
    return kernels.channel_scale(x, identity.part(c, a)), c, avg


def _eca_equations(x, kernel, a):
    (avg,) = reference.channel_pool(x)
    c = F.conv1d(avg[:, None], kernel, padding=kernel.shape[2] // 2).squeeze(1).sigmoid()
    return reference.channel_scale(x, c, a), c


def _eca_grads(ctx, saved, dy, gc):
    dx, dkernel, *da = ctx.backward_op(dy, gc, *saved, ctx.last, ctx.needs[0])
    return dx if ctx.needs[0] else None, dkernel, *(da or [None])


def _eca_backward(kernels, dy, gc, x, kernel, a, c, avg, last, need_x):
    dy, by, dc, da = _factors_grad(kernels, dy, gc, x, c, a, last)
    g = layers.sigmoid_grad(layers.added(dc), c)
    gavg, dkernel = kernels.spatial_conv_grad(*_row(avg, kernel), dy=g[:, None])
    dx = _finish(kernels, dy, x, by, gavg[:, 0, 0], need_x)
    return [dx, dkernel.squeeze(2), *da]


define(
    'eca(Tensor x, Tensor kernel, Tensor? identity_scale) -> (Tensor y, Tensor c, Tensor avg)',
    kernel=_eca,
    fake=lambda x, kernel, a: (
        torch.empty_like(dense(x)), acc(x, *x.shape[:2]), acc(x, *x.shape[:2]),
    ),
    equations=_eca_equations,
    gradient=Gradient(_keep, _eca_grads, outputs=2),
    part=_in_part,
)  # fmt: skip
define(
    'eca_backward(Tensor? dy, Tensor? gc, Tensor x, Tensor kernel, '
    'Tensor? identity_scale, Tensor c, Tensor avg, bool last, bool need_x) -> Tensor[]',
    kernel=_eca_backward,
    fake=lambda dy, gc, x, kernel, a, c, avg, last, need_x: [
        _dx_fake(x, last, need_x),
        *(acc(x, *t.shape) for t in (kernel, a) if t is not None),
    ],
)  # fmt: skip
