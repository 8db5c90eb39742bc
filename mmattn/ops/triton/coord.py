"""Coordinate attention as a whole operator: 4 launches, and 5 or 6 in backward.

Programs take one side, height or width, of one sample each. The norm by the batch, and the sums
over the batch that the weights' gradients are, each end a launch. What is kept for backward lies in
memory side by side: strips (N, C, H), then (N, C, W), and the same of v and u with K rows.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..tensors import dense, flat
from . import mlp
from .common import floats, launch, pow2
from .products import summed
from .strip import strip_pool_parts
from .strip_scale import coord_scale


@triton.jit
def hardswish(u):
    # NaN stays.
    top = tl.where(u + 3 < 0, 0.0, tl.where(u + 3 > 6, 6.0, u + 3))
    return u * top / 6


@triton.jit
def tile(ptr, i, j, ni, nj):
    """Of a matrix (ni, nj)."""
    mask = (i < ni)[:, None] & (j < nj)[None, :]
    return tl.load(ptr + i[:, None] * nj + j[None, :], mask=mask, other=0.0)


@triton.jit
def store(ptr, i, j, ni, nj, value):
    mask = (i < ni)[:, None] & (j < nj)[None, :]
    tl.store(ptr + i[:, None] * nj + j[None, :], value, mask=mask)


@triton.jit
def side_of(samples, height, width):
    """A program's sample, its side (0 the height, 1 the width), the side's length, and how many
    columns lie before the side's in what is kept."""
    pid = tl.program_id(0)
    side = pid % 2
    length = height
    if side == 1:
        length = width
    return (pid // 2).to(tl.int64), side, length, samples.to(tl.int64) * height * side


@triton.jit
def of_side(side, height, width):
    """What belongs to the height or to the width."""
    found = height
    if side == 1:
        found = width
    return found


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
    n, side, length, before = side_of(samples, height, width)
    planes_ptr = of_side(side, ch_ptr, cw_ptr)
    parts = of_side(side, parts_h, parts_w)
    strips_ptr += before * channels
    v_ptr += before * hidden + n * hidden * length
    moments_ptr += (2 * n + side) * hidden * 2
    step = samples.to(tl.int64) * channels * length
    at = n * channels * length
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
                w1 = tile(w1_ptr, k, i, hidden, channels)
                v = tl.dot(w1, strips, v, input_precision='ieee')
            v += bias
            store(v_ptr, k, j, hidden, length, v)
            sums += tl.where((j < length)[None, :], v, 0.0)
        mean = tl.sum(sums, 1) / length
        tl.debug_barrier()
        squares = tl.zeros([BK, BL], tl.float32)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            away = tile(v_ptr, k, j, hidden, length) - mean[:, None]
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
    running_mean_ptr,
    running_var_ptr,
    wh_ptr,
    bh_ptr,
    ww_ptr,
    bw_ptr,
    u_ptr,
    h_ptr,
    w_ptr,
    mean_ptr,
    var_ptr,
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
    """u = norm(v), and the factors h and w: sigmoid(W hardswish(u) + b). Stored are the mean and
    var that it took, of the batch (BY_BATCH) or running ones, and batch (2, K), what running ones
    move to, or zeros."""
    n, side, length, before = side_of(samples, height, width)
    second_ptr = of_side(side, wh_ptr, ww_ptr)
    b_ptr = of_side(side, bh_ptr, bw_ptr)
    f_ptr = of_side(side, h_ptr, w_ptr) + n * channels * length
    v_ptr += before * hidden + n * hidden * length
    u_ptr += before * hidden + n * hidden * length
    for start_k in range(0, hidden, BK):
        k = start_k + tl.arange(0, BK)
        in_k = k < hidden
        if BY_BATCH:
            mean, squares, total = _batch(moments_ptr, k, samples, hidden, height, width, BK, BP)
            var = squares / total
            level = mean
            unbiased = squares / tl.maximum(total - 1, 1.0)
        else:
            mean = tl.load(running_mean_ptr + k, mask=in_k, other=0.0)
            var = tl.load(running_var_ptr + k, mask=in_k, other=1.0)
            level = tl.zeros([BK], tl.float32)
            unbiased = level
        if tl.program_id(0) == 0:
            tl.store(mean_ptr + k, mean, mask=in_k)
            tl.store(var_ptr + k, var, mask=in_k)
            tl.store(batch_ptr + k, level, mask=in_k)
            tl.store(batch_ptr + hidden + k, unbiased, mask=in_k)
        scale = tl.load(weight_ptr + k, mask=in_k, other=0.0) / tl.sqrt(var + eps)
        bias = tl.load(bias_ptr + k, mask=in_k, other=0.0)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            v = tile(v_ptr, k, j, hidden, length)
            u = (v - mean[:, None]) * scale[:, None] + bias[:, None]
            store(u_ptr, k, j, hidden, length, u)
    tl.debug_barrier()
    for start_c in range(0, channels, BC):
        i = start_c + tl.arange(0, BC)
        bias = tl.load(b_ptr + i, mask=i < channels, other=0.0)[:, None]
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            f = tl.zeros([BC, BL], tl.float32)
            for start_k in range(0, hidden, BK):
                k = start_k + tl.arange(0, BK)
                a = hardswish(tile(u_ptr, k, j, hidden, length))
                w = tile(second_ptr, i, k, channels, hidden)
                f = tl.dot(w, a, f, input_precision='ieee')
            store(f_ptr, i, j, channels, length, 1 / (1 + tl.exp(-(f + bias))))


def products_block(channels: int, hidden: int, height: int, width: int) -> dict[str, int]:
    """Products of matrices take blocks of 16 and more."""
    return dict(
        BK=max(16, pow2(hidden, 16)),
        BC=max(16, pow2(channels, 32)),
        BL=max(16, pow2(max(height, width), 64)),
        num_warps=8,
    )


def coord(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    wh: Tensor,
    bh: Tensor | None,
    ww: Tensor,
    bw: Tensor | None,
    by_batch: bool,
    eps: float,
    a: Tensor | None,
) -> tuple[Any, ...]:
    if not mlp.fits(w1):
        return NotImplemented
    x = dense(x)
    n, c, height, width = x.shape
    hidden = w1.shape[0]
    w1, wh, ww = map(flat, (w1, wh, ww))
    ch, cw, _ = strip_pool_parts(x, False)
    sizes, block = (n, c, hidden, height, width), products_block(c, hidden, height, width)
    strips, v, u = (floats(x, k, n * (height + width)) for k in (c, hidden, hidden))
    parts = floats(x, n, 2, hidden, 2)
    launch(
        coord_kernel, 2 * n, ch, cw, w1, b1, strips, v, parts, *sizes, len(ch), len(cw), **block
    )  # fmt: skip
    h, w = floats(x, n, c, height), floats(x, n, c, width)
    mean_in_use, var_in_use, batch = floats(x, hidden), floats(x, hidden), floats(x, 2, hidden)
    launch(
        coord_factors_kernel, 2 * n, v, parts, weight, bias, mean, var, wh, bh, ww, bw, u, h, w,
        mean_in_use, var_in_use, batch, *sizes, eps, BY_BATCH=by_batch, BP=pow2(2 * n, 128),
        **block,
    )  # fmt: skip
    plus, rows = (None, h) if a is None else identity.part_of_rows(h, a)
    y = coord_scale(x, rows, w, plus)
    return y, h, w, batch, [strips, v, u, mean_in_use, var_in_use]


def coord_strips(x: Tensor, w1: Tensor, strips: Tensor) -> list[Tensor] | None:
    """ch and cw of what `coord` kept; None where it kept nothing, as another ran in its place."""
    if not mlp.fits(w1):
        return None
    n, c, *lengths = x.shape
    sides = strips.flatten().split([n * c * length for length in lengths])
    return [side.view(n, c, length) for side, length in zip(sides, lengths, strict=True)]
