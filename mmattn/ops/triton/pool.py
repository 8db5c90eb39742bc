"""Mean and maximum over positions (SE, ECA, CBAM) or over channels (CBAM's second pooling)."""

import torch
import triton
import triton.language as tl

from .common import (
    BIG,
    cdiv,
    channels_last,
    floats,
    ints,
    launch,
    matrix,
    nan_max,
    pow2,
    split,
    total,
    vector,
)


@triton.jit(do_not_specialize=['rows', 'groups', 'splits'])
def pool_kernel(
    x_ptr,
    f_ptr,
    avg_ptr,
    max_ptr,
    arg_ptr,
    rows,
    groups,
    splits,
    scale,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
    MAX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Reduce the matrices over rows (ROWS) or over columns, each split of that axis by itself,
    into (samples, splits, kept). FACTOR: x is first multiplied by f (samples, reduced)."""
    cols = groups * VEC
    BKEPT: tl.constexpr = BK if ROWS else BR
    BREDUCED: tl.constexpr = BR if ROWS else BK
    if ROWS:
        kept = cols
        reduced = rows
    else:
        kept = rows
        reduced = cols
    blocks = tl.cdiv(kept, BKEPT)
    pid = tl.program_id(0)
    i = (pid % blocks) * BKEPT + tl.arange(0, BKEPT)
    pid = pid // blocks
    part = pid % splits
    n = (pid // splits).to(tl.int64)
    in_kept = i < kept
    span = tl.cdiv(tl.cdiv(reduced, BREDUCED), splits) * BREDUCED
    first = part * span
    last = tl.minimum(first + span, reduced)

    sums = tl.zeros([BR, BK], tl.float32)
    best = tl.full([BR, BK], -float('inf'), tl.float32)
    arg = tl.full([BR, BK], BIG, tl.int32)
    for start in range(first, last, BREDUCED):
        j = start + tl.arange(0, BREDUCED)
        if ROWS:
            mask = (j < last)[:, None] & in_kept[None, :]
            at = j[:, None] * cols + i[None, :]
            index = tl.broadcast_to(j[:, None], [BR, BK])
        else:
            mask = in_kept[:, None] & (j < last)[None, :]
            at = i[:, None] * cols + j[None, :]
            index = tl.broadcast_to(j[None, :], [BR, BK])
        x = tl.load(x_ptr + n * rows * cols + at, mask=mask, other=0.0).to(tl.float32)
        if FACTOR:
            f = tl.load(f_ptr + n * reduced + j, mask=j < last, other=0.0)
            x *= f[:, None] if ROWS else f[None, :]
        sums += x
        if MAX:
            x = tl.where(mask, x, -float('inf'))
            arg = tl.where(x > best, index, arg)
            best = nan_max(x, best)

    AXIS: tl.constexpr = 0 if ROWS else 1
    to = (n * splits + part) * kept + i
    tl.store(avg_ptr + to, tl.sum(sums, AXIS) * scale, mask=in_kept)
    if MAX:
        top = tl.reduce(best, AXIS, nan_max)
        level = top[None, :] if ROWS else top[:, None]
        arg = tl.min(tl.where(best == level, arg, BIG), AXIS)
        tl.store(max_ptr + to, top, mask=in_kept)
        # No index was ever noted where all is -inf, and none is found again where all is NaN.
        tl.store(arg_ptr + to, tl.where(arg == BIG, first, arg), mask=in_kept)


@triton.jit(do_not_specialize=['kept', 'splits'])
def best_kernel(max_ptr, arg_ptr, to_max_ptr, to_arg_ptr, kept, splits, B: tl.constexpr):
    """The first maximum of the splits, (samples, splits, kept) -> (samples, kept)."""
    blocks = tl.cdiv(kept, B)
    pid = tl.program_id(0)
    i = (pid % blocks) * B + tl.arange(0, B)
    n = (pid // blocks).to(tl.int64)
    mask = i < kept
    at = n * splits * kept + i
    best = tl.load(max_ptr + at, mask=mask, other=0.0)
    arg = tl.load(arg_ptr + at, mask=mask, other=0)
    for _ in range(1, splits):
        at += kept
        top = tl.load(max_ptr + at, mask=mask, other=0.0)
        arg = tl.where(top > best, tl.load(arg_ptr + at, mask=mask, other=0), arg)
        best = nan_max(top, best)
    tl.store(to_max_ptr + n * kept + i, best, mask=mask)
    tl.store(to_arg_ptr + n * kept + i, arg, mask=mask)


@triton.jit(do_not_specialize=['rows', 'groups'])
def channel_pool_grad_kernel(
    gx_ptr,
    dx_ptr,
    gavg_ptr,
    gmax_ptr,
    arg_ptr,
    rows,
    groups,
    scale,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    cols = groups * VEC
    row_blocks = tl.cdiv(rows, BR)
    col_blocks = tl.cdiv(cols, BK)
    pid = tl.program_id(0)
    k = (pid % col_blocks) * BK + tl.arange(0, BK)
    pid = pid // col_blocks
    i = (pid % row_blocks) * BR + tl.arange(0, BR)
    n = (pid // row_blocks).to(tl.int64)
    mask = (i < rows)[:, None] & (k < cols)[None, :]
    at = n * rows * cols + (i[:, None] * cols + k[None, :])
    dx = tl.load(gx_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ROWS:
        to = (n * cols + k)[None, :]
        in_kept = (k < cols)[None, :]
        index = i[:, None]
    else:
        to = (n * rows + i)[:, None]
        in_kept = (i < rows)[:, None]
        index = k[None, :]
    if AVG:
        dx += tl.load(gavg_ptr + to, mask=in_kept, other=0.0) * scale
    if MAX:
        gmax = tl.load(gmax_ptr + to, mask=in_kept, other=0.0)
        dx += tl.where(index == tl.load(arg_ptr + to, mask=in_kept, other=-1), gmax, 0.0)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['rows', 'groups', 'splits'])
def spatial_pool_grad_kernel(
    x_ptr,
    gx_ptr,
    dx_ptr,
    c_ptr,
    gavg_ptr,
    gmax_ptr,
    arg_ptr,
    dc_ptr,
    rows,
    groups,
    splits,
    scale,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """With u = x c pooled over channels: dx = gx + du c, and dc, the sum of du x over positions
    (ROWS: they are the rows), in (samples, splits, C) or (samples, column blocks, C)."""
    cols = groups * VEC
    col_blocks = tl.cdiv(cols, BK)
    pid = tl.program_id(0)
    block = pid % col_blocks
    pid = pid // col_blocks
    part = pid % splits
    n = (pid // splits).to(tl.int64)
    k = block * BK + tl.arange(0, BK)
    in_cols = k < cols
    span = tl.cdiv(tl.cdiv(rows, BR), splits) * BR
    first = part * span
    last = tl.minimum(first + span, rows)
    sums = tl.zeros([BR, BK], tl.float32)
    for start in range(first, last, BR):
        i = start + tl.arange(0, BR)
        in_rows = i < last
        mask = in_rows[:, None] & in_cols[None, :]
        at = n * rows * cols + (i[:, None] * cols + k[None, :])
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dx = tl.load(gx_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if ROWS:
            c = tl.load(c_ptr + n * cols + k, mask=in_cols, other=0.0)[None, :]
            to = (n * rows + i)[:, None]
            in_map = in_rows[:, None]
            channel = k[None, :]
        else:
            c = tl.load(c_ptr + n * rows + i, mask=in_rows, other=0.0)[:, None]
            to = (n * cols + k)[None, :]
            in_map = in_cols[None, :]
            channel = i[:, None]
        du = tl.zeros([BR, BK], tl.float32)
        if AVG:
            du += tl.load(gavg_ptr + to, mask=in_map, other=0.0) * scale
        if MAX:
            gmax = tl.load(gmax_ptr + to, mask=in_map, other=0.0)
            du += tl.where(channel == tl.load(arg_ptr + to, mask=in_map, other=-1), gmax, 0.0)
        dx += du * c
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if ROWS:
            sums += du * x
        else:
            tl.store(dc_ptr + (n * col_blocks + block) * rows + i, tl.sum(du * x, 1), mask=in_rows)
    if ROWS:
        tl.store(dc_ptr + (n * splits + part) * cols + k, tl.sum(sums, 0), mask=in_cols)


def first_maximum(tops, args):
    """One maximum and its index of each column: (N, splits, kept) twice -> (N, kept) twice."""
    n, splits, kept = tops.shape
    if splits == 1:
        return tops[:, 0], args[:, 0]
    top, arg = floats(tops, n, kept), ints(tops, n, kept)
    launch(
        best_kernel,
        n * cdiv(kept, pow2(kept, 256)),
        tops,
        args,
        top,
        arg,
        kept,
        splits,
        B=pow2(kept, 256),
    )
    return top, arg


def _pool(x, factor, over_rows, maximum):
    """Mean, maximum (or None) and its index over the rows or the columns of x's matrices, each
    of shape (N, kept)."""
    n, rows, cols = matrix(x)
    vec = vector(cols, x)
    block_cols = pow2(cols, max(64, 32 * vec))
    block_rows = pow2(rows, 2048 // block_cols)
    if over_rows:
        kept, reduced, block_kept, block_reduced = cols, rows, block_cols, block_rows
    else:
        kept, reduced, block_kept, block_reduced = rows, cols, block_rows, block_cols
    blocks = cdiv(kept, block_kept)
    splits = split(n * blocks, reduced, block_reduced)
    avgs = floats(x, n, splits, kept)
    tops, args = (floats(x, n, splits, kept), ints(x, n, splits, kept)) if maximum else (x, x)
    launch(
        pool_kernel,
        n * splits * blocks,
        x,
        x if factor is None else factor,
        avgs,
        tops,
        args,
        rows,
        cols // vec,
        splits,
        1 / reduced,
        VEC=vec,
        ROWS=over_rows,
        FACTOR=factor is not None,
        MAX=maximum,
        BR=block_rows,
        BK=block_cols,
    )
    avg = total(avgs, 1)
    return (avg, *first_maximum(tops, args)) if maximum else (avg, None, None)


def channel_pool(x, *, maximum):
    return _pool(x, None, channels_last(x), maximum)


def channel_pool_grad(dx, gavg, gmax, argmax, *, carry=None):
    """carry: what is to be added to, in place; else the result goes to dx."""
    gx = dx = dx.zero_() if carry is None else carry
    n, rows, cols = matrix(gx)
    over_rows = channels_last(gx)
    vec = vector(cols, gx)
    block_cols = pow2(cols, 512)
    block_rows = pow2(rows, 2048 // block_cols)
    gavg_or, gmax_or, arg_or = (gx if t is None else t for t in (gavg, gmax, argmax))
    launch(
        channel_pool_grad_kernel,
        n * cdiv(rows, block_rows) * cdiv(cols, block_cols),
        gx,
        dx,
        gavg_or,
        gmax_or,
        arg_or,
        rows,
        cols // vec,
        1 / (rows if over_rows else cols),
        VEC=vec,
        ROWS=over_rows,
        AVG=gavg is not None,
        MAX=gmax is not None,
        BR=block_rows,
        BK=block_cols,
    )
    return dx


def spatial_pool(x, c):
    n, _, height, width = x.shape
    avg, top, arg = _pool(x, c, not channels_last(x), True)
    return tuple(t.view(n, height, width) for t in (avg, top, arg))


def spatial_pool_grad(x, c, gavg, gmax, argmax, *, need_x, carry=None):
    gx = dx = torch.zeros_like(x) if carry is None else carry
    n, rows, cols = matrix(x)
    over_rows = channels_last(x)
    vec = vector(cols, x)
    block_cols = pow2(cols, max(64, 32 * vec))
    block_rows = pow2(rows, 2048 // block_cols)
    blocks = cdiv(cols, block_cols)
    splits = split(n * blocks, rows, block_rows)
    dc = floats(x, n, splits if over_rows else blocks, c.shape[1])
    gavg_or, gmax_or = (x if t is None else t for t in (gavg, gmax))
    launch(
        spatial_pool_grad_kernel,
        n * splits * blocks,
        x,
        gx,
        dx,
        c,
        gavg_or,
        gmax_or,
        argmax,
        dc,
        rows,
        cols // vec,
        splits,
        1 / (cols if over_rows else rows),
        VEC=vec,
        ROWS=over_rows,
        AVG=gavg is not None,
        MAX=gmax is not None,
        BR=block_rows,
        BK=block_cols,
    )
    return dx, total(dc, 1)
