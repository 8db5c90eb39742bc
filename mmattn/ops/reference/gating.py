"""Factors onto a feature map. Each output element is computed in `stats_dtype` and rounded once."""

from ..dispatch import stats_dtype


def _scale(x, factor):
    return (x.to(stats_dtype(x)) * factor).to(x.dtype)


def channel_gate(x, c):
    return _scale(x, c[:, :, None, None])


def spatial_gate(x, s):
    return _scale(x, s[:, None])


def product_gate(x, c, s):
    return _scale(x, c[:, :, None, None] * s[:, None])


def sum_gate(x, c, s):
    return _scale(x, c[:, :, None, None] + s[:, None])


def coord_gate(x, h, w):
    return _scale(x, h[..., None] * w[:, :, None])


def _rank1(c, h, w):
    return c[:, :, None, None] * h[:, None, :, None] * w[:, None, None]


def rank1_gate(x, first, second=None):
    attention = _rank1(*first)
    if second is not None:
        attention = attention + (1 - attention) * _rank1(*second)
    return _scale(x, attention)
