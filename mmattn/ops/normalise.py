"""CAT's normalised entropies (eq. 4)."""

import torch
from torch import Tensor

from . import reference
from .dispatch import runs_kernels, stats_dtype
from .library import Gradient, define
from .tensors import acc, flat


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
    low, high = float(low), float(high)
    if v.dtype != stats_dtype(v) or not runs_kernels(samples, impl):
        return reference.min_max(samples, low, high).view_as(v)
    return torch.ops.mmattn.min_max(samples, low, high).view_as(v)


def _keep(ctx, args, outputs):
    v, *ctx.range = args
    return (v,)


define(
    'min_max(Tensor v, float low, float high) -> Tensor',
    kernel=lambda kernels, v, low, high: kernels.min_max(flat(v), low, high),
    fake=lambda v, low, high: acc(v, *v.shape),
    equations=reference.min_max,
    gradient=Gradient(_keep, lambda ctx, saved, dy: [ctx.backward_op(dy, *saved, *ctx.range)]),
)
define(
    'min_max_backward(Tensor dy, Tensor v, float low, float high) -> Tensor',
    kernel=lambda kernels, dy, v, low, high: kernels.min_max_grad(flat(v), low, high, dy=flat(dy)),
    fake=lambda dy, v, low, high: acc(v, *v.shape),
)
