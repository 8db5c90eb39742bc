"""Scales whose factor has a part for each row and one for each column of a sample's matrix.

A channel vector is one number a row in the contiguous format and one a column in channels_last,
a spatial map the other way round; a factor that treats both alike needs one kernel for the two
formats. Rank-1 factors belong here too: h o w is a spatial map.

The factor f by MODE, of row part r and column part q:
'row' r; 'col' q; 'product' r q; 'sum' r + q; 'dual' a + (1 - a) b of a = r q and b = r2 q2;
'rows' r + r2 q; 'cols' q + q2 r. SHARE, 'row' or 'col', where channels are: 1 + share (f - 1).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import block_of, cdiv, channels_last, filled, launch, matrix_block


@triton.jit
def load_vector(ptr, w_ptr, n, length, i, mask, width, OUTER: tl.constexpr):
    """Entries i of sample n's part, `length` long; OUTER: of the map h o w, h at ptr."""
    if OUTER:
        h = tl.load(ptr + n * (length // width) + i // width, mask=mask, other=0.0)
        return h * tl.load(w_ptr + n * width + i % width, mask=mask, other=0.0)
    return tl.load(ptr + n * length + i, mask=mask, other=0.0)


@triton.jit
def load_row_part(ptr, w_ptr, n, rows, i, mask, width, MODE: tl.constexpr, OUTER: tl.constexpr):
    # A part that MODE does not have is a constant that nobody reads.
    part = 0.0
    if MODE != 'col':
        part = load_vector(ptr, w_ptr, n, rows, i, mask, width, OUTER == 'row')[:, None]
    return part


@triton.jit
def load_col_part(ptr, w_ptr, n, cols, k, mask, width, MODE: tl.constexpr, OUTER: tl.constexpr):
    part = 0.0
    if MODE != 'row':
        part = load_vector(ptr, w_ptr, n, cols, k, mask, width, OUTER == 'col')[None, :]
    return part


@triton.jit(do_not_specialize=['rows', 'groups', 'width'])
def scale_kernel(
    x_ptr,
    y_ptr,
    r_ptr,
    q_ptr,
    r2_ptr,
    q2_ptr,
    w_ptr,
    w2_ptr,
    share_ptr,
    rows,
    groups,
    width,
    VEC: tl.constexpr,
    MODE: tl.constexpr,
    OUTER: tl.constexpr,
    SHARE: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    cols = groups * VEC
    _, k, pid = block_of(tl.program_id(0), cols, BK)
    _, i, pid = block_of(pid, rows, BR)
    n = pid.to(tl.int64)
    in_rows = i < rows
    in_cols = k < cols
    mask = in_rows[:, None] & in_cols[None, :]
    at = n * rows * cols + (i[:, None] * cols + k[None, :])
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    r = load_row_part(r_ptr, w_ptr, n, rows, i, in_rows, width, MODE, OUTER)
    q = load_col_part(q_ptr, w_ptr, n, cols, k, in_cols, width, MODE, OUTER)
    if MODE == 'row':
        f = r
    elif MODE == 'col':
        f = q
    elif MODE == 'product':
        f = r * q
    elif MODE == 'sum':
        f = r + q
    elif MODE == 'rows':
        f = r + q * load_row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, '')
    elif MODE == 'cols':
        f = q + r * load_col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, '')
    else:
        r2 = load_row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, OUTER)
        q2 = load_col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, OUTER)
        a = r * q
        f = a + (1 - a) * (r2 * q2)
    if SHARE == 'row':
        f = 1 + (f - 1) * tl.load(share_ptr + n * rows + i, mask=in_rows, other=0.0)[:, None]
    if SHARE == 'col':
        f = 1 + (f - 1) * tl.load(share_ptr + n * cols + k, mask=in_cols, other=0.0)[None, :]
    y = x * f
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


def share_side(x: Tensor, share: Tensor | None) -> str:
    """Where the channels are, if there is a share."""
    return '' if share is None else 'col' if channels_last(x) else 'row'


def outer_side(x: Tensor, w: Tensor | None) -> tuple[str, int]:
    """Which part of x's matrices is a map, and its width."""
    return ('' if w is None else 'row' if channels_last(x) else 'col'), x.shape[3]


def _apply(x, mode, r, q=None, r2=None, q2=None, w=None, w2=None, share=None):
    """The scale of row parts r, r2 and column parts q, q2; a part that `mode` lacks is None. With w
    and w2 those of positions are h and h2, of the maps h o w and h2 o w2."""
    y = torch.empty_like(x)
    (n, rows, cols), block = matrix_block(x, sums=False)
    outer, width = outer_side(x, w)
    launch(
        scale_kernel,
        n * cdiv(rows, block['BR']) * cdiv(cols, block['BK']),
        x,
        y,
        *filled(x, r, q, r2, q2, w, w2, share),
        rows,
        cols // block['VEC'],
        width,
        MODE=mode,
        OUTER=outer,
        SHARE=share_side(x, share),
        **block,
    )
    return y


def channel_scale(x: Tensor, c: Tensor) -> Tensor:
    return _apply(x, 'col', None, c) if channels_last(x) else _apply(x, 'row', c)


def spatial_scale(x: Tensor, s: Tensor) -> Tensor:
    return _apply(x, 'row', s) if channels_last(x) else _apply(x, 'col', None, s)


def _two_sided(x, mode, c, s):
    return _apply(x, mode, s, c) if channels_last(x) else _apply(x, mode, c, s)


def product_scale(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return _two_sided(x, 'product', c, s)


def sum_scale(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return _two_sided(x, 'sum', c, s)


def affine_parts(x: Tensor, u: Tensor, v: Tensor, s: Tensor) -> tuple[Any, ...]:
    """What `_apply` takes after x for u + v s."""
    return ('cols', s, u, None, v) if channels_last(x) else ('rows', u, s, v)


def affine_scale(x: Tensor, u: Tensor, v: Tensor, s: Tensor) -> Tensor:
    return _apply(x, *affine_parts(x, u, v, s))


def rank1_parts(
    x: Tensor,
    c: Tensor,
    h: Tensor,
    w: Tensor,
    c2: Tensor | None,
    h2: Tensor | None,
    w2: Tensor | None,
    share: Tensor | None,
) -> tuple[Any, ...]:
    """What `_apply` takes after x for one rank-1 map, or two."""
    mode = 'product' if c2 is None else 'dual'
    parts = (h, c, h2, c2) if channels_last(x) else (c, h, c2, h2)
    return mode, *parts, w, w2, share


def rank1_scale(
    x: Tensor,
    c: Tensor,
    h: Tensor,
    w: Tensor,
    c2: Tensor | None = None,
    h2: Tensor | None = None,
    w2: Tensor | None = None,
    a: Tensor | None = None,
) -> Tensor:
    return _apply(x, *rank1_parts(x, c, h, w, c2, h2, w2, a))
