"""Means and entropies of rows and columns of a sample, with one exponential for both.

With e = exp(x - m), s = sum e and t = sum (x - m) e, the entropy of softmax(x) is log s - t / s for
any reference m, as long as nothing over- or underflows. A program takes one m for all it reads,
looks at the sums, and starts over with the maxima of each row and column as references in the rare
case that they went astray.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import (
    LN2,
    LOG2E,
    block_of,
    cdiv,
    filled,
    floats,
    launch,
    matrix,
    matrix_block,
    nan_max,
    part_of,
    pow2,
    split,
)

# Where a sum of exp(x - m) must lie for the common m to have done no harm.
SUM_LOW = tl.constexpr(1e-10)
SUM_HIGH = tl.constexpr(1e20)


@triton.jit
def _sane(s, t):
    return (s > SUM_LOW) & (s < SUM_HIGH) & (t == t)


@triton.jit
def _exponent(x, m):
    # The bound keeps -inf times 0 out of t; below it the exponential is 0.
    return tl.maximum(x - m, -200.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=['samples', 'rows', 'groups', 'splits'])
def moments_kernel(
    x_ptr,
    row_ptr,
    col_ptr,
    samples,
    rows,
    groups,
    splits,
    VEC: tl.constexpr,
    ROW_AVG: tl.constexpr,
    ROW_ENT: tl.constexpr,
    COL_AVG: tl.constexpr,
    COL_ENT: tl.constexpr,
    EVEN: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """sum x, m, s and t of each row in each block of columns, (4, samples, column blocks, rows),
    and of each column in each split of the rows, (4, samples, splits, cols). EVEN: the blocks fill
    the matrix."""
    cols = groups * VEC
    block, k, pid = block_of(tl.program_id(0), cols, BK)
    part, first, last, n = part_of(pid, rows, splits, BR)
    in_cols = k < cols
    col_blocks = tl.cdiv(cols, BK)
    sample = n * rows * cols
    to_rows = row_ptr + (n * col_blocks + block) * rows
    row_item = samples.to(tl.int64) * col_blocks * rows
    to_cols = col_ptr + (n * splits + part) * cols + k
    col_item = samples.to(tl.int64) * splits * cols
    ENT: tl.constexpr = ROW_ENT or COL_ENT

    i = first + tl.arange(0, BR)
    mask = (i < last)[:, None] & in_cols[None, :]
    at = sample + (i[:, None] * cols + k[None, :])
    m = 0.0
    if ENT:
        x = tl.load(x_ptr + at, mask=mask, other=-float('inf')).to(tl.float32)
        m = tl.max(tl.max(x, 1), 0)
        m = tl.where(tl.abs(m) < 1e30, m, 0.0)

    col_sum = tl.zeros([BR, BK], tl.float32)
    col_s = tl.zeros([BR, BK], tl.float32)
    col_t = tl.zeros([BR, BK], tl.float32)
    astray = tl.zeros([BR], tl.int32)
    for start in range(first, last, BR):
        i = start + tl.arange(0, BR)
        in_rows = i < last
        mask = in_rows[:, None] & in_cols[None, :]
        at = sample + (i[:, None] * cols + k[None, :])
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if COL_AVG:
            col_sum += x
        if ROW_AVG:
            tl.store(to_rows + i, tl.sum(x, 1), mask=in_rows)
        if ENT:
            d = x - m
            e = tl.exp2(d * LOG2E)
            if not EVEN:
                e = tl.where(mask, e, 0.0)
            de = d * e
        if COL_ENT:
            col_s += e
            col_t += de
        if ROW_ENT:
            s = tl.sum(e, 1)
            t = tl.sum(de, 1)
            astray = tl.where(in_rows & (_sane(s, t) == 0), 1, astray)
            tl.store(to_rows + row_item + i, tl.zeros([BR], tl.float32) + m, mask=in_rows)
            tl.store(to_rows + 2 * row_item + i, s, mask=in_rows)
            tl.store(to_rows + 3 * row_item + i, t, mask=in_rows)
    if COL_AVG:
        tl.store(to_cols, tl.sum(col_sum, 0), mask=in_cols)
    if ENT:
        redo = tl.max(astray, 0)
        if COL_ENT:
            s = tl.sum(col_s, 0)
            t = tl.sum(col_t, 0)
            redo = tl.maximum(redo, tl.max(tl.where(in_cols & (_sane(s, t) == 0), 1, 0), 0))
            tl.store(to_cols + col_item, tl.zeros([BK], tl.float32) + m, mask=in_cols)
            tl.store(to_cols + 2 * col_item, s, mask=in_cols)
            tl.store(to_cols + 3 * col_item, t, mask=in_cols)
        if redo > 0:
            # The running maximum starts low but finite, for lanes that see no value at all.
            run_m = tl.full([BR, BK], -3.4028234663852886e38, tl.float32)
            run_s = tl.zeros([BR, BK], tl.float32)
            run_t = tl.zeros([BR, BK], tl.float32)
            for start in range(first, last, BR):
                i = start + tl.arange(0, BR)
                in_rows = i < last
                mask = in_rows[:, None] & in_cols[None, :]
                at = sample + (i[:, None] * cols + k[None, :])
                x = tl.load(x_ptr + at, mask=mask, other=-float('inf')).to(tl.float32)
                if ROW_ENT:
                    top = tl.reduce(x, 1, nan_max)
                    d = _exponent(x, top[:, None])
                    e = tl.where(mask, tl.exp2(d * LOG2E), 0.0)
                    tl.store(to_rows + row_item + i, top, mask=in_rows)
                    tl.store(to_rows + 2 * row_item + i, tl.sum(e, 1), mask=in_rows)
                    tl.store(to_rows + 3 * row_item + i, tl.sum(d * e, 1), mask=in_rows)
                if COL_ENT:
                    new_m = nan_max(run_m, x)
                    shift = _exponent(run_m, new_m)
                    fade = tl.exp2(shift * LOG2E)
                    d = _exponent(x, new_m)
                    e = tl.where(mask, tl.exp2(d * LOG2E), 0.0)
                    run_t = fade * (run_t + shift * run_s) + d * e
                    run_s = fade * run_s + e
                    run_m = new_m
            if COL_ENT:
                top = tl.reduce(run_m, 0, nan_max)
                shift = _exponent(run_m, top[None, :])
                fade = tl.exp2(shift * LOG2E)
                tl.store(to_cols + col_item, top, mask=in_cols)
                tl.store(to_cols + 2 * col_item, tl.sum(fade * run_s, 0), mask=in_cols)
                tl.store(
                    to_cols + 3 * col_item, tl.sum(fade * (run_t + shift * run_s), 0), mask=in_cols
                )


@triton.jit
def merged_moments(
    part_ptr, at, step, item, parts, mask, AVG: tl.constexpr, ENT: tl.constexpr, B: tl.constexpr
):
    """sum x, m, log s and t / s of the whole, from those of parts."""
    sums = tl.zeros([B], tl.float32)
    m = tl.full([B], -3.4028234663852886e38, tl.float32)
    s = tl.zeros([B], tl.float32)
    t = tl.zeros([B], tl.float32)
    for j in range(0, parts):
        here = part_ptr + at + j * step
        if AVG:
            sums += tl.load(here, mask=mask, other=0.0)
        if ENT:
            part_m = tl.load(here + item, mask=mask, other=0.0)
            part_s = tl.load(here + 2 * item, mask=mask, other=1.0)
            part_t = tl.load(here + 3 * item, mask=mask, other=0.0)
            top = nan_max(m, part_m)
            shift = _exponent(m, top)
            part_shift = _exponent(part_m, top)
            fade = tl.exp2(shift * LOG2E)
            part_fade = tl.exp2(part_shift * LOG2E)
            t = fade * (t + shift * s) + part_fade * (part_t + part_shift * part_s)
            s = fade * s + part_fade * part_s
            m = top
    if not ENT:
        s += 1
    return sums, m, tl.log2(s) * LN2, t / s


@triton.jit(do_not_specialize=['samples', 'kept', 'splits'])
def merge_kernel(
    part_ptr,
    avg_ptr,
    m_ptr,
    l_ptr,
    q_ptr,
    ent_ptr,
    samples,
    kept,
    splits,
    scale,
    AVG: tl.constexpr,
    ENT: tl.constexpr,
    B: tl.constexpr,
):
    """From the moments of parts (4, samples, splits, kept): the mean, m, l = log s, q = t / s and
    the entropy l - q of the whole."""
    _, i, pid = block_of(tl.program_id(0), kept, B)
    n = pid.to(tl.int64)
    mask = i < kept
    item = samples.to(tl.int64) * splits * kept
    to = n * kept + i
    sums, m, log_s, q = merged_moments(
        part_ptr, n * splits * kept + i, kept, item, splits, mask, AVG, ENT, B
    )
    if AVG:
        tl.store(avg_ptr + to, sums * scale, mask=mask)
    if ENT:
        tl.store(m_ptr + to, m, mask=mask)
        tl.store(l_ptr + to, log_s, mask=mask)
        tl.store(q_ptr + to, q, mask=mask)
        tl.store(ent_ptr + to, log_s - q, mask=mask)


def moments_parts(x: Tensor, row: Sequence[bool], col: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """The sums of moments_kernel of rows and of columns, or x; `row` and `col` tell whether the
    mean and whether the entropy is wanted."""
    (n, rows, cols), block = matrix_block(x, sums=True)
    blocks = cdiv(cols, block['BK'])
    splits = split(n * blocks, rows, block['BR'])
    by_rows = floats(x, 4, n, blocks, rows) if any(row) else x
    by_cols = floats(x, 4, n, splits, cols) if any(col) else x
    if any(row) or any(col):
        launch(
            moments_kernel,
            n * splits * blocks,
            x,
            by_rows,
            by_cols,
            n,
            rows,
            cols // block['VEC'],
            splits,
            ROW_AVG=row[0],
            ROW_ENT=row[1],
            COL_AVG=col[0],
            COL_ENT=col[1],
            EVEN=rows % block['BR'] == 0 and cols % block['BK'] == 0,
            **block,
        )
    return by_rows, by_cols


def moments(x: Tensor, row: Sequence[bool], col: Sequence[bool]) -> tuple[Any, ...]:
    """(mean, m, l, q, entropy) of rows and of columns, each (N, kept) or None; `row` and `col`
    tell whether the mean and whether the entropy is wanted."""
    _, rows, cols = matrix(x)
    by_rows, by_cols = moments_parts(x, row, col)
    return _merge(by_rows, *row, cols), _merge(by_cols, *col, rows)


def _merge(parts, avg, ent, length):
    if not (avg or ent):
        return None, None, None, None, None
    _, n, splits, kept = parts.shape
    out = [floats(parts, n, kept) if wanted else None for wanted in (avg, ent, ent, ent, ent)]
    block = pow2(kept, 256)
    launch(
        merge_kernel,
        n * cdiv(kept, block),
        parts,
        *filled(parts, *out),
        n,
        kept,
        splits,
        1 / length,
        AVG=avg,
        ENT=ent,
        B=block,
    )
    return out
