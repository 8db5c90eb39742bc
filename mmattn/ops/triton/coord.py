"""Coordinate attention as a whole operator: 4 launches, and 5 or 6 in backward.

Programs take one side, height or width, of one sample each. The norm by the batch, and the sums
over the batch that the weights' gradients are, each end a launch. What is kept for backward lies in
memory side by side: strips (N, C, H), then (N, C, W), and the same of v and u with K rows.
"""

import torch
import triton
import triton.language as tl

from .. import identity
from ..tensors import dense, flat, some
from . import mlp
from .common import cdiv, floats, launch, pow2, total
from .products import summed
from .strip import coord_dx, coord_grad_parts, coord_scale, strip_pool_parts

# Rows that a program of the weights' gradients sums, if it must be many.
ROWS = 2048


@triton.jit
def _hardswish(u):
    # NaN stays.
    top = tl.where(u + 3 < 0, 0.0, tl.where(u + 3 > 6, 6.0, u + 3))
    return u * top / 6


@triton.jit
def _hardswish_grad(g, u):
    return tl.where(u < -3, 0.0, tl.where(u <= 3, g * (u / 3 + 0.5), g))


@triton.jit
def _tile(ptr, i, j, ni, nj):
    """Of a matrix (ni, nj)."""
    mask = (i < ni)[:, None] & (j < nj)[None, :]
    return tl.load(ptr + i[:, None] * nj + j[None, :], mask=mask, other=0.0)


@triton.jit
def _flipped(ptr, i, j, ni, nj):
    """The same, transposed: (j, i)."""
    mask = (j < nj)[:, None] & (i < ni)[None, :]
    return tl.load(ptr + i[None, :] * nj + j[:, None], mask=mask, other=0.0)


@triton.jit
def _store(ptr, i, j, ni, nj, value):
    mask = (i < ni)[:, None] & (j < nj)[None, :]
    tl.store(ptr + i[:, None] * nj + j[None, :], value, mask=mask)


SIZES = ['samples', 'channels', 'hidden', 'height', 'width']


@triton.jit(do_not_specialize=[*SIZES, 'parts_h', 'parts_w'])
def coord_kernel(
    ch_ptr,
    cw_ptr,
    w1_ptr,
    b1_ptr,
    strips_ptr,
    v_ptr,
    moments_ptr,
    samples,
    channels,
    hidden,
    height,
    width,
    parts_h,
    parts_w,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """Of a side its strips, from planes in parts (parts, samples, C, L); v = W1 strips + b1; and of
    each row of v the mean and the sum of squared distances from it, (samples, 2 sides, K, 2)."""
    pid = tl.program_id(0)
    n = (pid // 2).to(tl.int64)
    moments_ptr += pid.to(tl.int64) * hidden * 2
    planes_ptr = ch_ptr
    length = height
    parts = parts_h
    if pid % 2 == 1:
        planes_ptr = cw_ptr
        length = width
        parts = parts_w
        strips_ptr += samples.to(tl.int64) * height * channels
        v_ptr += samples.to(tl.int64) * height * hidden
    step = samples.to(tl.int64) * channels * length
    at = n * channels * length
    v_ptr += n * hidden * length
    for start_k in range(0, hidden, BK):
        k = start_k + tl.arange(0, BK)
        bias = tl.load(b1_ptr + k, mask=k < hidden, other=0.0)[:, None]
        sums = tl.zeros([BK, BL], tl.float32)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            v = tl.zeros([BK, BL], tl.float32)
            for start_c in range(0, channels, BC):
                i = start_c + tl.arange(0, BC)
                mask = (i < channels)[:, None] & (j < length)[None, :]
                here = at + i[:, None] * length + j[None, :]
                strips = summed(planes_ptr, here, step, parts, mask)
                if start_k == 0:
                    tl.store(strips_ptr + here, strips, mask=mask)
                w1 = _tile(w1_ptr, k, i, hidden, channels)
                v = tl.dot(w1, strips, v, input_precision='ieee')
            v += bias
            _store(v_ptr, k, j, hidden, length, v)
            sums += tl.where((j < length)[None, :], v, 0.0)
        mean = tl.sum(sums, 1) / length
        tl.debug_barrier()
        squares = tl.zeros([BK, BL], tl.float32)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            away = _tile(v_ptr, k, j, hidden, length) - mean[:, None]
            squares += tl.where((j < length)[None, :], away * away, 0.0)
        tl.store(moments_ptr + 2 * k, mean, mask=k < hidden)
        tl.store(moments_ptr + 2 * k + 1, tl.sum(squares, 1), mask=k < hidden)


@triton.jit
def _batch(moments_ptr, k, samples, hidden, height, width, BK: tl.constexpr, BP: tl.constexpr):
    """Mean, sum of squared distances and count of each row k of v, over the batch."""
    total = (samples * (height + width)).to(tl.float32)
    in_k = (k < hidden)[None, :]
    sums = tl.zeros([BP, BK], tl.float32)
    for start in range(0, 2 * samples, BP):
        p = start + tl.arange(0, BP)
        at = (p[:, None] * hidden + k[None, :]) * 2
        mask = (p < 2 * samples)[:, None] & in_k
        count = tl.where(p % 2 == 0, height, width).to(tl.float32)[:, None]
        sums += tl.load(moments_ptr + at, mask=mask, other=0.0) * count
    mean = tl.sum(sums, 0) / total
    squares = tl.zeros([BP, BK], tl.float32)
    for start in range(0, 2 * samples, BP):
        p = start + tl.arange(0, BP)
        at = (p[:, None] * hidden + k[None, :]) * 2
        mask = (p < 2 * samples)[:, None] & in_k
        count = tl.where(p % 2 == 0, height, width).to(tl.float32)[:, None]
        away = tl.load(moments_ptr + at, mask=mask, other=0.0) - mean[None, :]
        squares += tl.load(moments_ptr + at + 1, mask=mask, other=0.0)
        squares += tl.where(mask, count * away * away, 0.0)
    return mean, tl.sum(squares, 0), total


@triton.jit(do_not_specialize=[*SIZES, 'eps'])
def coord_factors_kernel(
    v_ptr,
    moments_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    wh_ptr,
    bh_ptr,
    ww_ptr,
    bw_ptr,
    u_ptr,
    h_ptr,
    w_ptr,
    batch_ptr,
    samples,
    channels,
    hidden,
    height,
    width,
    eps,
    BY_BATCH: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
    BP: tl.constexpr,
):
    """u = norm(v), and the factors h and w: sigmoid(W hardswish(u) + b). BY_BATCH: mean and var are
    the batch's, which are stored, and batch (2, K) what running ones move to; else given."""
    pid = tl.program_id(0)
    n = (pid // 2).to(tl.int64)
    second_ptr = wh_ptr
    b_ptr = bh_ptr
    f_ptr = h_ptr
    length = height
    if pid % 2 == 1:
        second_ptr = ww_ptr
        b_ptr = bw_ptr
        f_ptr = w_ptr
        length = width
        v_ptr += samples.to(tl.int64) * height * hidden
        u_ptr += samples.to(tl.int64) * height * hidden
    v_ptr += n * hidden * length
    u_ptr += n * hidden * length
    f_ptr += n * channels * length
    for start_k in range(0, hidden, BK):
        k = start_k + tl.arange(0, BK)
        in_k = k < hidden
        if BY_BATCH:
            mean, squares, total = _batch(moments_ptr, k, samples, hidden, height, width, BK, BP)
            var = squares / total
            if tl.program_id(0) == 0:
                tl.store(batch_ptr + k, mean, mask=in_k)
                unbiased = squares / tl.maximum(total - 1, 1.0)
                tl.store(batch_ptr + hidden + k, unbiased, mask=in_k)
                tl.store(mean_ptr + k, mean, mask=in_k)
                tl.store(var_ptr + k, var, mask=in_k)
        else:
            mean = tl.load(mean_ptr + k, mask=in_k, other=0.0)
            var = tl.load(var_ptr + k, mask=in_k, other=1.0)
        scale = tl.load(weight_ptr + k, mask=in_k, other=0.0) / tl.sqrt(var + eps)
        bias = tl.load(bias_ptr + k, mask=in_k, other=0.0)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            v = _tile(v_ptr, k, j, hidden, length)
            u = (v - mean[:, None]) * scale[:, None] + bias[:, None]
            _store(u_ptr, k, j, hidden, length, u)
    tl.debug_barrier()
    for start_c in range(0, channels, BC):
        i = start_c + tl.arange(0, BC)
        bias = tl.load(b_ptr + i, mask=i < channels, other=0.0)[:, None]
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            f = tl.zeros([BC, BL], tl.float32)
            for start_k in range(0, hidden, BK):
                k = start_k + tl.arange(0, BK)
                a = _hardswish(_tile(u_ptr, k, j, hidden, length))
                w = _tile(second_ptr, i, k, channels, hidden)
                f = tl.dot(w, a, f, input_precision='ieee')
            _store(f_ptr, i, j, channels, length, 1 / (1 + tl.exp(-(f + bias))))


@triton.jit(do_not_specialize=[*SIZES, 'parts_h', 'parts_w', 'eps'])
def coord_factors_grad_kernel(
    dh_ptr,
    dw_ptr,
    given_h_ptr,
    given_w_ptr,
    h_ptr,
    w_ptr,
    wh_ptr,
    ww_ptr,
    u_ptr,
    v_ptr,
    mean_ptr,
    var_ptr,
    g_ptr,
    gu_ptr,
    sums_ptr,
    samples,
    channels,
    hidden,
    height,
    width,
    parts_h,
    parts_w,
    eps,
    GIVEN_H: tl.constexpr,
    GIVEN_W: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """g, the gradient of what the sigmoids took, from parts (parts, samples, C, L) of the factors'
    and with GIVEN_* more; gu, that of u; of each row the sums of gu and of gu times the unit v,
    (samples, 2 sides, K, 2)."""
    pid = tl.program_id(0)
    n = (pid // 2).to(tl.int64)
    sums_ptr += pid.to(tl.int64) * hidden * 2
    df_ptr = dh_ptr
    given_ptr = given_h_ptr
    f_ptr = h_ptr
    second_ptr = wh_ptr
    length = height
    parts = parts_h
    if pid % 2 == 1:
        df_ptr = dw_ptr
        given_ptr = given_w_ptr
        f_ptr = w_ptr
        second_ptr = ww_ptr
        length = width
        parts = parts_w
        before = samples.to(tl.int64) * height
        g_ptr += before * channels
        u_ptr += before * hidden
        v_ptr += before * hidden
        gu_ptr += before * hidden
    step = samples.to(tl.int64) * channels * length
    at = n * channels * length
    for start_c in range(0, channels, BC):
        i = start_c + tl.arange(0, BC)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            mask = (i < channels)[:, None] & (j < length)[None, :]
            here = at + i[:, None] * length + j[None, :]
            g = summed(df_ptr, here, step, parts, mask)
            if (GIVEN_H and pid % 2 == 0) or (GIVEN_W and pid % 2 == 1):
                g += tl.load(given_ptr + here, mask=mask, other=0.0)
            f = tl.load(f_ptr + here, mask=mask, other=0.0)
            tl.store(g_ptr + here, g * ((1 - f) * f), mask=mask)
    tl.debug_barrier()
    rows = n * hidden * length
    for start_k in range(0, hidden, BK):
        k = start_k + tl.arange(0, BK)
        in_k = k < hidden
        mean = tl.load(mean_ptr + k, mask=in_k, other=0.0)[:, None]
        unit = 1 / tl.sqrt(tl.load(var_ptr + k, mask=in_k, other=1.0) + eps)[:, None]
        levels = tl.zeros([BK, BL], tl.float32)
        slopes = tl.zeros([BK, BL], tl.float32)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            d = tl.zeros([BK, BL], tl.float32)
            for start_c in range(0, channels, BC):
                i = start_c + tl.arange(0, BC)
                w = _flipped(second_ptr, i, k, channels, hidden)
                g = _tile(g_ptr + at, i, j, channels, length)
                d = tl.dot(w, g, d, input_precision='ieee')
            d = _hardswish_grad(d, _tile(u_ptr + rows, k, j, hidden, length))
            _store(gu_ptr + rows, k, j, hidden, length, d)
            inside = in_k[:, None] & (j < length)[None, :]
            v = _tile(v_ptr + rows, k, j, hidden, length)
            levels += tl.where(inside, d, 0.0)
            slopes += tl.where(inside, d * ((v - mean) * unit), 0.0)
        tl.store(sums_ptr + 2 * k, tl.sum(levels, 1), mask=in_k)
        tl.store(sums_ptr + 2 * k + 1, tl.sum(slopes, 1), mask=in_k)


@triton.jit(do_not_specialize=[*SIZES, 'eps'])
def coord_strips_grad_kernel(
    gu_ptr,
    v_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    sums_ptr,
    w1_ptr,
    gv_ptr,
    dch_ptr,
    dcw_ptr,
    dnorm_ptr,
    samples,
    channels,
    hidden,
    height,
    width,
    eps,
    BY_BATCH: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
    BP: tl.constexpr,
):
    """gv, the gradient of what the norm took; those of the planes; and dnorm (2, K), those of the
    norm's weight and bias."""
    pid = tl.program_id(0)
    n = (pid // 2).to(tl.int64)
    dstrips_ptr = dch_ptr
    length = height
    if pid % 2 == 1:
        dstrips_ptr = dcw_ptr
        length = width
        before = samples.to(tl.int64) * height * hidden
        gu_ptr += before
        v_ptr += before
        gv_ptr += before
    rows = n * hidden * length
    for start_k in range(0, hidden, BK):
        k = start_k + tl.arange(0, BK)
        in_k = k < hidden
        levels = tl.zeros([BP, BK], tl.float32)
        slopes = tl.zeros([BP, BK], tl.float32)
        for start in range(0, 2 * samples, BP):
            p = start + tl.arange(0, BP)
            at = (p[:, None] * hidden + k[None, :]) * 2
            mask = (p < 2 * samples)[:, None] & in_k[None, :]
            levels += tl.load(sums_ptr + at, mask=mask, other=0.0)
            slopes += tl.load(sums_ptr + at + 1, mask=mask, other=0.0)
        level = tl.sum(levels, 0)
        slope = tl.sum(slopes, 0)
        if tl.program_id(0) == 0:
            tl.store(dnorm_ptr + k, slope, mask=in_k)
            tl.store(dnorm_ptr + hidden + k, level, mask=in_k)
        mean = tl.load(mean_ptr + k, mask=in_k, other=0.0)[:, None]
        unit = 1 / tl.sqrt(tl.load(var_ptr + k, mask=in_k, other=1.0) + eps)
        scale = (unit * tl.load(weight_ptr + k, mask=in_k, other=0.0))[:, None]
        total = (samples * (height + width)).to(tl.float32)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            g = _tile(gu_ptr + rows, k, j, hidden, length)
            if BY_BATCH:
                v = _tile(v_ptr + rows, k, j, hidden, length)
                g -= (level[:, None] + (v - mean) * (unit * slope)[:, None]) / total
            _store(gv_ptr + rows, k, j, hidden, length, g * scale)
    tl.debug_barrier()
    for start_c in range(0, channels, BC):
        i = start_c + tl.arange(0, BC)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            d = tl.zeros([BC, BL], tl.float32)
            for start_k in range(0, hidden, BK):
                k = start_k + tl.arange(0, BK)
                w1 = _flipped(w1_ptr, k, i, hidden, channels)
                g = _tile(gv_ptr + rows, k, j, hidden, length)
                d = tl.dot(w1, g, d, input_precision='ieee')
            _store(dstrips_ptr + n * channels * length, i, j, channels, length, d)


@triton.jit
def _outer_over_positions(
    sums,
    bias,
    a_ptr,
    b_ptr,
    i,
    j,
    ni,
    nj,
    first,
    last,
    length,
    SWISH: tl.constexpr,
    BL: tl.constexpr,
):
    """sums (BI, BJ) + those over samples first to last and positions l of a[n, i, l] b[n, j, l];
    bias (BI, BL) + a alone. With SWISH of hardswish(b)."""
    for at in range(first * length, last * length, BL):
        place = at + tl.arange(0, BL)
        inside = place < last * length
        n = (place // length).to(tl.int64)
        here = place % length
        a = tl.load(
            a_ptr + (n * ni * length + here)[None, :] + i[:, None] * length,
            mask=(i < ni)[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + (n * nj * length + here)[:, None] + j[None, :] * length,
            mask=inside[:, None] & (j < nj)[None, :],
            other=0.0,
        )
        if SWISH:
            b = _hardswish(b)
        sums = tl.dot(a, b, sums, input_precision='ieee')
        bias += a
    return sums, bias


@triton.jit(do_not_specialize=[*SIZES, 'groups'])
def coord_weights_kernel(
    g_ptr,
    u_ptr,
    gv_ptr,
    strips_ptr,
    out_ptr,
    samples,
    channels,
    hidden,
    height,
    width,
    groups,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BL: tl.constexpr,
):
    """Of each group of samples the gradients of Wh (C, K), bh (C,), Ww, bw, W1 (K, C), b1 (K,), one
    after the other."""
    pid = tl.program_id(0)
    c_blocks = tl.cdiv(channels, BJ)
    k_blocks = tl.cdiv(hidden, BI)
    k_block = pid % k_blocks
    k = k_block * BI + tl.arange(0, BI)
    pid = pid // k_blocks
    c_block = pid % c_blocks
    c = c_block * BJ + tl.arange(0, BJ)
    pid = pid // c_blocks
    which = pid % 3
    group = pid // 3
    each = tl.cdiv(samples, groups)
    first = group * each
    last = tl.minimum(first + each, samples)
    matrix = channels * hidden
    out_ptr += group.to(tl.int64) * (3 * matrix + 2 * channels + hidden)
    rows = samples.to(tl.int64) * height
    zero = tl.zeros([BJ, BI], tl.float32)
    bias = tl.zeros([BJ, BL], tl.float32)
    if which < 2:
        length = height
        if which == 1:
            length = width
            g_ptr += rows * channels
            u_ptr += rows * hidden
            out_ptr += matrix + channels
        dw, bias = _outer_over_positions(
            zero, bias, g_ptr, u_ptr, c, k, channels, hidden, first, last, length, True, BL
        )
        _store(out_ptr, c, k, channels, hidden, dw)
        if k_block == 0:
            tl.store(out_ptr + matrix + c, tl.sum(bias, 1), mask=c < channels)
    else:
        out_ptr += 2 * (matrix + channels)
        zero1 = tl.zeros([BI, BJ], tl.float32)
        bias1 = tl.zeros([BI, BL], tl.float32)
        dw1, bias1 = _outer_over_positions(
            zero1, bias1, gv_ptr, strips_ptr, k, c, hidden, channels, first, last, height, False, BL
        )
        dw1, bias1 = _outer_over_positions(
            dw1,
            bias1,
            gv_ptr + rows * hidden,
            strips_ptr + rows * channels,
            k,
            c,
            hidden,
            channels,
            first,
            last,
            width,
            False,
            BL,
        )
        _store(out_ptr, k, c, hidden, channels, dw1)
        if c_block == 0:
            tl.store(out_ptr + matrix + k, tl.sum(bias1, 1), mask=k < hidden)


def _block(channels, hidden, height, width):
    """Products of matrices take blocks of 16 and more."""
    return dict(
        BK=max(16, pow2(hidden, 16)),
        BC=max(16, pow2(channels, 32)),
        BL=max(16, pow2(max(height, width), 64)),
        num_warps=8,
    )


def _sizes(h, w, hidden):
    n, channels, height = h.shape
    return n, channels, hidden, height, w.shape[2]


def coord(x, w1, b1, weight, bias, mean, var, wh, bh, ww, bw, by_batch, eps, a):
    if not mlp.fits(w1):
        return NotImplemented
    x = dense(x)
    n, c, height, width = x.shape
    hidden = w1.shape[0]
    w1, wh, ww = map(flat, (w1, wh, ww))
    ch, cw, _ = strip_pool_parts(x, False)
    sizes, block = (n, c, hidden, height, width), _block(c, hidden, height, width)
    strips, v, u = (floats(x, k, n * (height + width)) for k in (c, hidden, hidden))
    parts = floats(x, n, 2, hidden, 2)
    launch(
        coord_kernel, 2 * n, ch, cw, w1, b1, strips, v, parts, *sizes, len(ch), len(cw), **block
    )  # fmt: skip
    if by_batch:
        mean, var, moments = floats(x, hidden), floats(x, hidden), floats(x, 2, hidden)
    else:
        mean, var, moments = mean.clone(), var.clone(), torch.zeros_like(floats(x, 2, hidden))
    h, w = floats(x, n, c, height), floats(x, n, c, width)
    launch(
        coord_factors_kernel, 2 * n, v, parts, weight, bias, mean, var, wh, bh, ww, bw, u, h, w,
        moments, *sizes, eps, BY_BATCH=by_batch, BP=pow2(2 * n, 128), **block,
    )  # fmt: skip
    plus, rows = (None, h) if a is None else identity.part_of_rows(h, a)
    y = coord_scale(x, rows, w, plus)
    return y, h, w, moments, [strips, v, u, mean, var]


def _weights(g, u, gv, strips, sizes):
    """The gradients of Wh, bh, Ww, bw, W1 and b1."""
    n, c, hidden, height, width = sizes
    block = dict(BI=max(16, pow2(hidden, 16)), BJ=max(16, pow2(c, 32)))
    programs = 3 * cdiv(hidden, block['BI']) * cdiv(c, block['BJ'])
    groups = min(cdiv(n * max(height, width), ROWS), cdiv(512, programs), n)
    groups = cdiv(n, cdiv(n, groups))
    shapes = [(c, hidden), (c,)] * 2 + [(hidden, c), (hidden,)]
    lengths = [torch.Size(shape).numel() for shape in shapes]
    parts = floats(g, groups, sum(lengths))
    launch(
        coord_weights_kernel, groups * programs, g, u, gv, strips, parts, *sizes, groups, BL=32,
        **block,
    )  # fmt: skip
    found = total(parts, 0).split(lengths)
    return [d.view(shape) for d, shape in zip(found, shapes, strict=True)]


def coord_strips(x, w1, strips):
    """ch and cw of what `coord` kept; None where it kept nothing, as another ran in its place."""
    if not mlp.fits(w1):
        return None
    n, c, *lengths = x.shape
    sides = strips.flatten().split([n * c * length for length in lengths])
    return [side.view(n, c, length) for side, length in zip(sides, lengths, strict=True)]


def coord_backward(dy, gh, gw, x, w1, weight, wh, ww, a, h, w, saved, by_batch, eps, last, need_x):
    if not mlp.fits(w1):
        return NotImplemented
    x = dense(x, last)
    dy = torch.zeros_like(x) if dy is None else dense(dy, last)
    w1, wh, ww, gh, gw = map(flat, (w1, wh, ww, gh, gw))
    strips, v, u, mean, var = saved
    plus, rows, da = None, h, []
    if a is None:
        _, dh, dw = coord_grad_parts(x, h, w, dy)
    else:
        plus, rows = identity.part_of_rows(h, a)
        _, dv, dw, du = coord_grad_parts(x, rows, w, dy, u=plus)
        dh, *da = identity.part_of_rows_grad(total(du, 0), total(dv, 0), h, a)
        dh = dh[None].contiguous()
    sizes = _sizes(h, w, w1.shape[0])
    n, c, hidden, height, width = sizes
    block = _block(c, hidden, height, width)
    g, gu, gv = torch.empty_like(strips), torch.empty_like(u), torch.empty_like(u)
    sums, dnorm = floats(x, n, 2, hidden, 2), floats(x, 2, hidden)
    launch(
        coord_factors_grad_kernel, 2 * n, dh, dw, *(dh if t is None else t for t in (gh, gw)),
        h, w, wh, ww, u, v, mean, var, g, gu, sums, *sizes, len(dh), len(dw), eps,
        GIVEN_H=gh is not None, GIVEN_W=gw is not None, **block,
    )  # fmt: skip
    gch, gcw = torch.empty_like(h), torch.empty_like(w)
    launch(
        coord_strips_grad_kernel, 2 * n, gu, v, mean, var, weight, sums, w1, gv, gch, gcw, dnorm,
        *sizes, eps, BY_BATCH=by_batch, BP=pow2(2 * n, 128), **block,
    )  # fmt: skip
    dwh, dbh, dww, dbw, dw1, db1 = _weights(g, u, gv, strips, sizes)
    dx = coord_dx(dy, rows, w, gch, gcw, u=plus) if need_x else some(None, x)
    return [dx, dw1, db1, *dnorm.unbind(), dwh, dbh, dww, dbw, *da]
