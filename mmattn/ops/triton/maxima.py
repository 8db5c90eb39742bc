"""The maxima of a low-passed map, over positions and over channels.

A program walks down the rows of the maps with a k-tap filter along H in registers (the transposed
form: each new row adds its share to the k outputs that wait for it) and filters along W by reading
a row k times, which the cache serves.
"""

from typing import Any

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    BIG,
    block_of,
    cdiv,
    channels_last,
    floats,
    ints,
    launch,
    nan_max,
    part_of,
    pow2,
    split,
    vector,
)
from .pool import first_maximum

# The filter sizes that the kernels know.
FILTERS = (1, 3, 5)


@triton.jit
def filter_step(v, a1, a2, a3, a4, t0, t1, t2, t3, t4, K: tl.constexpr):
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
def pick(t0, t1, t2, t3, t4, INDEX: tl.constexpr):
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
def load_taps(ptr, K: tl.constexpr, FLIP: tl.constexpr):
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
    c_block, c, pid = block_of(tl.program_id(0), channels, BC)
    w_block, w, pid = block_of(pid, width, BW)
    part, first, last, n = part_of(pid, height, splits, 1)
    c_blocks = tl.cdiv(channels, BC)
    w_blocks = tl.cdiv(width, BW)
    in_c = c < channels
    in_w = w < width
    t0, t1, t2, t3, t4 = load_taps(taps_ptr, K, False)
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
            f, f1, f2, f3, f4 = filter_step(x, f1, f2, f3, f4, t0, t1, t2, t3, t4, K)
        if SPATIAL:
            v = x * pick(t0, t1, t2, t3, t4, R)
            for j in tl.static_range(-R, R + 1):
                if j != 0:
                    in_u = (w + j >= 0) & (w + j < width)
                    x = tl.load(x_row + j * col_step, mask=in_rows & in_u[None, :], other=0.0)
                    v += x.to(tl.float32) * pick(t0, t1, t2, t3, t4, R + j)
            g, g1, g2, g3, g4 = filter_step(v, g1, g2, g3, g4, t0, t1, t2, t3, t4, K)
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


def walks(x: Tensor, warps: int) -> tuple[int, int, int]:
    """Blocks of channels and of columns for a walk down the rows, and VEC. In the contiguous
    format a thread takes single elements, since the filter reads rows at odd offsets."""
    _, c, _, w = x.shape
    if channels_last(x):
        block_c = pow2(c, 16 * warps)
        return block_c, pow2(w, warps * 256 // block_c), vector(c, x)
    block_w = pow2(w, 64)
    return pow2(c, warps * 256 // block_w), block_w, 1


def maxima_parts(
    x: Tensor, taps: Tensor, channel: bool, spatial: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_max and its index in parts (N, parts, C), s_max and its index (N, parts, H W); x where not
    wanted."""
    n, c, height, width = x.shape
    last = channels_last(x)
    # The limit on registers lets 16 (12) warps share a multiprocessor, hardly spilling.
    warps, registers = (8, 128) if last else (4, 168)
    block_c, block_w, vec = walks(x, warps)
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
    return ctops, cargs, stops, sargs


def maxima(x: Tensor, taps: Tensor, channel: bool, spatial: bool) -> tuple[Tensor | None, ...]:
    """c_max and its index, s_max and its index; None where not wanted."""
    ctops, cargs, stops, sargs = maxima_parts(x, taps, channel, spatial)
    return (
        *(first_maximum(ctops, cargs) if channel else (None, None)),
        *(first_maximum(stops, sargs) if spatial else (None, None)),
    )


def filtered(x: Tensor, taps: Tensor, dim: int) -> Any:
    """x filtered along one axis, zero padded: PyTorch's way, for sizes the kernels lack."""
    length, reach = x.shape[dim], taps.numel() // 2
    padded = F.pad(x, (reach, reach) if dim == 3 else (0, 0, reach, reach))
    return sum(tap * padded.narrow(dim, i, length) for i, tap in enumerate(taps))


def plain_maxima(x: Tensor, taps: Tensor, channel: bool, spatial: bool) -> list[Tensor | None]:
    found = []
    x = filtered(x.float(), taps, 2)
    for wanted, dim in ((channel, 2), (spatial, 1)):
        top, at = (
            (x if dim == 2 else filtered(x, taps, 3)).flatten(2).max(dim) if wanted else (None,) * 2
        )
        found += top, None if at is None else at.int()
    return found
