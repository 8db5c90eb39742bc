"""The gradients of DRTAM's descriptors (`planes`)."""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import BIG, floats, launch, nan_max, pow2
from .planes import load_plane, sizes, window


@triton.jit
def before_norm(g_ptr, v_ptr, at, mask, mean, unit, scale, level, slope, NORM: tl.constexpr):
    """The gradient of what a norm took: g is that of what it gave. Without NORM, g itself."""
    g = tl.load(g_ptr + at, mask=mask, other=0.0)
    if NORM:
        v = tl.load(v_ptr + at, mask=mask, other=0.0)
        g = tl.where(mask, (g - level - (v - mean) * unit * slope) * scale, 0.0)
    return g


@triton.jit
def _sums_of_norm(
    sums_ptr,
    step,
    moments_ptr,
    weight_ptr,
    which: tl.constexpr,
    by_batch,
    count,
    samples,
    B: tl.constexpr,
):
    """Of norm `which` mean, 1 / deviation, scale, and over the batch the mean of the gradient and
    of the gradient times the unit descriptor."""
    levels = tl.zeros([B], tl.float32)
    slopes = tl.zeros([B], tl.float32)
    for start in range(0, samples, B):
        p = start + tl.arange(0, B)
        at = p * step + 2 * which
        slopes += tl.load(sums_ptr + at, mask=p < samples, other=0.0)
        levels += tl.load(sums_ptr + at + 1, mask=p < samples, other=0.0)
    mean = tl.load(moments_ptr + 2 * which)
    unit = tl.load(moments_ptr + 2 * which + 1)
    share = by_batch / count
    return (
        mean,
        unit,
        unit * tl.load(weight_ptr),
        tl.sum(levels, 0) * share,
        tl.sum(slopes, 0) * share,
    )


@triton.jit
def _conv_grad(
    strips_ptr,
    kernel_ptr,
    g_ptr,
    v_ptr,
    to_ptr,
    dkernel_ptr,
    n,
    length,
    mean,
    unit,
    scale,
    level,
    slope,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    B: tl.constexpr,
):
    j = tl.arange(0, B)
    in_l = j < length
    for r in tl.static_range(ROWS):
        strip = tl.load(strips_ptr + (n * ROWS + r) * length + j, mask=in_l, other=0.0)
        value = tl.zeros([B], tl.float32)
        for k in tl.static_range(3):
            at = j + (1 - k)
            mask = (at >= 0) & (at < length)
            g = before_norm(
                g_ptr, v_ptr, n * length + at, mask, mean, unit, scale, level, slope, NORM
            )
            value += tl.load(kernel_ptr + 3 * r + k) * g
            tl.store(dkernel_ptr + 3 * r + k, tl.sum(tl.where(in_l, g * strip, 0.0), 0))
        tl.store(to_ptr + (n * ROWS + r) * length + j, value, mask=in_l)


RULES = 'by_batch_c', 'by_batch_h', 'by_batch_w'


@triton.jit(do_not_specialize=['channels', 'height', 'width', 'step', *RULES])
def rank1_conv_grad_kernel(
    sh_ptr,
    sw_ptr,
    kh_ptr,
    kw_ptr,
    gc_ptr,
    gh_ptr,
    gw_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    sums_ptr,
    moments_ptr,
    weight_c,
    weight_h,
    weight_w,
    to_c_ptr,
    to_h_ptr,
    to_w_ptr,
    dweights_ptr,
    channels,
    height,
    width,
    step,
    by_batch_c,
    by_batch_h,
    by_batch_w,
    NORM: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """The gradients of the strips, and each sample's of the kernels, every `step`.

    NORM: gc, gh and gw are those of what norms gave of c, h and w, of which sums (samples, 3, 2),
    every `step`, hold each sample's of the gradient times the unit descriptor and of it alone;
    also gives the gradient of c."""
    n = tl.program_id(0).to(tl.int64)
    samples = tl.num_programs(0)
    mean = 0.0
    unit = 0.0
    scale = 0.0
    level = 0.0
    slope = 0.0
    if NORM:
        mean, unit, scale, level, slope = _sums_of_norm(
            sums_ptr, step, moments_ptr, weight_c, 0, by_batch_c, samples * channels, samples, BN
        )
        for start in range(0, channels, BC):
            i = start + tl.arange(0, BC)
            at = n * channels + i
            g = before_norm(gc_ptr, c_ptr, at, i < channels, mean, unit, scale, level, slope, NORM)
            tl.store(to_c_ptr + at, g, mask=i < channels)
        mean, unit, scale, level, slope = _sums_of_norm(
            sums_ptr, step, moments_ptr, weight_h, 1, by_batch_h, samples * height, samples, BN
        )
    to = dweights_ptr + n * step + 4 * S
    _conv_grad(
        sh_ptr, kh_ptr, gh_ptr, h_ptr, to_h_ptr, to, n, height, mean, unit, scale, level, slope,
        NORM, ROWS, BL,
    )  # fmt: skip
    if NORM:
        mean, unit, scale, level, slope = _sums_of_norm(
            sums_ptr, step, moments_ptr, weight_w, 2, by_batch_w, samples * width, samples, BN
        )
    to += 3 * ROWS
    _conv_grad(
        sw_ptr, kw_ptr, gw_ptr, w_ptr, to_w_ptr, to, n, width, mean, unit, scale, level, slope,
        NORM, ROWS, BL,
    )  # fmt: skip


@triton.jit
def _side_grad(
    plane_ptr,
    f_ptr,
    weights_ptr,
    c_ptr,
    gc_ptr,
    gs_ptr,
    at_ptr,
    dplane_ptr,
    dweights_ptr,
    dc_ptr,
    df_ptr,
    n,
    channels,
    length,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    ADD: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
    BS: tl.constexpr,
):
    j = tl.arange(0, BL)
    in_l = j < length
    rows = gs_ptr + (n * (S + M + 1) + S) * length + j
    gpeak = tl.load(rows + M * length, mask=in_l, other=0.0)
    at = tl.load(at_ptr + n * length + j, mask=in_l, other=-1)
    if TAKEN:
        f = tl.load(f_ptr + n * length + j, mask=in_l, other=0.0)
        lost = tl.zeros([BR, BL], tl.float32)
    slot = tl.arange(0, BS)
    dweights = tl.zeros([BS], tl.float32)
    for start in range(0, channels, BR):
        i = start + tl.arange(0, BR)
        in_c = i < channels
        raw = load_plane(plane_ptr, n, i, j, channels, length, in_c, in_l)
        v = raw
        if TAKEN:
            c = tl.load(c_ptr + n * channels + i, mask=in_c, other=0.0)
            kept = 1 - c[:, None] * f[None, :]
            v *= kept
        gc = tl.load(gc_ptr + n * channels + i, mask=in_c, other=0.0)
        g = tl.where(i[:, None] == at[None, :], gpeak[None, :], 0.0)
        for m in tl.static_range(M):
            begin, end, mean = window(channels, M, m)
            gavg = tl.load(rows + m * length, mask=in_l, other=0.0) * mean
            g += tl.where(((i >= begin) & (i < end))[:, None], gavg[None, :], 0.0)
        for s in tl.static_range(S):
            begin, end, mean = window(length, S, s)
            inside = ((j >= begin) & (j < end))[None, :]
            top = tl.reduce(tl.where(inside, v, -float('inf')), 1, nan_max)
            place = tl.min(tl.where(inside & (v == top[:, None]), j[None, :], BIG), 1)
            first = j[None, :] == place[:, None]
            w_avg = mean * tl.load(weights_ptr + 4 * s)
            w_max = tl.load(weights_ptr + 4 * s + 1)
            g += tl.where(inside, (gc * w_avg)[:, None], 0.0)
            g += tl.where(first, (gc * w_max)[:, None], 0.0)
            d_avg = tl.sum(gc * tl.sum(tl.where(inside, v, 0.0), 1), 0) * mean
            d_max = tl.sum(tl.where(in_c, gc * top, 0.0), 0)
            dweights += tl.where(slot == 2 * s, d_avg, 0.0)
            dweights += tl.where(slot == 2 * s + 1, d_max, 0.0)
        if TAKEN:
            gd = g * raw
            tl.store(dc_ptr + n * channels + i, -tl.sum(gd * f[None, :], 1), mask=in_c)
            lost += gd * c[:, None]
            g *= kept
        if ADD:
            g += load_plane(dplane_ptr, n, i, j, channels, length, in_c, in_l)
        tl.store(
            dplane_ptr + (n * channels + i)[:, None] * length + j[None, :],
            g,
            mask=in_c[:, None] & in_l[None, :],
        )
    tl.store(dweights_ptr + 4 * (slot // 2) + slot % 2, dweights, mask=slot < 2 * S)
    if TAKEN:
        tl.store(df_ptr + n * length + j, -tl.sum(lost, 0), mask=in_l)


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width', 'step'])
def rank1_pool_grad_kernel(
    ch_ptr,
    cw_ptr,
    hw_ptr,
    weights_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    gc_ptr,
    gsh_ptr,
    gsw_ptr,
    at_h_ptr,
    at_w_ptr,
    dch_ptr,
    dcw_ptr,
    dhw_ptr,
    dweights_ptr,
    dtaken_ptr,
    samples,
    channels,
    height,
    width,
    step,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    ADD: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
    BS: tl.constexpr,
):
    """Program n, plane: its gradient (ADD: added), each sample's of the channel weights, every
    `step`, and two parts of those of the factors taken: dtaken is (2, samples * (C + H + W)), c, h
    and w one after the other."""
    pid = tl.program_id(0)
    n = (pid // 3).to(tl.int64)
    to = dweights_ptr + n * step
    second = samples * (channels + height + width)
    dh_ptr = dtaken_ptr + samples * channels
    dw_ptr = dh_ptr + samples * height
    if pid % 3 == 0:
        _side_grad(
            cw_ptr,
            w_ptr,
            weights_ptr,
            c_ptr,
            gc_ptr,
            gsw_ptr,
            at_w_ptr,
            dcw_ptr,
            to,
            dtaken_ptr,
            dw_ptr,
            n,
            channels,
            width,
            S,
            M,
            TAKEN,
            ADD,
            BR,
            BL,
            BS,
        )
    elif pid % 3 == 1:
        _side_grad(
            ch_ptr,
            h_ptr,
            weights_ptr + 2,
            c_ptr,
            gc_ptr,
            gsh_ptr,
            at_h_ptr,
            dch_ptr,
            to + 2,
            dtaken_ptr + second,
            dh_ptr,
            n,
            channels,
            height,
            S,
            M,
            TAKEN,
            ADD,
            BR,
            BL,
            BS,
        )
    else:
        j = tl.arange(0, BL)
        in_w = j < width
        rows = n * (S + M + 1)
        lost = tl.zeros([BR, BL], tl.float32)
        for start in range(0, height, BR):
            i = start + tl.arange(0, BR)
            in_h = i < height
            g = tl.zeros([BR, BL], tl.float32)
            for s in tl.static_range(S):
                begin, end, mean = window(width, S, s)
                along = tl.load(gsh_ptr + (rows + s) * height + i, mask=in_h, other=0.0) * mean
                g += tl.where(((j >= begin) & (j < end))[None, :], along[:, None], 0.0)
                begin, end, mean = window(height, S, s)
                along = tl.load(gsw_ptr + (rows + s) * width + j, mask=in_w, other=0.0) * mean
                g += tl.where(((i >= begin) & (i < end))[:, None], along[None, :], 0.0)
            if TAKEN:
                h = tl.load(h_ptr + n * height + i, mask=in_h, other=0.0)
                w = tl.load(w_ptr + n * width + j, mask=in_w, other=0.0)
                gd = g * load_plane(hw_ptr, n, i, j, height, width, in_h, in_w)
                tl.store(dh_ptr + second + n * height + i, -tl.sum(gd * w[None, :], 1), mask=in_h)
                lost += gd * h[:, None]
                g *= 1 - h[:, None] * w[None, :]
            if ADD:
                g += load_plane(dhw_ptr, n, i, j, height, width, in_h, in_w)
            tl.store(
                dhw_ptr + (n * height + i)[:, None] * width + j[None, :],
                g,
                mask=in_h[:, None] & in_w[None, :],
            )
        if TAKEN:
            tl.store(dw_ptr + second + n * width + j, -tl.sum(lost, 0), mask=in_w)


def lengths_of_weights(chunks: Sequence[int]) -> tuple[int, int, int]:
    """How many numbers the weights of a module's convolutions are: of c, h and w."""
    rows = sum(chunks) + 1
    return 4 * chunks[0], 3 * rows, 3 * rows


def convolve_grad(
    planes: Sequence[Tensor],
    chunks: Sequence[int],
    kernels: Sequence[Tensor],
    strips: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    parts: Any,
    norm: Sequence[Any] | None = None,
) -> tuple[Any, ...]:
    """The gradients of c and of the strips; each sample's of the kernels go to `parts`, (N, ...).

    `norm`: c, h and w, sums, moments, weights and by_batch, see `rank1_conv_grad_kernel`."""
    (n, c, h, w), block = sizes(planes)
    x = planes[0]
    gstrips = floats(x, *strips[0].shape), floats(x, *strips[1].shape)
    gc = grads[0] if norm is None else floats(x, n, c)
    *given, by_batch = norm or (*[x] * 8, (0, 0, 0))
    launch(
        rank1_conv_grad_kernel, n, *strips, *kernels, *grads, *given, gc, *gstrips, parts, c, h, w,
        parts.stride(0), *map(float, by_batch), NORM=norm is not None, S=chunks[0],
        ROWS=sum(chunks) + 1, BN=pow2(n, 256), BC=pow2(c, 1024), BL=block['BL'],
    )  # fmt: skip
    return gc, gstrips


def pool_grad(
    planes: Sequence[Tensor],
    weights: Any,
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None,
    gc: Tensor,
    gstrips: Sequence[Tensor],
    at: Sequence[Tensor],
    parts: Any,
    dplanes: Sequence[Tensor] | None = None,
) -> tuple[Any, ...]:
    """The gradients of the planes, added to `dplanes` if given; each sample's of the weights go to
    `parts`; two parts of those of the factors taken, (2, N (C + H + W)), or None."""
    (n, c, h, w), block = sizes(planes)
    x = planes[0]
    to = dplanes or tuple(floats(x, *plane.shape) for plane in planes)
    dtaken = floats(x, 2, n * (c + h + w)) if taken else None
    launch(
        rank1_pool_grad_kernel, 3 * n, *planes, weights, *(taken or (x, x, x)), gc, *gstrips, *at,
        *to, parts, dtaken if taken else x, n, c, h, w, parts.stride(0), S=chunks[0], M=chunks[1],
        TAKEN=taken is not None, ADD=dplanes is not None, BS=pow2(2 * chunks[0], 1 << 20), **block,
    )  # fmt: skip
    return to, dtaken


def rank1_pool_grad(
    planes: Sequence[Tensor],
    weights: Sequence[Tensor],
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None,
    grads: Sequence[Tensor | None],
    saved: Sequence[Any],
) -> tuple[Any, ...]:
    (n, c, h, w), _ = sizes(planes)
    grads = [
        planes[0].new_zeros(n, length) if g is None else g
        for g, length in zip(grads, (c, h, w), strict=True)
    ]
    lengths = lengths_of_weights(chunks)
    parts = floats(planes[0], n, sum(lengths))
    gc, gstrips = convolve_grad(planes, chunks, weights[1:], saved[:2], grads, parts)
    dplanes, dtaken = pool_grad(planes, weights[0], chunks, taken, gc, gstrips, saved[2:], parts)
    if taken:
        dtaken = dtaken.sum(0).split((n * c, n * h, n * w))
        dtaken = tuple(d.view(n, length) for d, length in zip(dtaken, (c, h, w), strict=True))
    dweights = parts.sum(0).split(lengths)
    return dplanes, tuple(d.view_as(t) for d, t in zip(dweights, weights, strict=True)), dtaken
