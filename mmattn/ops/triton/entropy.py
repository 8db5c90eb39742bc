"""CAT's six statistics: mean, filtered maximum and entropy, over positions and over channels.

Two passes over x. The first reads samples as matrices and takes the means and the entropies of
rows and columns, with one exponential for both: with e = exp(x - m), s = sum e and
t = sum (x - m) e, the entropy of softmax(x) is log s - t / s for any reference m, as long as
nothing over- or underflows. A program takes one m for all it reads, looks at the sums, and starts
over with the maxima of each row and column as references in the rare case that they went astray.

The second pass walks down the rows of the maps with a k-tap filter along H in registers (the
transposed form: each new row adds its share to the k outputs that wait for it) and filters along
W by reading a row k times, which the cache serves.

Backward is one pass: it walks in the same way, with the filter run backwards over the spatial map
of gradients, of which a channel sees the entries that it is the arg-max of.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .common import (
    BIG,
    LN2,
    LOG2E,
    cdiv,
    channels_last,
    floats,
    ints,
    launch,
    matrix,
    nan_max,
    pow2,
    split,
    vector,
)
from .pool import first_maximum

# Where a sum of exp(x - m) must lie for the common m to have done no harm.
SUM_LOW = tl.constexpr(1e-10)
SUM_HIGH = tl.constexpr(1e20)

# The filter sizes that the kernels know.
FILTERS = (1, 3, 5)


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
    blocks = tl.cdiv(kept, B)
    pid = tl.program_id(0)
    i = (pid % blocks) * B + tl.arange(0, B)
    n = (pid // blocks).to(tl.int64)
    mask = i < kept
    item = samples.to(tl.int64) * splits * kept
    at = n * splits * kept + i
    to = n * kept + i
    sums = tl.zeros([B], tl.float32)
    m = tl.full([B], -3.4028234663852886e38, tl.float32)
    s = tl.zeros([B], tl.float32)
    t = tl.zeros([B], tl.float32)
    for j in range(0, splits):
        here = part_ptr + at + j * kept
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
    if AVG:
        tl.store(avg_ptr + to, sums * scale, mask=mask)
    if ENT:
        log_s = tl.log2(s) * LN2
        tl.store(m_ptr + to, m, mask=mask)
        tl.store(l_ptr + to, log_s, mask=mask)
        tl.store(q_ptr + to, t / s, mask=mask)
        tl.store(ent_ptr + to, log_s - t / s, mask=mask)


@triton.jit
def _step(v, a1, a2, a3, a4, t0, t1, t2, t3, t4, K: tl.constexpr):
    """One row into a filter of K taps: the output now complete, and those that wait."""
    if K == 5:
        out = a1 + t4 * v
        a1 = a2 + t3 * v
        a2 = a3 + t2 * v
        a3 = a4 + t1 * v
        a4 = t0 * v
    elif K == 3:
        out = a1 + t2 * v
        a1 = a2 + t1 * v
        a2 = t0 * v
    else:
        out = t0 * v
    return out, a1, a2, a3, a4


@triton.jit
def _pick(t0, t1, t2, t3, t4, INDEX: tl.constexpr):
    if INDEX == 0:
        t = t0
    elif INDEX == 1:
        t = t1
    elif INDEX == 2:
        t = t2
    elif INDEX == 3:
        t = t3
    else:
        t = t4
    return t


@triton.jit
def _taps(ptr, K: tl.constexpr, FLIP: tl.constexpr):
    FIRST: tl.constexpr = K - 1 if FLIP else 0
    STEP: tl.constexpr = -1 if FLIP else 1
    t0 = tl.load(ptr + FIRST)
    t1 = t0
    t2 = t0
    t3 = t0
    t4 = t0
    if K >= 3:
        t1 = tl.load(ptr + (FIRST + STEP))
        t2 = tl.load(ptr + (FIRST + 2 * STEP))
    if K >= 5:
        t3 = tl.load(ptr + (FIRST + 3 * STEP))
        t4 = tl.load(ptr + (FIRST + 4 * STEP))
    return t0, t1, t2, t3, t4


@triton.jit(do_not_specialize=['channel_groups', 'height', 'width', 'splits'])
def maxima_kernel(
    x_ptr,
    taps_ptr,
    cmax_ptr,
    carg_ptr,
    smax_ptr,
    sarg_ptr,
    channel_groups,
    height,
    width,
    splits,
    VEC: tl.constexpr,
    LAST: tl.constexpr,
    K: tl.constexpr,
    CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr,
    EVEN: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
):
    """Maxima of the filtered map and where they are: over the positions of a program, (samples,
    splits x W blocks, C), and over its channels, (samples, C blocks, H W). EVEN: C is a multiple
    of BC."""
    R: tl.constexpr = K // 2
    channels = channel_groups * VEC
    c_blocks = tl.cdiv(channels, BC)
    w_blocks = tl.cdiv(width, BW)
    pid = tl.program_id(0)
    c_block = pid % c_blocks
    pid = pid // c_blocks
    w_block = pid % w_blocks
    pid = pid // w_blocks
    part = pid % splits
    n = (pid // splits).to(tl.int64)
    c = c_block * BC + tl.arange(0, BC)
    w = w_block * BW + tl.arange(0, BW)
    in_c = c < channels
    in_w = w < width
    span = tl.cdiv(height, splits)
    first = part * span
    last = tl.minimum(first + span, height)
    t0, t1, t2, t3, t4 = _taps(taps_ptr, K, False)
    if LAST:
        at = w[None, :] * channels + c[:, None]
        row_step = width * channels
        col_step = channels
    else:
        at = c[:, None] * height * width + w[None, :]
        row_step = width
        col_step = 1
    x_ptrs = x_ptr + n * channels * height * width + at

    zero = tl.zeros([BC, BW], tl.float32)
    f1 = zero
    f2 = zero
    f3 = zero
    f4 = zero
    g1 = zero
    g2 = zero
    g3 = zero
    g4 = zero
    best = tl.full([BC, BW], -float('inf'), tl.float32)
    arg = tl.full([BC, BW], BIG, tl.int32)
    for row in range(first - R, last + R):
        x_row = x_ptrs + row * row_step
        in_rows = in_c[:, None] & ((row >= 0) & (row < height))
        x = tl.load(x_row, mask=in_rows & in_w[None, :], other=0.0).to(tl.float32)
        if CHANNEL:
            f, f1, f2, f3, f4 = _step(x, f1, f2, f3, f4, t0, t1, t2, t3, t4, K)
        if SPATIAL:
            v = x * _pick(t0, t1, t2, t3, t4, R)
            for j in tl.static_range(-R, R + 1):
                if j != 0:
                    in_u = (w + j >= 0) & (w + j < width)
                    x = tl.load(x_row + j * col_step, mask=in_rows & in_u[None, :], other=0.0)
                    v += x.to(tl.float32) * _pick(t0, t1, t2, t3, t4, R + j)
            g, g1, g2, g3, g4 = _step(v, g1, g2, g3, g4, t0, t1, t2, t3, t4, K)
        h = row - R
        if h >= first:
            if CHANNEL:
                arg = tl.where(f > best, tl.broadcast_to((h * width + w)[None, :], [BC, BW]), arg)
                best = nan_max(f, best)
            if SPATIAL:
                if not EVEN:
                    g = tl.where(in_c[:, None], g, -float('inf'))
                top = tl.reduce(g, 0, nan_max)
                which = tl.min(tl.where(g == top[None, :], c[:, None], BIG), 0)
                # No channel is found where the maximum is NaN.
                which = tl.where(which == BIG, c_block * BC, which)
                to = (n * c_blocks + c_block) * height * width + (h * width + w)
                tl.store(smax_ptr + to, top, mask=in_w)
                tl.store(sarg_ptr + to, which, mask=in_w)
    if CHANNEL:
        best = tl.where(in_w[None, :], best, -float('inf'))
        top = tl.reduce(best, 1, nan_max)
        arg = tl.min(tl.where(in_w[None, :] & (best == top[:, None]), arg, BIG), 1)
        to = (n * splits * w_blocks + part * w_blocks + w_block) * channels + c
        tl.store(cmax_ptr + to, top, mask=in_c)
        # No index was ever noted where all is -inf, and none is found again where all is NaN.
        tl.store(carg_ptr + to, tl.where(arg == BIG, first * width + w_block * BW, arg), mask=in_c)


@triton.jit
def _entropy_term(x, m, shift, slope, base):
    """The entropy's gradient -g p (log p + H), as p (slope d + base) with d = x - m, where
    log p + H = d - t / s."""
    d = x - m
    return tl.exp2(d * LOG2E - shift) * (slope * d + base)


@triton.jit
def _entropy_vectors(g_ptr, m_ptr, l_ptr, q_ptr, at, mask):
    g = tl.load(g_ptr + at, mask=mask, other=0.0)
    m = tl.load(m_ptr + at, mask=mask, other=0.0)
    shift = tl.load(l_ptr + at, mask=mask, other=0.0) * LOG2E
    base = g * tl.load(q_ptr + at, mask=mask, other=0.0)
    return m, shift, -g, base


@triton.jit(do_not_specialize=['channel_groups', 'height', 'width', 'splits'])
def entropy_grad_kernel(
    x_ptr,
    gx_ptr,
    dx_ptr,
    c_ptr,
    s_ptr,
    slope_ptr,
    taps_ptr,
    cavg_ptr,
    cmax_ptr,
    cent_ptr,
    savg_ptr,
    smax_ptr,
    sent_ptr,
    carg_ptr,
    cm_ptr,
    cl_ptr,
    cq_ptr,
    sarg_ptr,
    sm_ptr,
    sl_ptr,
    sq_ptr,
    channel_groups,
    height,
    width,
    splits,
    mean_c,
    mean_s,
    VEC: tl.constexpr,
    LAST: tl.constexpr,
    K: tl.constexpr,
    CAVG: tl.constexpr,
    CMAX: tl.constexpr,
    CENT: tl.constexpr,
    SAVG: tl.constexpr,
    SMAX: tl.constexpr,
    SENT: tl.constexpr,
    ADD: tl.constexpr,
    SCALE: tl.constexpr,
    PART: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
):
    """dx = gx (ADD), scaled by c + s (SCALE) or by c + v s (PART, v = slope), + the shares of the
    six statistics, given their gradients cavg to sent, the indices of the maxima carg and sarg, and
    m, l = log s and q = t / s of either entropy."""
    R: tl.constexpr = K // 2
    MAX: tl.constexpr = CMAX or SMAX
    channels = channel_groups * VEC
    c_blocks = tl.cdiv(channels, BC)
    w_blocks = tl.cdiv(width, BW)
    pid = tl.program_id(0)
    c = (pid % c_blocks) * BC + tl.arange(0, BC)
    pid = pid // c_blocks
    w = (pid % w_blocks) * BW + tl.arange(0, BW)
    pid = pid // w_blocks
    part = pid % splits
    n = (pid // splits).to(tl.int64)
    in_c = c < channels
    in_w = w < width
    mask = in_c[:, None] & in_w[None, :]
    span = tl.cdiv(height, splits)
    first = part * span
    last = tl.minimum(first + span, height)
    sample = n * channels * height * width
    to_c = n * channels + c
    to_s = n * height * width + w
    t0, t1, t2, t3, t4 = _taps(taps_ptr, K, True)
    if LAST:
        at = w[None, :] * channels + c[:, None]
        row_step = width * channels
    else:
        at = c[:, None] * height * width + w[None, :]
        row_step = width
    at += sample

    if CAVG:
        cavg = (tl.load(cavg_ptr + to_c, mask=in_c, other=0.0) * mean_c)[:, None]
    if CMAX:
        cmax = tl.load(cmax_ptr + to_c, mask=in_c, other=0.0)[:, None]
        carg = tl.load(carg_ptr + to_c, mask=in_c, other=-1)[:, None]
    if CENT:
        cm, cl, cg, cb = _entropy_vectors(cent_ptr, cm_ptr, cl_ptr, cq_ptr, to_c, in_c)
        cm = cm[:, None]
        cl = cl[:, None]
        cg = cg[:, None]
        cb = cb[:, None]

    if SCALE:
        factor = tl.load(c_ptr + to_c, mask=in_c, other=0.0)[:, None]
        if PART:
            slope = tl.load(slope_ptr + to_c, mask=in_c, other=0.0)[:, None]
    zero = tl.zeros([BC, BW], tl.float32)
    f1 = zero
    f2 = zero
    f3 = zero
    f4 = zero
    for row in range(first - R, last + R):
        acc = zero
        if MAX:
            # What the maxima of this row send to its entries, before the filter along H.
            v = zero
            if SMAX:  # noqa: SIM102 - a constant, then a condition at run time
                if (row >= 0) & (row < height):
                    sarg_row = sarg_ptr + to_s + row * width
                    smax_row = smax_ptr + to_s + row * width
                    for j in tl.static_range(-R, R + 1):
                        in_u = (w + j >= 0) & (w + j < width)
                        which = tl.load(sarg_row + j, mask=in_u, other=-1)[None, :]
                        g = tl.load(smax_row + j, mask=in_u, other=0.0)
                        g = (g * _pick(t0, t1, t2, t3, t4, R + j))[None, :]
                        v = tl.where(which == c[:, None], v + g, v)
            if CMAX:
                v = tl.where(carg == (row * width + w)[None, :], v + cmax, v)
            acc, f1, f2, f3, f4 = _step(v, f1, f2, f3, f4, t0, t1, t2, t3, t4, K)
        h = row - R
        if h >= first:
            here = at + h * row_step
            if ADD:
                gx = tl.load(gx_ptr + here, mask=mask, other=0.0).to(tl.float32)
                if SCALE:
                    s = tl.load(s_ptr + to_s + h * width, mask=in_w, other=0.0)[None, :]
                    gx *= factor + (slope * s if PART else s)
                acc += gx
            if CAVG:
                acc += cavg
            if SAVG:
                g = tl.load(savg_ptr + to_s + h * width, mask=in_w, other=0.0)
                acc += (g * mean_s)[None, :]
            if CENT or SENT:
                x = tl.load(x_ptr + here, mask=mask, other=0.0).to(tl.float32)
                # -inf has probability 0, and no other share.
                x = nan_max(x, -3.4028234663852886e38)
            if CENT:
                acc += _entropy_term(x, cm, cl, cg, cb)
            if SENT:
                sm, sl, sg, sb = _entropy_vectors(
                    sent_ptr, sm_ptr, sl_ptr, sq_ptr, to_s + h * width, in_w
                )
                acc += _entropy_term(x, sm[None, :], sl[None, :], sg[None, :], sb[None, :])
            tl.store(dx_ptr + here, acc.to(dx_ptr.dtype.element_ty), mask=mask)


def _walks(x, warps):
    """Blocks of channels and of columns for a walk down the rows, and VEC. In the contiguous
    format a thread takes single elements, since the filter reads rows at odd offsets."""
    _, c, _, w = x.shape
    if channels_last(x):
        block_c = pow2(c, 16 * warps)
        return block_c, pow2(w, warps * 256 // block_c), vector(c, x)
    block_w = pow2(w, 64)
    return pow2(c, warps * 256 // block_w), block_w, 1


def _moments(x, row, col):
    """(mean, m, l, q, entropy) of rows and of columns, each (N, kept) or None; `row` and `col`
    tell whether the mean and whether the entropy is wanted."""
    n, rows, cols = matrix(x)
    vec = vector(cols, x)
    block_cols = pow2(cols, max(64, 32 * vec))
    block_rows = pow2(rows, 2048 // block_cols)
    blocks = cdiv(cols, block_cols)
    splits = split(n * blocks, rows, block_rows)
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
            cols // vec,
            splits,
            VEC=vec,
            ROW_AVG=row[0],
            ROW_ENT=row[1],
            COL_AVG=col[0],
            COL_ENT=col[1],
            EVEN=rows % block_rows == 0 and cols % block_cols == 0,
            BR=block_rows,
            BK=block_cols,
        )
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
        *(parts if t is None else t for t in out),
        n,
        kept,
        splits,
        1 / length,
        AVG=avg,
        ENT=ent,
        B=block,
    )
    return out


def _maxima(x, taps, channel, spatial):
    """c_max and its index, s_max and its index; None where not wanted."""
    n, c, height, width = x.shape
    last = channels_last(x)
    # The limit on registers lets 16 (12) warps share a multiprocessor, hardly spilling.
    warps, registers = (8, 128) if last else (4, 168)
    block_c, block_w, vec = _walks(x, warps)
    c_blocks, w_blocks = cdiv(c, block_c), cdiv(width, block_w)
    # At least 16 rows to a part, so that the rows read twice weigh little.
    splits = split(n * c_blocks * w_blocks, height, 1, least=16)
    ctops, cargs, stops, sargs = x, x, x, x
    if channel:
        shape = n, splits * w_blocks, c
        ctops, cargs = floats(x, *shape), ints(x, *shape)
    if spatial:
        shape = n, c_blocks, height * width
        stops, sargs = floats(x, *shape), ints(x, *shape)
    launch(
        maxima_kernel,
        n * splits * w_blocks * c_blocks,
        x,
        taps,
        ctops,
        cargs,
        stops,
        sargs,
        c // vec,
        height,
        width,
        splits,
        num_warps=warps,
        maxnreg=registers,
        VEC=vec,
        LAST=last,
        K=taps.numel(),
        CHANNEL=channel,
        SPATIAL=spatial,
        EVEN=c % block_c == 0,
        BC=block_c,
        BW=block_w,
    )
    return (
        *(first_maximum(ctops, cargs) if channel else (None, None)),
        *(first_maximum(stops, sargs) if spatial else (None, None)),
    )


def _filtered(x, taps, dim):
    """x filtered along one axis, zero padded: PyTorch's way, for sizes the kernels lack."""
    length, reach = x.shape[dim], taps.numel() // 2
    padded = F.pad(x, (reach, reach) if dim == 3 else (0, 0, reach, reach))
    return sum(tap * padded.narrow(dim, i, length) for i, tap in enumerate(taps))


def _plain_maxima(x, taps, channel, spatial):
    found = []
    x = _filtered(x.float(), taps, 2)
    for wanted, dim in ((channel, 2), (spatial, 1)):
        top, at = (
            (x if dim == 2 else _filtered(x, taps, 3)).flatten(2).max(dim)
            if wanted
            else (None,) * 2
        )
        found += top, None if at is None else at.int()
    return found


def _plain_maxima_grad(gx, taps, gcmax, carg, gsmax, sarg):
    """gx, in float32, with the gradients of the maxima added."""
    n, c, height, width = gx.shape
    dx = gx.float()
    for g, arg, dim in ((gcmax, carg, 2), (gsmax, sarg, 1)):
        if g is not None:
            at = dx.new_zeros(n, c, height * width)
            at.scatter_(dim, arg.long().unsqueeze(dim), g.reshape(arg.shape).unsqueeze(dim))
            at = at.view(gx.shape)
            at = _filtered(at, taps.flip(0), 3) if dim == 1 else at
            dx = dx + _filtered(at, taps.flip(0), 2)
    return dx.contiguous(memory_format=torch.channels_last) if channels_last(gx) else dx


def entropy_pool(x, taps, *, channel, spatial, avg, max, ent):
    n, _, height, width = x.shape
    last = channels_last(x)
    of_channels = (channel and avg, channel and ent)
    of_positions = (spatial and avg, spatial and ent)
    by_rows, by_cols = _moments(
        x, *((of_positions, of_channels) if last else (of_channels, of_positions))
    )
    if last:
        by_rows, by_cols = by_cols, by_rows
    c_avg, *c_saved, c_ent = by_rows
    s_avg, *s_saved, s_ent = by_cols
    c_max, c_arg, s_max, s_arg = None, None, None, None
    if max:
        maxima = _maxima if taps.numel() in FILTERS else _plain_maxima
        c_max, c_arg, s_max, s_arg = maxima(x, taps, channel, spatial)
    s_avg, s_max, s_ent = (
        None if s is None else s.view(n, height, width) for s in (s_avg, s_max, s_ent)
    )
    saved = (c_arg, *c_saved, s_arg, *s_saved)
    return (c_avg, c_max, c_ent, s_avg, s_max, s_ent), saved


def entropy_pool_grad(x, taps, grads, saved, *, gx=None, c=None, s=None, v=None):
    """gx: what is to be added, in x's memory format; c and s: that scale it by
    c + s first, with v by c + v s."""
    n, ch, height, width = x.shape
    dx = torch.empty_like(x)
    c_avg, c_max, c_ent, s_avg, s_max, s_ent = grads
    if (c_max is not None or s_max is not None) and taps.numel() not in FILTERS:
        if gx is None:
            gx = torch.zeros_like(x)
        elif c is not None:
            part = s[:, None] if v is None else v[:, :, None, None] * s[:, None]
            gx, c, s, v = gx.float() * (c[:, :, None, None] + part), None, None, None
        gx = _plain_maxima_grad(gx, taps, c_max, saved[0], s_max, saved[4])
        c_max = s_max = None
    block_c, block_w, vec = _walks(x, 4)
    c_blocks, w_blocks = cdiv(ch, block_c), cdiv(width, block_w)
    splits = split(n * c_blocks * w_blocks, height, 1, least=16)
    grads = c_avg, c_max, c_ent, s_avg, s_max, s_ent
    tensors = (x if t is None else t for t in (gx, dx, c, s, v, taps, *grads, *saved))
    given = {
        name: grad is not None
        for name, grad in zip(('CAVG', 'CMAX', 'CENT', 'SAVG', 'SMAX', 'SENT'), grads, strict=True)
    }
    filtered = given['CMAX'] or given['SMAX']
    launch(
        entropy_grad_kernel,
        n * splits * w_blocks * c_blocks,
        x,
        *tensors,
        ch // vec,
        height,
        width,
        splits,
        1 / (height * width),
        1 / ch,
        maxnreg=168,
        VEC=vec,
        LAST=channels_last(x),
        K=taps.numel() if filtered else 1,
        ADD=gx is not None,
        SCALE=c is not None,
        PART=v is not None,
        BC=block_c,
        BW=block_w,
        **given,
    )
    return dx


def entropy_dx(x, taps, dy, c, s, grads, saved, carry=None, v=None):
    return entropy_pool_grad(x, taps, grads, saved, gx=dy, c=c, s=s, v=v)
