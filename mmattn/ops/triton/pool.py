"""Mean and maximum over positions (SE, ECA, CBAM) or over channels (CBAM's second pooling)."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .common import (
    BIG,
    block_of,
    cdiv,
    channels_last,
    filled,
    floats,
    ints,
    launch,
    matrix_block,
    nan_max,
    part_of,
    pow2,
    split,
    total,
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
    _, i, pid = block_of(tl.program_id(0), kept, BKEPT)
    part, first, last, n = part_of(pid, reduced, splits, BREDUCED)
    in_kept = i < kept

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
    _, i, pid = block_of(tl.program_id(0), kept, B)
    n = pid.to(tl.int64)
    mask = i < kept
    first = n * splits * kept + i
    best, arg = first_of_parts(max_ptr, arg_ptr, first, kept, splits, mask)
    tl.store(to_max_ptr + n * step + i, best, mask=mask)
    tl.store(to_arg_ptr + n * kept + i, arg, mask=mask)
    if AVG:
        tl.store(to_avg_ptr + n * step + i, summed(avg_ptr, first, kept, splits, mask), mask=mask)


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


def first_maximum(tops: Tensor, args: Tensor) -> tuple[Tensor, Tensor]:
    """One maximum and its index of each column: (N, splits, kept) twice -> (N, kept) twice."""
    n, splits, kept = tops.shape
    if splits == 1:
        return tops[:, 0], args[:, 0]
    top, arg = floats(tops, n, kept), ints(tops, n, kept)
    _merge(None, tops, args, None, top, arg)
    return top, arg


def pool_parts(
    x: Tensor,
    factor: Tensor | None,
    over_rows: bool,
    maximum: bool,
    least: int = 4,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mean, maximum (or None) and its index over the rows or the columns of x's matrices, of each
    split of that axis by itself: (N, splits, kept). The means add up to the whole one.

    `least`: steps of a split, at least. `out`: where to put mean and maximum, (N, kept) each, if
    there is but one split.
    """
    (n, rows, cols), block = matrix_block(x, sums=True)
    if over_rows:
        kept, reduced, block_kept, block_reduced = cols, rows, block['BK'], block['BR']
    else:
        kept, reduced, block_kept, block_reduced = rows, cols, block['BR'], block['BK']
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
        *filled(x, factor, avgs, tops, args),
        rows,
        cols // block['VEC'],
        splits,
        avgs.stride(0) // splits,
        1 / reduced,
        ROWS=over_rows,
        FACTOR=factor is not None,
        MAX=maximum,
        **block,
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


def channel_pool(x: Tensor, *, maximum: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return _pool(x, None, channels_last(x), maximum)


def spatial_pool(x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    n, _, height, width = x.shape
    avg, top, arg = _pool(x, c, not channels_last(x), True)
    return tuple(t.view(n, height, width) for t in (avg, top, arg))


def spatial_maps(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
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
