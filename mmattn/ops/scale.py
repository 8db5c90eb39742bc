"""Factors onto a feature map x (N, C, H, W): y = x * f, rounded once.

channel_gate   f = c                   c (N, C)
spatial_gate   f = s                   s (N, H, W)
product_gate   f = c s                 CBAM
sum_gate       f = c + s               CAT
coord_gate     f = h w                 h (N, C, H), w (N, C, W): CoordAttention
rank1_gate     f = A or A + (1 - A) A2, A = c o h o w of c (N, C), h (N, H), w (N, W): DRTAM
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch, reference
from .check import factors_of
from .dispatch import runs_kernels
from .library import Gradient, define
from .tensors import dense, flat, is_last, some


def channel_gate(x: Tensor, c: Tensor, impl: str | None = None) -> Tensor:
    """`x * c`, one factor a channel."""
    return _scale('channel_gate', x, impl, factors_of(x, 'nc', c))


def spatial_gate(x: Tensor, s: Tensor, impl: str | None = None) -> Tensor:
    """`x * s`, one factor a position."""
    return _scale('spatial_gate', x, impl, factors_of(x, 'nhw', s))


def product_gate(x: Tensor, c: Tensor, s: Tensor, impl: str | None = None) -> Tensor:
    """`x * c * s`."""
    return _scale('product_gate', x, impl, factors_of(x, 'nc nhw', c, s))


def sum_gate(x: Tensor, c: Tensor, s: Tensor, impl: str | None = None) -> Tensor:
    """`x * (c + s)`."""
    return _scale('sum_gate', x, impl, factors_of(x, 'nc nhw', c, s))


def coord_gate(x: Tensor, h: Tensor, w: Tensor, impl: str | None = None) -> Tensor:
    """`x * h * w` with `h` (N, C, H) and `w` (N, C, W)."""
    return _scale('coord_gate', x, impl, factors_of(x, 'nch ncw', h, w))


def rank1_gate(
    x: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | None = None,
    impl: str | None = None,
) -> Tensor:
    """`x * A`, A = c o h o w from `first` = (c (N, C), h (N, H), w (N, W)).

    With a `second` triple, `x * (A + (1 - A) * A2)` (DRTAM, eq. 1 and 2).
    """
    factors = factors_of(x, 'nc nh nw', *first)
    if second is not None:
        factors += factors_of(x, 'nc nh nw', *second)
    return _scale('rank1_gate', x, impl, factors)


def _scale(name, x, impl, factors):
    if not runs_kernels(x, impl, factors) or dispatch.declines(name, x):
        return _equations(name)(x, factors)
    return getattr(torch.ops.mmattn, name)(x, factors)


def _equations(name):
    written = getattr(reference, name)
    if name == 'rank1_gate':
        return lambda x, factors: written(x, factors[:3], factors[3:] or None)
    return lambda x, factors: written(x, *factors)


def _keep(ctx, args, outputs):
    x, factors = args
    ctx.last = is_last(x)
    return x, *factors


def _gradient(name):
    def grads(ctx, saved, dy):
        x, *factors = saved
        if not any(ctx.needs[1:]):  # linear in dy, and as differentiable
            forward = getattr(torch.ops.mmattn, name)
            return forward(dense(dy, ctx.last), factors), *[None] * len(factors)
        backward = getattr(torch.ops.mmattn, name + '_backward')
        dx, *found = backward(dy, x, factors, ctx.last, ctx.needs[0])
        return dx if ctx.needs[0] else None, *found

    return Gradient(_keep, grads)


def _define(name):
    def kernel(kernels, x, factors):
        return getattr(kernels, name)(dense(x), *map(flat, factors))

    def backward(kernels, dy, x, factors, last, need_x):
        dx, *grads = getattr(kernels, name + '_grad')(
            dense(x, last), *map(flat, factors), dy=dense(dy, last), need_x=need_x
        )
        return [some(dx, x), *grads]

    define(
        f'{name}_backward(Tensor dy, Tensor x, Tensor[] factors, bool last, bool need_x)'
        ' -> Tensor[]',
        kernel=backward,
        fake=lambda dy, x, factors, last, need_x: [
            torch.empty_like(dense(x, last)) if need_x else some(None, x),
            *(torch.empty_like(flat(f)) for f in factors),
        ],
    )
    define(
        f'{name}(Tensor x, Tensor[] factors) -> Tensor',
        kernel=kernel,
        fake=lambda x, factors: torch.empty_like(dense(x)),
        equations=_equations(name),
        gradient=_gradient(name),
    )


for _name in (
    'channel_gate', 'spatial_gate', 'product_gate', 'sum_gate', 'coord_gate', 'rank1_gate',
):  # fmt: skip
    _define(_name)
