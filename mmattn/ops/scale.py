"""Factors onto a feature map x (N, C, H, W): y = x * f, rounded once.

channel_scale   f = c                   c (N, C)
spatial_scale   f = s                   s (N, H, W)
product_scale   f = c s                 CBAM
sum_scale       f = c + s               CAT
coord_scale     f = h w                 h (N, C, H), w (N, C, W): CoordAttention
rank1_scale     f = A or A + (1 - A) A2, A = c o h o w of c (N, C), h (N, H), w (N, W): DRTAM

With an `identity_scale` a, (1,) or (C,), each gives y = x + a (x f - x) (`identity`), by the
operators channel_scale, affine_scale (f = u + v s), coord_scale (f = u + h w) and rank1_scale.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch, identity, record, reference
from .check import factors_of
from .dispatch import knows_identity, runs_kernels, stats_dtype
from .library import Gradient, define
from .tensors import dense, flat, is_last, some


def channel_scale(
    x: Tensor, c: Tensor, impl: str | None = None, *, identity_scale: Tensor | None = None
) -> Tensor:
    """`x * c`, one factor a channel."""
    (c,) = factors_of(x, 'nc', c)
    a = _share(x, identity_scale)
    if record.is_on():
        _note('channel_scale', [c], a)
    return _scaled('channel_scale', x, impl, [identity.part(c, a)])


def spatial_scale(
    x: Tensor, s: Tensor, impl: str | None = None, *, identity_scale: Tensor | None = None
) -> Tensor:
    """`x * s`, one factor a position."""
    (s,) = factors_of(x, 'nhw', s)
    return _scale('spatial_scale', x, impl, [s], identity_scale)


def product_scale(
    x: Tensor,
    c: Tensor,
    s: Tensor,
    impl: str | None = None,
    *,
    identity_scale: Tensor | None = None,
) -> Tensor:
    """`x * c * s`."""
    c, s = factors_of(x, 'nc nhw', c, s)
    return _scale('product_scale', x, impl, [c, s], identity_scale)


def sum_scale(
    x: Tensor,
    c: Tensor,
    s: Tensor,
    impl: str | None = None,
    *,
    identity_scale: Tensor | None = None,
) -> Tensor:
    """`x * (c + s)`."""
    c, s = factors_of(x, 'nc nhw', c, s)
    return _scale('sum_scale', x, impl, [c, s], identity_scale)


def coord_scale(
    x: Tensor,
    h: Tensor,
    w: Tensor,
    impl: str | None = None,
    *,
    identity_scale: Tensor | None = None,
) -> Tensor:
    """`x * h * w` with `h` (N, C, H) and `w` (N, C, W)."""
    h, w = factors_of(x, 'nch ncw', h, w)
    return _scale('coord_scale', x, impl, [h, w], identity_scale)


def rank1_scale(
    x: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | None = None,
    impl: str | None = None,
    *,
    identity_scale: Tensor | None = None,
) -> Tensor:
    """`x * A`, A = c o h o w from `first` = (c (N, C), h (N, H), w (N, W)).

    With a `second` triple, `x * (A + (1 - A) * A2)` (DRTAM, eq. 1 and 2).
    """
    factors = factors_of(x, 'nc nh nw', *first)
    if second is not None:
        factors += factors_of(x, 'nc nh nw', *second)
    return _scale('rank1_scale', x, impl, factors, identity_scale)


# What takes a scale's place with a share of the identity: an operator, and the factors it takes
# made of the scale's own and of a. Of a single map A the second is zero.
def _affine_of_spatial(x, a, s):
    a = a.reshape(-1).expand(x.shape[:2])
    return 1 - a, a, s


def _affine_of_product(x, a, c, s):
    return *identity.part_of_product(c, a), s


def _affine_of_sum(x, a, c, s):
    return *identity.part_of_sum(c, a), s


def _coord_in_part(x, a, h, w):
    u, v = identity.part_of_rows(h, a)
    return v, w, u


def _rank1_in_part(x, a, c, h, w, *second):
    return c, h, w, *(second or (torch.zeros_like(c), h, w)), identity.per_channel(a, c)


_PARTS = dict(
    spatial_scale=('affine_scale', _affine_of_spatial),
    product_scale=('affine_scale', _affine_of_product),
    sum_scale=('affine_scale', _affine_of_sum),
    coord_scale=('coord_scale', _coord_in_part),
    rank1_scale=('rank1_scale', _rank1_in_part),
)


# How many factors an operator has that leaves a share of the identity.
_IN_PART = dict(affine_scale=3, coord_scale=3, rank1_scale=7)


def _share(x, a):
    """An identity scale in `stats_dtype`, its shape checked."""
    identity.check_identity_scale(a, x.shape[1])
    return a if a is None else a.to(stats_dtype(x))


def _note(name, factors, a=None):
    names = _NAMES[name]
    named = dict(zip(names, factors, strict=False))  # of DRTAM's, the second three may be missing
    record.note(None, named, name.partition('_')[0], a)


_NAMES = dict(
    channel_scale='c',
    spatial_scale='s',
    product_scale='cs',
    sum_scale='cs',
    coord_scale='hw',
    rank1_scale=('c', 'h', 'w', 'c2', 'h2', 'w2'),
)


def _in_part(name, x, impl, a, *factors):
    a, (op, made_of) = _share(x, a), _PARTS[name]
    if record.is_on():
        _note(name, factors, a)
    if not runs_kernels(x, impl, factors, a) or not knows_identity(op, x):
        written = getattr(reference, name)
        if name == 'rank1_scale':
            return written(x, factors[:3], factors[3:] or None, a)
        return written(x, *factors, a)
    return getattr(torch.ops.mmattn, op)(x, list(made_of(x, a, *factors)))


def _scale(name, x, impl, factors, a):
    if a is not None:
        return _in_part(name, x, impl, a, *factors)
    if record.is_on():
        _note(name, factors)
    return _scaled(name, x, impl, factors)


def _scaled(name, x, impl, factors):
    if not runs_kernels(x, impl, factors) or dispatch.declines(name, x):
        return _equations(name)(x, factors)
    return getattr(torch.ops.mmattn, name)(x, factors)


def _equations(name):
    written = getattr(reference, name)
    if name == 'rank1_scale':
        return lambda x, f: written(x, f[:3], f[3:6] or None, *f[6:])
    if name == 'coord_scale':
        return lambda x, f: written(x, *f[:2], None, *f[2:])
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
        dx, *found = ctx.backward_op(dy, x, factors, ctx.last, ctx.needs[0])
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
        part=lambda x, factors: len(factors) == _IN_PART.get(name),
    )


for _name in (
    'channel_scale', 'spatial_scale', 'product_scale', 'sum_scale', 'affine_scale', 'coord_scale',
    'rank1_scale',
):  # fmt: skip
    _define(_name)
