"""Factors onto a feature map. Each output element is computed in `stats_dtype` and rounded once.

With an `identity_scale` a, one number, (C,) or (N, C), y = x + a (x f - x) in place of x f.
"""

from ..dispatch import stats_dtype


def _scale(x, factor, a=None):
    dtype = stats_dtype(x)
    if a is not None:
        a = a[..., None, None] if a.dim() == 2 else a.reshape(-1, 1, 1)
        factor = 1 + a.to(dtype) * (factor - 1)
    return (x.to(dtype) * factor).to(x.dtype)


def channel_scale(x, c, identity_scale=None):
    return _scale(x, c[:, :, None, None], identity_scale)


def spatial_scale(x, s, identity_scale=None):
    return _scale(x, s[:, None], identity_scale)


def product_scale(x, c, s, identity_scale=None):
    return _scale(x, c[:, :, None, None] * s[:, None], identity_scale)


def sum_scale(x, c, s, identity_scale=None):
    return _scale(x, c[:, :, None, None] + s[:, None], identity_scale)


def affine_scale(x, u, v, s):
    return _scale(x, u[:, :, None, None] + v[:, :, None, None] * s[:, None])


def coord_scale(x, h, w, identity_scale=None, plus=None):
    factor = h[..., None] * w[:, :, None]
    if plus is not None:  # (N, C)
        factor = factor + plus[..., None, None]
    return _scale(x, factor, identity_scale)


def rank1(c, h, w):
    return c[:, :, None, None] * h[:, None, :, None] * w[:, None, None]


def rank1_scale(x, first, second=None, identity_scale=None):
    attention = rank1(*first)
    if second is not None:
        attention = attention + (1 - attention) * rank1(*second)
    return _scale(x, attention, identity_scale)
