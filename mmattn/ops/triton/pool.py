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
from .products import summed


@triton.jit(do_not_specialize=['rows', 'groups', 'splits', 'step'])
def pool_kernel(
    x_ptr,
    f_ptr,
    avg_ptr,
    max_ptr,
    arg_ptr,
    rows,
    groups,
    splits,
    step,
    scale,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
    MAX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Reduce the matrices over rows (ROWS) or over columns, each split of that axis by itself,
    into (samples, splits, kept), of mean and maximum every `step`. FACTOR: x is first multiplied
    by f (samples, reduced)."""
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
    to = (n * splits + part) * step + i
    tl.store(avg_ptr + to, tl.sum(sums, AXIS) * scale, mask=in_kept)
    if MAX:
        top = tl.reduce(best, AXIS, nan_max)
        level = top[None, :] if ROWS else top[:, None]
        arg = tl.min(tl.where(best == level, arg, BIG), AXIS)
        tl.store(max_ptr + to, top, mask=in_kept)
        # No index was ever noted where all is -inf, and none is found again where all is NaN.
        tl.store(
            arg_ptr + (n * splits + part) * kept + i, tl.where(arg == BIG, first, arg), mask=in_kept
        )


@triton.jit
def first_of_parts(max_ptr, arg_ptr, first, step, parts, mask):
    """The first maximum of `parts` partial ones, `step` apart, and its index."""
    best = tl.load(max_ptr + first, mask=mask, other=0.0)
    arg = tl.load(arg_ptr + first, mask=mask, other=0)
    for j in range(1, parts):
        top = tl.load(max_ptr + first + j * step, mask=mask, other=0.0)
        here = tl.load(arg_ptr + first + j * step, mask=mask, other=0)
        arg = tl.where(top > best, here, arg)
        best = nan_max(top, best)
    return best, arg


@triton.jit(do_not_specialize=['kept', 'splits', 'step'])
def merge_pool_kernel(
    avg_ptr,
    max_ptr,
    arg_ptr,
    to_avg_ptr,
    to_max_ptr,
    to_arg_ptr,
    kept,
    splits,
    step,
    AVG: tl.constexpr,
    B: tl.constexpr,
):
    """The sum of the means (AVG) and the first maximum of the splits, (samples, splits, kept) ->
    (samples, kept); of mean and maximum every `step`."""
    blocks = tl.cdiv(kept, B)
    pid = tl.program_id(0)
    i = (pid % blocks) * B + tl.arange(0, B)
    n = (pid // blocks).to(tl.int64)
    mask = i < kept
    first = n * splits * kept + i
    best, arg = first_of_parts(max_ptr, arg_ptr, first, kept, splits, mask)
    tl.store(to_max_ptr + n * step + i, best, mask=mask)
    tl.store(to_arg_ptr + n * kept + i, arg, mask=mask)
    if AVG:
        tl.store(to_avg_ptr + n * step + i, summed(avg_ptr, first, kept, splits, mask), mask=mask)


@triton.jit(do_not_specialize=['rows', 'groups'])
def channel_pool_grad_kernel(
    dy_ptr,
    dx_ptr,
    c_ptr,
    s_ptr,
    ga_ptr,
    gm_ptr,
    at_ptr,
    gavg_ptr,
    gmax_ptr,
    channel_at_ptr,
    a_ptr,
    rows,
    groups,
    mean_c,
    mean_s,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    SCALE: tl.constexpr,
    PART: tl.constexpr,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of x: what the pools over positions send (AVG, MAX), and by SCALE: '' no more;
    'c' dy scaled by c; 'cs' dy scaled by c s, and what the pools over channels of x c send. PART:
    the scale is 1 + a (c s - 1). ROWS: positions are the rows."""
    cols = groups * VEC
    row_blocks = tl.cdiv(rows, BR)
    col_blocks = tl.cdiv(cols, BK)
    pid = tl.program_id(0)
    k = (pid % col_blocks) * BK + tl.arange(0, BK)
    pid = pid // col_blocks
    i = (pid % row_blocks) * BR + tl.arange(0, BR)
    n = (pid // row_blocks).to(tl.int64)
    in_rows = (i < rows)[:, None]
    in_cols = (k < cols)[None, :]
    mask = in_rows & in_cols
    at = n * rows * cols + (i[:, None] * cols + k[None, :])
    if ROWS:
        to_c = (n * cols + k)[None, :]
        in_c = in_cols
        channel = k[None, :]
        to_s = (n * rows + i)[:, None]
        in_s = in_rows
        position = i[:, None]
    else:
        to_c = (n * rows + i)[:, None]
        in_c = in_rows
        channel = i[:, None]
        to_s = (n * cols + k)[None, :]
        in_s = in_cols
        position = k[None, :]
    dx = tl.zeros([BR, BK], tl.float32)
    if SCALE != '':
        c = tl.load(c_ptr + to_c, mask=in_c, other=0.0)
        dx = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SCALE == 'c':
            dx *= c
        else:
            f = c * tl.load(s_ptr + to_s, mask=in_s, other=0.0)
            if PART:
                f = 1 + tl.load(a_ptr + to_c, mask=in_c, other=0.0) * (f - 1)
            dx *= f
            du = tl.load(ga_ptr + to_s, mask=in_s, other=0.0) * mean_c
            gm = tl.load(gm_ptr + to_s, mask=in_s, other=0.0)
            du += tl.where(channel == tl.load(at_ptr + to_s, mask=in_s, other=-1), gm, 0.0)
            dx += du * c
    if AVG:
        dx += tl.load(gavg_ptr + to_c, mask=in_c, other=0.0) * mean_s
    if MAX:
        gmax = tl.load(gmax_ptr + to_c, mask=in_c, other=0.0)
        dx += tl.where(position == tl.load(channel_at_ptr + to_c, mask=in_c, other=-1), gmax, 0.0)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['rows', 'groups', 'splits'])
def spatial_pool_grad_kernel(
    x_ptr,
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
    NEED_X: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """With u = x c pooled over channels: dx = du c, and dc, the sum of du x over positions
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
        if NEED_X:
            tl.store(dx_ptr + at, (du * c).to(dx_ptr.dtype.element_ty), mask=mask)
        if ROWS:
            sums += du * x
        else:
            tl.store(dc_ptr + (n * col_blocks + block) * rows + i, tl.sum(du * x, 1), mask=in_rows)
    if ROWS:
        tl.store(dc_ptr + (n * splits + part) * cols + k, tl.sum(sums, 0), mask=in_cols)


def _merge(avgs, tops, args, avg, top, arg):
    """Into avg (or None), top and arg of (N, kept), every so many."""
    n, splits, kept = tops.shape
    launch(
        merge_pool_kernel,
        n * cdiv(kept, pow2(kept, 256)),
        tops if avg is None else avgs,
        tops,
        args,
        top if avg is None else avg,
        top,
        arg,
        kept,
        splits,
        top.stride(0),
        AVG=avg is not None,
        B=pow2(kept, 256),
    )


def first_maximum(tops, args):
    """One maximum and its index of each column: (N, splits, kept) twice -> (N, kept) twice."""
    n, splits, kept = tops.shape
    if splits == 1:
        return tops[:, 0], args[:, 0]
    top, arg = floats(tops, n, kept), ints(tops, n, kept)
    _merge(None, tops, args, None, top, arg)
    return top, arg


def pool_parts(x, factor, over_rows, maximum, least=4, out=None):
    """Mean, maximum (or None) and its index over the rows or the columns of x's matrices, of each
    split of that axis by itself: (N, splits, kept). The means add up to the whole one.

    `least`: steps of a split, at least. `out`: where to put mean and maximum, (N, kept) each, if
    there is but one split.
    """
    n, rows, cols = matrix(x)
    vec = vector(cols, x)
    block_cols = pow2(cols, max(64, 32 * vec))
    block_rows = pow2(rows, 2048 // block_cols)
    if over_rows:
        kept, reduced, block_kept, block_reduced = cols, rows, block_cols, block_rows
    else:
        kept, reduced, block_kept, block_reduced = rows, cols, block_rows, block_cols
    blocks = cdiv(kept, block_kept)
    splits = split(n * blocks, reduced, block_reduced, least=least)
    if out is None or splits > 1:
        avgs, tops = floats(x, n, splits, kept), floats(x, n, splits, kept) if maximum else None
    else:
        avgs, tops = (t.unsqueeze(1) for t in out)
    args = ints(x, n, splits, kept) if maximum else None
    launch(
        pool_kernel,
        n * splits * blocks,
        x,
        *(x if t is None else t for t in (factor, avgs, tops, args)),
        rows,
        cols // vec,
        splits,
        avgs.stride(0) // splits,
        1 / reduced,
        VEC=vec,
        ROWS=over_rows,
        FACTOR=factor is not None,
        MAX=maximum,
        BR=block_rows,
        BK=block_cols,
    )
    return avgs, tops, args


def _pool(x, factor, over_rows, maximum):
    """Mean, maximum (or None) and its index over the rows or the columns of x's matrices, each
    of shape (N, kept)."""
    avgs, tops, args = pool_parts(x, factor, over_rows, maximum)
    if not maximum:
        return total(avgs, 1), None, None
    n, splits, kept = avgs.shape
    if splits == 1:
        return avgs[:, 0], tops[:, 0], args[:, 0]
    avg, top, arg = floats(x, n, kept), floats(x, n, kept), ints(x, n, kept)
    _merge(avgs, tops, args, avg, top, arg)
    return avg, top, arg


def channel_pool(x, *, maximum):
    return _pool(x, None, channels_last(x), maximum)


def _dx(like, dy, scale, c, s, over_channels, over_positions, a=None):
    """dx by channel_pool_grad_kernel, see there; `over_*`: gradients of mean and maximum, and where
    the maxima are."""
    dx = torch.empty_like(like)
    n, rows, cols = matrix(dx)
    over_rows = channels_last(dx)
    vec = vector(cols, dx)
    block_cols = pow2(cols, 512)
    block_rows = pow2(rows, 2048 // block_cols)
    given = (dy, dx, c, s, *over_channels, *over_positions, a)
    channels, positions = (cols, rows) if over_rows else (rows, cols)
    launch(
        channel_pool_grad_kernel,
        n * cdiv(rows, block_rows) * cdiv(cols, block_cols),
        *(dx if t is None else t for t in given),
        rows,
        cols // vec,
        1 / channels,
        1 / positions,
        VEC=vec,
        ROWS=over_rows,
        SCALE=scale,
        PART=a is not None,
        AVG=over_positions[0] is not None,
        MAX=over_positions[1] is not None,
        BR=block_rows,
        BK=block_cols,
    )
    return dx


NOTHING = None, None, None


def channel_pool_grad(dx, gavg, gmax, argmax):
    return _dx(dx, None, '', None, None, NOTHING, (gavg, gmax, argmax))


def channel_dx(dy, c, gavg, gmax, at):
    return _dx(dy, dy, 'c', c, None, NOTHING, (gavg, gmax, at))


def cbam_dx(dy, c, s, ga, gm, at, gavg, gmax, channel_at, a=None):
    return _dx(dy, dy, 'cs', c, s, (ga, gm, at), (gavg, gmax, channel_at), a)


def spatial_pool(x, c):
    n, _, height, width = x.shape
    avg, top, arg = _pool(x, c, not channels_last(x), True)
    return tuple(t.view(n, height, width) for t in (avg, top, arg))


def spatial_maps(x, c):
    """Maxima and means over the channels of x c, as maps (N, 2, H, W), and where the maxima are."""
    n, _, height, width = x.shape
    maps = floats(x, n, 2, height, width)
    out = maps[:, 1].flatten(1), maps[:, 0].flatten(1)
    # What a second launch takes, few splits do not save.
    avgs, tops, args = pool_parts(x, c, not channels_last(x), True, least=16, out=out)
    at = args[:, 0]
    if avgs.shape[1] > 1:
        at = ints(x, n, height * width)
        _merge(avgs, tops, args, *out, at)
    return maps, at.view(n, height, width)


def spatial_pool_grad_parts(x, c, gavg, gmax, argmax, need_x):
    """dx or None, and parts of dc: (N, parts, C)."""
    dx = torch.empty_like(x) if need_x else None
    n, rows, cols = matrix(x)
    over_rows = channels_last(x)
    vec = vector(cols, x)
    block_cols = pow2(cols, max(64, 32 * vec))
    block_rows = pow2(rows, 2048 // block_cols)
    blocks = cdiv(cols, block_cols)
    splits = split(n * blocks, rows, block_rows)
    dc = floats(x, n, splits if over_rows else blocks, c.shape[1])
    launch(
        spatial_pool_grad_kernel,
        n * splits * blocks,
        x,
        dx if need_x else x,
        c,
        *(x if t is None else t for t in (gavg, gmax, argmax)),
        dc,
        rows,
        cols // vec,
        splits,
        1 / (cols if over_rows else rows),
        VEC=vec,
        ROWS=over_rows,
        AVG=gavg is not None,
        MAX=gmax is not None,
        NEED_X=need_x,
        BR=block_rows,
        BK=block_cols,
    )
    return dx, dc


def spatial_pool_grad(x, c, gavg, gmax, argmax, *, need_x):
    dx, dc = spatial_pool_grad_parts(x, c, gavg, gmax, argmax, need_x)
    return dx, total(dc, 1)
