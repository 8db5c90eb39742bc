"""The gradient of coordinate attention: 5 launches, or 6; what is kept, `coord` says."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..tensors import dense_pair, flat, some
from . import mlp
from .common import block_of, cdiv, filled, floats, launch, pow2, total
from .coord import SIZES, hardswish, of_side, products_block, side_of, store, tile
from .products import summed
from .strip import coord_dx
from .strip_scale import coord_grad_parts

# Rows that a program of the weights' gradients sums, if it must be many.
ROWS = 2048


@triton.jit
def _hardswish_grad(g, u):
    return tl.where(u < -3, 0.0, tl.where(u <= 3, g * (u / 3 + 0.5), g))


@triton.jit
def _flipped(ptr, i, j, ni, nj):
    """The same, transposed: (j, i)."""
    mask = (j < nj)[:, None] & (i < ni)[None, :]
    return tl.load(ptr + i[None, :] * nj + j[:, None], mask=mask, other=0.0)


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
    n, side, length, before = side_of(samples, height, width)
    df_ptr = of_side(side, dh_ptr, dw_ptr)
    given_ptr = of_side(side, given_h_ptr, given_w_ptr)
    f_ptr = of_side(side, h_ptr, w_ptr)
    second_ptr = of_side(side, wh_ptr, ww_ptr)
    parts = of_side(side, parts_h, parts_w)
    g_ptr += before * channels
    sums_ptr += (2 * n + side) * hidden * 2
    step = samples.to(tl.int64) * channels * length
    at = n * channels * length
    for start_c in range(0, channels, BC):
        i = start_c + tl.arange(0, BC)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            mask = (i < channels)[:, None] & (j < length)[None, :]
            here = at + i[:, None] * length + j[None, :]
            g = summed(df_ptr, here, step, parts, mask)
            if (GIVEN_H and side == 0) or (GIVEN_W and side == 1):
                g += tl.load(given_ptr + here, mask=mask, other=0.0)
            f = tl.load(f_ptr + here, mask=mask, other=0.0)
            tl.store(g_ptr + here, g * ((1 - f) * f), mask=mask)
    tl.debug_barrier()
    rows = (before + n * length) * hidden
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
                g = tile(g_ptr + at, i, j, channels, length)
                d = tl.dot(w, g, d, input_precision='ieee')
            d = _hardswish_grad(d, tile(u_ptr + rows, k, j, hidden, length))
            store(gu_ptr + rows, k, j, hidden, length, d)
            inside = in_k[:, None] & (j < length)[None, :]
            v = tile(v_ptr + rows, k, j, hidden, length)
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
    n, side, length, before = side_of(samples, height, width)
    dstrips_ptr = of_side(side, dch_ptr, dcw_ptr)
    rows = (before + n * length) * hidden
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
            g = tile(gu_ptr + rows, k, j, hidden, length)
            if BY_BATCH:
                v = tile(v_ptr + rows, k, j, hidden, length)
                g -= (level[:, None] + (v - mean) * (unit * slope)[:, None]) / total
            store(gv_ptr + rows, k, j, hidden, length, g * scale)
    tl.debug_barrier()
    for start_c in range(0, channels, BC):
        i = start_c + tl.arange(0, BC)
        for start in range(0, length, BL):
            j = start + tl.arange(0, BL)
            d = tl.zeros([BC, BL], tl.float32)
            for start_k in range(0, hidden, BK):
                k = start_k + tl.arange(0, BK)
                w1 = _flipped(w1_ptr, k, i, hidden, channels)
                g = tile(gv_ptr + rows, k, j, hidden, length)
                d = tl.dot(w1, g, d, input_precision='ieee')
            store(dstrips_ptr + n * channels * length, i, j, channels, length, d)


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
            b = hardswish(b)
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
    k_block, k, pid = block_of(tl.program_id(0), hidden, BI)
    c_block, c, pid = block_of(pid, channels, BJ)
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
        store(out_ptr, c, k, channels, hidden, dw)
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
        store(out_ptr, k, c, hidden, channels, dw1)
        if c_block == 0:
            tl.store(out_ptr + matrix + k, tl.sum(bias1, 1), mask=k < hidden)


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


def _sizes(h, w, hidden):
    n, channels, height = h.shape
    return n, channels, hidden, height, w.shape[2]


def coord_backward(
    dy: Tensor,
    gh: Tensor | None,
    gw: Tensor | None,
    x: Tensor,
    w1: Tensor,
    weight: Tensor,
    wh: Tensor,
    ww: Tensor,
    a: Tensor | None,
    h: Tensor,
    w: Tensor,
    saved: Sequence[Any],
    by_batch: bool,
    eps: float,
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    if not mlp.fits(w1):
        return NotImplemented
    x, dy = dense_pair(x, dy, last)
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
    block = products_block(c, hidden, height, width)
    g, gu, gv = torch.empty_like(strips), torch.empty_like(u), torch.empty_like(u)
    sums, dnorm = floats(x, n, 2, hidden, 2), floats(x, 2, hidden)
    launch(
        coord_factors_grad_kernel, 2 * n, dh, dw, *filled(dh, gh, gw),
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
