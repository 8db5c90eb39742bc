"""Factors onto a feature map. Each output element is computed in `stats_dtype` and rounded once.

With an `identity_scale` a, one number, (C,) or (N, C), y = x + a (x f - x) in place of x f.
"""

from collections.abc import Sequence

from torch import Tensor

from ..dispatch import stats_dtype


def _scale(x, factor, a=None):
    dtype = stats_dtype(x)
    if a is not None:
        a = a[..., None, None] if a.dim() == 2 else a.reshape(-1, 1, 1)
        factor = 1 + a.to(dtype) * (factor - 1)
    return (x.to(dtype) * factor).to(x.dtype)


def channel_scale(x: Tensor, c: Tensor, identity_scale: Tensor | None = None) -> Tensor:
    return _scale(x, c[:, :, None, None], identity_scale)


def spatial_scale(x: Tensor, s: Tensor, identity_scale: Tensor | None = None) -> Tensor:
    return _scale(x, s[:, None], identity_scale)


def product_scale(x: Tensor, c: Tensor, s: Tensor, identity_scale: Tensor | None = None) -> Tensor:
    return _scale(x, c[:, :, None, None] * s[:, None], identity_scale)


def sum_scale(x: Tensor, c: Tensor, s: Tensor, identity_scale: Tensor | None = None) -> Tensor:
    return _scale(x, c[:, :, None, None] + s[:, None], identity_scale)


def affine_scale(x: Tensor, u: Tensor, v: Tensor, s: Tensor) -> Tensor:
    return _scale(x, u[:, :, None, None] + v[:, :, None, None] * s[:, None])


def coord_scale(
    x: Tensor,
    h: Tensor,
    w: Tensor,
    identity_scale: Tensor | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    factor = h[..., None] * w[:, :, None]
    if plus is not None:  # (N, C)
        factor = factor + plus[..., None, None]
    return _scale(x, factor, identity_scale)


def rank1(c: Tensor, h: Tensor, w: Tensor) -> Tensor:
    return c[:, :, None, None] * h[:, None, :, None] * w[:, None, None]


def rank1_scale(
    x: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | None = None,
    identity_scale: Tensor | None = None,
) -> Tensor:
    attention = rank1(*first)
    if second is not None:
        attention = attention + (1 - attention) * rank1(*second)
    return _scale(x, attention, identity_scale)
