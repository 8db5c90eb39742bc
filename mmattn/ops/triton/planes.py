"""DRTAM's descriptors of its three planes (`rank1_pool`), which are small: one program a plane."""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import BIG, floats, ints, launch, nan_max, pow2
from .products import summed

PARTS = 'ch_parts', 'cw_parts', 'hw_parts'


@triton.jit
def window(length, COUNT: tl.constexpr, i: tl.constexpr):
    """Begin, end and 1 / length of window i of COUNT along an axis (`ops.chunks.windows`)."""
    size = (length + COUNT - 1) // COUNT
    short = length // COUNT
    longer = length % COUNT
    chunked = (length + size - 1) // size == COUNT
    begin = tl.where(length < COUNT, i * length // COUNT, i * short + tl.minimum(i, longer))
    begin = tl.where(chunked, i * size, begin)
    end = tl.where(
        length < COUNT,
        ((i + 1) * length + COUNT - 1) // COUNT,
        (i + 1) * short + tl.minimum(i + 1, longer),
    )
    end = tl.where(chunked, tl.minimum((i + 1) * size, length), end)
    return begin, end, 1.0 / (end - begin).to(tl.float32)


@triton.jit
def load_plane(ptr, n, i, j, rows, cols, in_rows, in_cols):
    at = (n * rows + i)[:, None] * cols + j[None, :]
    return tl.load(ptr + at, mask=in_rows[:, None] & in_cols[None, :], other=0.0)


@triton.jit
def _left(ptr, a_ptr, b_ptr, n, i, j, rows, cols, in_rows, in_cols, TAKEN: tl.constexpr):
    """What an attention map of the factors a and b leaves of a plane; all of it without TAKEN."""
    v = load_plane(ptr, n, i, j, rows, cols, in_rows, in_cols)
    if TAKEN:
        a = tl.load(a_ptr + n * rows + i, mask=in_rows, other=0.0)
        b = tl.load(b_ptr + n * cols + j, mask=in_cols, other=0.0)
        v *= 1 - a[:, None] * b[None, :]
    return v


@triton.jit
def _row_means(
    ptr,
    a_ptr,
    b_ptr,
    to_ptr,
    n,
    rows,
    cols,
    COUNT: tl.constexpr,
    TAKEN: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
):
    """The means of COUNT windows of a plane's rows, one strip after the other."""
    j = tl.arange(0, BL)
    in_cols = j < cols
    for k in tl.static_range(COUNT):
        begin, end, mean = window(rows, COUNT, k)
        sums = tl.zeros([BR, BL], tl.float32)
        for start in range(begin, end, BR):
            i = start + tl.arange(0, BR)
            sums += _left(ptr, a_ptr, b_ptr, n, i, j, rows, cols, i < end, in_cols, TAKEN)
        tl.store(to_ptr + k * cols + j, tl.sum(sums, 0) * mean, mask=in_cols)


@triton.jit
def _side(
    plane_ptr,
    f_ptr,
    weights_ptr,
    c_ptr,
    part_ptr,
    strips_ptr,
    at_ptr,
    n,
    channels,
    length,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
):
    """Chunks of a plane (C, L) -> part (C); its strips S to S + M, and where the last one's are."""
    j = tl.arange(0, BL)
    in_l = j < length
    best = tl.full([BR, BL], -float('inf'), tl.float32)
    arg = tl.full([BR, BL], BIG, tl.int32)
    for start in range(0, channels, BR):
        i = start + tl.arange(0, BR)
        in_c = i < channels
        v = _left(plane_ptr, c_ptr, f_ptr, n, i, j, channels, length, in_c, in_l, TAKEN)
        value = tl.zeros([BR], tl.float32)
        for s in tl.static_range(S):
            begin, end, mean = window(length, S, s)
            inside = ((j >= begin) & (j < end))[None, :]
            value += tl.sum(tl.where(inside, v, 0.0), 1) * (mean * tl.load(weights_ptr + 4 * s))
            top = tl.reduce(tl.where(inside, v, -float('inf')), 1, nan_max)
            value += top * tl.load(weights_ptr + 4 * s + 1)
        tl.store(part_ptr + n * channels + i, value, mask=in_c)
        v = tl.where(in_c[:, None], v, -float('inf'))
        arg = tl.where(v > best, tl.broadcast_to(i[:, None], [BR, BL]), arg)
        best = nan_max(v, best)
    strips_ptr += (n * (S + M + 1) + S) * length
    top = tl.reduce(best, 0, nan_max)
    arg = tl.min(tl.where(best == top[None, :], arg, BIG), 0)
    tl.store(strips_ptr + M * length + j, top, mask=in_l)
    tl.store(at_ptr + n * length + j, tl.where(arg == BIG, 0, arg), mask=in_l)
    _row_means(plane_ptr, c_ptr, f_ptr, strips_ptr, n, channels, length, M, TAKEN, BR, BL)


@triton.jit
def _merge(parts_ptr, plane_ptr, n, samples, size, parts, B: tl.constexpr):
    """A plane of a sample from its parts (parts, samples, size)."""
    for start in range(0, size, B):
        i = start + tl.arange(0, B)
        sums = summed(parts_ptr, n * size + i, samples.to(tl.int64) * size, parts, i < size)
        tl.store(plane_ptr + n * size + i, sums, mask=i < size)
    tl.debug_barrier()


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width', *PARTS])
def rank1_pool_kernel(
    ch_ptr,
    cw_ptr,
    hw_ptr,
    ch_parts_ptr,
    cw_parts_ptr,
    hw_parts_ptr,
    weights_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    parts_ptr,
    sh_ptr,
    sw_ptr,
    at_h_ptr,
    at_w_ptr,
    samples,
    channels,
    height,
    width,
    ch_parts,
    cw_parts,
    hw_parts,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    MERGE: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
):
    """Program n, plane: parts (2, samples, C), the strips of h and of w (samples, S + M + 1, L).
    MERGE: the planes come in parts, and are stored."""
    pid = tl.program_id(0)
    n = (pid // 3).to(tl.int64)
    if MERGE:
        if pid % 3 == 0:
            _merge(cw_parts_ptr, cw_ptr, n, samples, channels * width, cw_parts, 1024)
        elif pid % 3 == 1:
            _merge(ch_parts_ptr, ch_ptr, n, samples, channels * height, ch_parts, 1024)
        else:
            _merge(hw_parts_ptr, hw_ptr, n, samples, height * width, hw_parts, 1024)
    if pid % 3 == 0:
        _side(
            cw_ptr,
            w_ptr,
            weights_ptr,
            c_ptr,
            parts_ptr,
            sw_ptr,
            at_w_ptr,
            n,
            channels,
            width,
            S,
            M,
            TAKEN,
            BR,
            BL,
        )
    elif pid % 3 == 1:
        _side(
            ch_ptr,
            h_ptr,
            weights_ptr + 2,
            c_ptr,
            parts_ptr + samples * channels,
            sh_ptr,
            at_h_ptr,
            n,
            channels,
            height,
            S,
            M,
            TAKEN,
            BR,
            BL,
        )
    else:
        j = tl.arange(0, BL)
        in_w = j < width
        rows = n * (S + M + 1)
        for start in range(0, height, BR):
            i = start + tl.arange(0, BR)
            in_h = i < height
            v = _left(hw_ptr, h_ptr, w_ptr, n, i, j, height, width, in_h, in_w, TAKEN)
            for s in tl.static_range(S):
                begin, end, mean = window(width, S, s)
                inside = ((j >= begin) & (j < end))[None, :]
                tl.store(
                    sh_ptr + (rows + s) * height + i,
                    tl.sum(tl.where(inside, v, 0.0), 1) * mean,
                    mask=in_h,
                )
        _row_means(
            hw_ptr,
            h_ptr,
            w_ptr,
            sw_ptr + rows * width,
            n,
            height,
            width,
            S,
            TAKEN,
            BR,
            BL,
        )


@triton.jit
def _conv(
    strips_ptr,
    kernel_ptr,
    out_ptr,
    moments_ptr,
    n,
    length,
    ROWS: tl.constexpr,
    MOMENTS: tl.constexpr,
    B: tl.constexpr,
):
    j = tl.arange(0, B)
    value = tl.zeros([B], tl.float32)
    for r in tl.static_range(ROWS):
        for k in tl.static_range(3):
            at = j + (k - 1)
            strip = tl.load(
                strips_ptr + (n * ROWS + r) * length + at, mask=(at >= 0) & (at < length), other=0.0
            )
            value += tl.load(kernel_ptr + 3 * r + k) * strip
    tl.store(out_ptr + n * length + j, value, mask=j < length)
    if MOMENTS:
        mean = tl.sum(tl.where(j < length, value, 0.0), 0) / length
        away = tl.where(j < length, value - mean, 0.0)
        tl.store(moments_ptr, mean)
        tl.store(moments_ptr + 1, tl.sum(away * away, 0))


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width'])
def rank1_conv_kernel(
    parts_ptr,
    sh_ptr,
    sw_ptr,
    kh_ptr,
    kw_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    moments_ptr,
    samples,
    channels,
    height,
    width,
    ROWS: tl.constexpr,
    MOMENTS: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """c = the sum of its parts, h and w = the convolutions of their strips. MOMENTS: of each sample
    the mean of c, h and w, and the sum of squared distances from it, (samples, 3, 2)."""
    n = tl.program_id(0).to(tl.int64)
    moments_ptr += n * 6
    sums = tl.zeros([BC], tl.float32)
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        at = n * channels + i
        in_c = i < channels
        c = tl.load(parts_ptr + at, mask=in_c, other=0.0)
        c += tl.load(parts_ptr + samples * channels + at, mask=in_c, other=0.0)
        tl.store(c_ptr + at, c, mask=in_c)
        sums += c
    if MOMENTS:
        mean = tl.sum(sums, 0) / channels
        squares = tl.zeros([BC], tl.float32)
        tl.debug_barrier()
        for start in range(0, channels, BC):
            i = start + tl.arange(0, BC)
            away = tl.load(c_ptr + n * channels + i, mask=i < channels, other=0.0) - mean
            squares += tl.where(i < channels, away * away, 0.0)
        tl.store(moments_ptr, mean)
        tl.store(moments_ptr + 1, tl.sum(squares, 0))
    _conv(sh_ptr, kh_ptr, h_ptr, moments_ptr + 2, n, height, ROWS, MOMENTS, BL)
    _conv(sw_ptr, kw_ptr, w_ptr, moments_ptr + 4, n, width, ROWS, MOMENTS, BL)


def sizes(planes: Sequence[Tensor]) -> tuple[tuple[int, int, int, int], dict[str, int]]:
    """N, C, H, W; the block of a plane."""
    ch, cw, _ = planes
    n, c, h = ch.shape
    w = cw.shape[2]
    columns = pow2(max(h, w), 1 << 20)
    block = dict(BR=pow2(max(c, h), max(1, 2048 // columns)), BL=columns, num_warps=8)
    return (n, c, h, w), block


def pool_strips(
    planes: Sequence[Tensor],
    weights: Any,
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None,
    parts: Any = None,
) -> tuple[Any, ...]:
    """Two parts of c (2, N, C), the strips of h and w, and where the channels' maxima are.

    `parts`: what the planes are to be summed of, (parts, ...) each.
    """
    (n, c, h, w), block = sizes(planes)
    x, rows = planes[0], sum(chunks) + 1
    halves = floats(x, 2, n, c)
    strips = floats(x, n, rows, h), floats(x, n, rows, w)
    at = ints(x, n, h), ints(x, n, w)
    launch(
        rank1_pool_kernel,
        3 * n,
        *planes,
        *(parts or planes),
        weights,
        *(taken or (x, x, x)),
        halves,
        *strips,
        *at,
        n,
        c,
        h,
        w,
        *(map(len, parts) if parts else (1, 1, 1)),
        S=chunks[0],
        M=chunks[1],
        TAKEN=taken is not None,
        MERGE=parts is not None,
        **block,
    )
    return halves, (*strips, *at)


def convolve(
    planes: Sequence[Tensor],
    halves: Tensor,
    strips: Sequence[Tensor],
    kernels: Sequence[Tensor],
    moments: Tensor | None = None,
) -> tuple[Any, ...]:
    """c, h and w; `moments`: where to put each sample's, see `rank1_conv_kernel`."""
    (n, c, h, w), block = sizes(planes)
    out = floats(halves, n, c), floats(halves, n, h), floats(halves, n, w)
    launch(
        rank1_conv_kernel,
        n,
        halves,
        *strips,
        *kernels,
        *out,
        halves if moments is None else moments,
        n,
        c,
        h,
        w,
        ROWS=strips[0].shape[1],
        MOMENTS=moments is not None,
        BC=pow2(c, 1024),
        BL=block['BL'],
    )
    return out


def rank1_pool(
    planes: Sequence[Tensor],
    weights: Sequence[Tensor],
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None,
) -> tuple[Any, ...]:
    halves, saved = pool_strips(planes, weights[0], chunks, taken)
    return convolve(planes, halves, saved[:2], weights[1:]), saved
