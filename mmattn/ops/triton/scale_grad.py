"""The gradients of the scales (`scale`): of x, and of factors as sums over rows and columns."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    block_of,
    cdiv,
    channels_last,
    filled,
    floats,
    launch,
    matrix_block,
    part_of,
    pow2,
    split,
    total,
)
from .scale import (
    affine_parts,
    load_col_part,
    load_row_part,
    outer_side,
    rank1_parts,
    share_side,
)


@triton.jit(do_not_specialize=['samples', 'rows', 'groups', 'splits', 'width'])
def scale_grad_kernel(
    x_ptr,
    dy_ptr,
    dx_ptr,
    r_ptr,
    q_ptr,
    r2_ptr,
    q2_ptr,
    w_ptr,
    w2_ptr,
    share_ptr,
    dr_ptr,
    dq_ptr,
    samples,
    rows,
    groups,
    splits,
    width,
    VEC: tl.constexpr,
    MODE: tl.constexpr,
    OUTER: tl.constexpr,
    SHARE: tl.constexpr,
    NEED_X: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """dx, and sums of p = x dy: over each block of columns into dr (parts, samples, column
    blocks, rows), over each split of the rows into dq (parts, samples, splits, cols). With
    'dual' the three parts are the sums of p q, p q2, p q q2 and of p r, p r2, p r r2; with 'rows'
    and 'cols' the two of the side that has two vectors are the sums of p and of p q or p r.
    SHARE: sums over channels are of share p, and the others have a fourth part, of p."""
    cols = groups * VEC
    block, k, pid = block_of(tl.program_id(0), cols, BK)
    part, first, last, n = part_of(pid, rows, splits, BR)
    in_cols = k < cols
    col_blocks = tl.cdiv(cols, BK)

    sample = n * rows * cols
    to_rows = dr_ptr + (n * col_blocks + block) * rows
    row_part = samples.to(tl.int64) * col_blocks * rows
    to_cols = dq_ptr + (n * splits + part) * cols + k
    col_part = samples.to(tl.int64) * splits * cols

    q = load_col_part(q_ptr, w_ptr, n, cols, k, in_cols, width, MODE, OUTER)
    if MODE == 'cols':
        q2 = load_col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, '')
    if MODE == 'dual':
        q2 = load_col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, OUTER)
    sum0 = tl.zeros([BR, BK], tl.float32)
    sum1 = tl.zeros([BR, BK], tl.float32)
    sum2 = tl.zeros([BR, BK], tl.float32)
    sum3 = tl.zeros([BR, BK], tl.float32)
    share = 1.0
    if SHARE == 'col':
        share = tl.load(share_ptr + n * cols + k, mask=in_cols, other=0.0)[None, :]
    for start in range(first, last, BR):
        i = start + tl.arange(0, BR)
        in_rows = i < last
        mask = in_rows[:, None] & in_cols[None, :]
        at = sample + (i[:, None] * cols + k[None, :])
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        p = dy * tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        r = load_row_part(r_ptr, w_ptr, n, rows, i, in_rows, width, MODE, OUTER)
        if MODE == 'row':
            f = r
            tl.store(to_rows + i, tl.sum(p, 1), mask=in_rows)
        elif MODE == 'col':
            f = q
            sum0 += p
        elif MODE == 'product':
            f = r * q
            tl.store(to_rows + i, tl.sum(p * q, 1), mask=in_rows)
            sum0 += p * r
        elif MODE == 'sum':
            f = r + q
            tl.store(to_rows + i, tl.sum(p, 1), mask=in_rows)
            sum0 += p
        elif MODE == 'rows':
            r2 = load_row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, '')
            f = r + r2 * q
            tl.store(to_rows + i, tl.sum(p, 1), mask=in_rows)
            tl.store(to_rows + row_part + i, tl.sum(p * q, 1), mask=in_rows)
            sum0 += p * r2
        elif MODE == 'cols':
            f = q + q2 * r
            tl.store(to_rows + i, tl.sum(p * q2, 1), mask=in_rows)
            sum0 += p
            sum1 += p * r
        else:
            r2 = load_row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, OUTER)
            a = r * q
            f = a + (1 - a) * (r2 * q2)
            of_rows = p
            of_cols = p
            if SHARE == 'row':
                share = tl.load(share_ptr + n * rows + i, mask=in_rows, other=0.0)[:, None]
                of_cols = p * share
                tl.store(to_rows + 3 * row_part + i, tl.sum(p, 1), mask=in_rows)
            if SHARE == 'col':
                of_rows = p * share
                sum3 += p
            if SHARE != '':
                f = 1 + share * (f - 1)
            tl.store(to_rows + i, tl.sum(of_rows * q, 1), mask=in_rows)
            tl.store(to_rows + row_part + i, tl.sum(of_rows * q2, 1), mask=in_rows)
            tl.store(to_rows + 2 * row_part + i, tl.sum(of_rows * (q * q2), 1), mask=in_rows)
            sum0 += of_cols * r
            sum1 += of_cols * r2
            sum2 += of_cols * (r * r2)
        if NEED_X:
            tl.store(dx_ptr + at, (dy * f).to(dx_ptr.dtype.element_ty), mask=mask)
    if MODE != 'row':
        tl.store(to_cols, tl.sum(sum0, 0), mask=in_cols)
    if MODE == 'dual' or MODE == 'cols':
        tl.store(to_cols + col_part, tl.sum(sum1, 0), mask=in_cols)
    if MODE == 'dual':
        tl.store(to_cols + 2 * col_part, tl.sum(sum2, 0), mask=in_cols)
    if SHARE == 'col':
        tl.store(to_cols + 3 * col_part, tl.sum(sum3, 0), mask=in_cols)


@triton.jit(do_not_specialize=['samples', 'height', 'width', 'splits'])
def outer_grad_kernel(
    s_ptr,
    h_ptr,
    w_ptr,
    h2_ptr,
    w2_ptr,
    dh_ptr,
    dw_ptr,
    dh2_ptr,
    dw2_ptr,
    samples,
    height,
    width,
    splits,
    DUAL: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
):
    """From the spatial sums (parts, samples, splits, H, W) of scale_grad_kernel, the gradients of
    h and w, whose outer products were the spatial maps. One program a sample."""
    n = tl.program_id(0).to(tl.int64)
    size = height * width
    part = samples.to(tl.int64) * splits * size
    k = tl.arange(0, BW)
    in_width = k < width
    w = tl.load(w_ptr + n * width + k, mask=in_width, other=0.0)[None, :]
    dw = tl.zeros([BW], tl.float32)
    if DUAL:
        w2 = tl.load(w2_ptr + n * width + k, mask=in_width, other=0.0)[None, :]
        dw2 = tl.zeros([BW], tl.float32)
    for start in range(0, height, BH):
        i = start + tl.arange(0, BH)
        in_height = i < height
        mask = in_height[:, None] & in_width[None, :]
        h = tl.load(h_ptr + n * height + i, mask=in_height, other=0.0)[:, None]
        d = tl.zeros([BH, BW], tl.float32)
        d2 = tl.zeros([BH, BW], tl.float32)
        both = tl.zeros([BH, BW], tl.float32)
        for j in range(0, splits):
            at = (n * splits + j) * size + (i[:, None] * width + k[None, :])
            d += tl.load(s_ptr + at, mask=mask, other=0.0)
            if DUAL:
                d2 += tl.load(s_ptr + part + at, mask=mask, other=0.0)
                both += tl.load(s_ptr + 2 * part + at, mask=mask, other=0.0)
        if DUAL:
            h2 = tl.load(h2_ptr + n * height + i, mask=in_height, other=0.0)[:, None]
            d -= (h2 * w2) * both
            d2 -= (h * w) * both
            tl.store(dh2_ptr + n * height + i, tl.sum(d2 * w2, 1), mask=in_height)
            dw2 += tl.sum(d2 * h2, 0)
        tl.store(dh_ptr + n * height + i, tl.sum(d * w, 1), mask=in_height)
        dw += tl.sum(d * h, 0)
    tl.store(dw_ptr + n * width + k, dw, mask=in_width)
    if DUAL:
        tl.store(dw2_ptr + n * width + k, dw2, mask=in_width)


def apply_grad(
    x: Tensor,
    dy: Tensor,
    need_x: bool,
    mode: str,
    r: Tensor | None,
    q: Tensor | None = None,
    r2: Tensor | None = None,
    q2: Tensor | None = None,
    w: Tensor | None = None,
    w2: Tensor | None = None,
    share: Tensor | None = None,
) -> tuple[Any, ...]:
    """dx and the sums of scale_grad_kernel, as it leaves them: over each block of columns (parts,
    N, blocks, rows), and over each split of the rows (parts, N, splits, cols)."""
    (n, rows, cols), block = matrix_block(x, sums=True)
    blocks = cdiv(cols, block['BK'])
    splits = split(n * blocks, rows, block['BR'])
    of_rows = of_cols = 3 if mode == 'dual' else 1
    where = share_side(x, share)
    of_rows += (where == 'row') + (mode == 'rows')
    of_cols += (where == 'col') + (mode == 'cols')
    dx = torch.empty_like(x) if need_x else None
    by_rows = None if mode == 'col' else floats(x, of_rows, n, blocks, rows)
    by_cols = None if mode == 'row' else floats(x, of_cols, n, splits, cols)
    tensors = filled(x, dx, r, q, r2, q2, w, w2, share, by_rows, by_cols)
    outer, width = outer_side(x, w)
    launch(
        scale_grad_kernel,
        n * splits * blocks,
        x,
        dy,
        *tensors,
        n,
        rows,
        cols // block['VEC'],
        splits,
        width,
        MODE=mode,
        OUTER=outer,
        SHARE=share_side(x, share),
        NEED_X=need_x,
        **block,
    )
    return dx, by_rows, by_cols


def channel_grad_parts(x: Tensor, c: Tensor, dy: Tensor) -> Tensor:
    """Of a scale by c, parts of dc: (N, parts, C)."""
    if channels_last(x):
        return apply_grad(x, dy, False, 'col', None, c)[2][0]
    return apply_grad(x, dy, False, 'row', c)[1][0]


def two_sided_grad_parts(
    x: Tensor, mode: str, c: Tensor, s: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a scale by c and s, parts of dc (N, parts, C) and of ds (N, parts, H W)."""
    first, second = (s, c) if channels_last(x) else (c, s)
    _, by_rows, by_cols = apply_grad(x, dy, False, mode, first, second)
    return (by_cols[0], by_rows[0]) if channels_last(x) else (by_rows[0], by_cols[0])


def channel_scale_grad(x: Tensor, c: Tensor, dy: Tensor, *, need_x: bool) -> tuple[Any, ...]:
    if channels_last(x):
        dx, _, dc = apply_grad(x, dy, need_x, 'col', None, c)
    else:
        dx, dc, _ = apply_grad(x, dy, need_x, 'row', c)
    return dx, total(dc, 2)[0]


def spatial_scale_grad(x: Tensor, s: Tensor, dy: Tensor, *, need_x: bool) -> tuple[Any, ...]:
    if channels_last(x):
        dx, ds, _ = apply_grad(x, dy, need_x, 'row', s)
    else:
        dx, _, ds = apply_grad(x, dy, need_x, 'col', None, s)
    return dx, total(ds, 2)[0].view_as(s)


def _two_sided_grad(x, mode, c, s, dy, need_x):
    first, second = (s, c) if channels_last(x) else (c, s)
    dx, by_rows, by_cols = apply_grad(x, dy, need_x, mode, first, second)
    by_rows, by_cols = total(by_rows, 2)[0], total(by_cols, 2)[0]
    dc, ds = (by_cols, by_rows) if channels_last(x) else (by_rows, by_cols)
    return dx, dc, ds.view_as(s)


def product_scale_grad(
    x: Tensor, c: Tensor, s: Tensor, dy: Tensor, *, need_x: bool
) -> tuple[Any, ...]:
    return _two_sided_grad(x, 'product', c, s, dy, need_x)


def sum_scale_grad(x: Tensor, c: Tensor, s: Tensor, dy: Tensor, *, need_x: bool) -> tuple[Any, ...]:
    return _two_sided_grad(x, 'sum', c, s, dy, need_x)


def affine_grad_parts(
    x: Tensor, u: Tensor, v: Tensor, s: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a scale by u + v s, parts of du and dv (2, N, parts, C) and of ds (N, parts, H W)."""
    _, by_rows, by_cols = apply_grad(x, dy, False, *affine_parts(x, u, v, s))
    return (by_cols, by_rows[0]) if channels_last(x) else (by_rows, by_cols[0])


def affine_scale_grad(
    x: Tensor, u: Tensor, v: Tensor, s: Tensor, *, dy: Tensor, need_x: bool
) -> tuple[Any, ...]:
    dx, by_rows, by_cols = apply_grad(x, dy, need_x, *affine_parts(x, u, v, s))
    by_rows, by_cols = total(by_rows, 2), total(by_cols, 2)
    (du, dv), (ds,) = (by_cols, by_rows) if channels_last(x) else (by_rows, by_cols)
    return dx, du, dv, ds.view_as(s)


def rank1_grad_parts(
    x: Tensor, factors: Sequence[Tensor], dy: Tensor, need_x: bool, a: Tensor | None = None
) -> tuple[Any, ...]:
    """dx or None; the gradients of h and w of each map, and the sums over positions that those of
    the c are made of: (1 or 3, N, parts, C).

    With p = x dy, A = c q, A2 = c2 q2 (q = h o w), the gradients of the factors are
    dc = sum p q - c2 sum p q q2, dq = sum p c - q2 sum p c c2, and the same with the two
    triples exchanged: six sums, three over positions and three over channels."""
    c, h, w, c2, h2, w2 = factors = (*factors, None, None, None)[:6]
    mode, *parts = rank1_parts(x, *factors, a)
    dx, by_rows, by_cols = apply_grad(x, dy, need_x, mode, *parts)
    spatial, channel = (by_rows, by_cols) if channels_last(x) else (by_cols, by_rows)
    (n, height), width, dual = h.shape, w.shape[1], c2 is not None
    dh, dw = torch.empty_like(h), torch.empty_like(w)
    dh2, dw2 = (torch.empty_like(h), torch.empty_like(w)) if dual else (dh, dw)
    block_width = pow2(width, 1 << 16)
    launch(
        outer_grad_kernel,
        n,
        spatial,
        h,
        w,
        h2 if dual else h,
        w2 if dual else w,
        dh,
        dw,
        dh2,
        dw2,
        n,
        height,
        width,
        spatial.shape[2],
        num_warps=8,
        DUAL=dual,
        BH=pow2(height, max(1, 2048 // block_width)),
        BW=block_width,
    )
    return dx, [(dh, dw), (dh2, dw2)][: 1 + dual], channel


def channel_grads(
    channel: Tensor, c: Tensor, c2: Tensor | None, a: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of c, c2 and the share a, (N, C) each, None where there is none, of the sums
    over positions (1, 3 or 4, N, C)."""
    if c2 is None:
        return channel[0], None, None
    dc = torch.addcmul(channel[0], c2, channel[2], value=-1)
    dc2 = torch.addcmul(channel[1], c, channel[2], value=-1)
    if a is None:
        return dc, dc2, None
    # Of 1 - a (1 - A) (1 - A2), with the sums of p, p A, p A2, p A A2.
    return dc * a, dc2 * a, c * dc + c2 * channel[1] - channel[3]


def rank1_scale_grad(
    x: Tensor,
    c: Tensor,
    h: Tensor,
    w: Tensor,
    c2: Tensor | None = None,
    h2: Tensor | None = None,
    w2: Tensor | None = None,
    a: Tensor | None = None,
    *,
    dy: Tensor,
    need_x: bool,
) -> tuple[Any, ...]:
    factors = (c, h, w) if c2 is None else (c, h, w, c2, h2, w2)
    dx, [(dh, dw), *second], channel = rank1_grad_parts(x, factors, dy, need_x, a)
    dc, dc2, da = channel_grads(total(channel, 2), c, c2, a)
    more = () if c2 is None else (dc2, *second[0])
    return dx, dc, dh, dw, *more, *(() if a is None else (da,))
