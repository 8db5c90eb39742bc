"""The convolution of a few maps to one (CBAM, CAT)."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import block_of, cdiv, floats, launch, pow2


@triton.jit
def _block(height, width, BH: tl.constexpr, BW: tl.constexpr):
    """Sample, rows and columns of this program, and which of them there are."""
    _, j, pid = block_of(tl.program_id(0), width, BW)
    _, i, pid = block_of(pid, height, BH)
    return pid.to(tl.int64), i, j, (i < height)[:, None] & (j < width)[None, :]


@triton.jit
def _shifted(plane_ptr, i, j, height, width):
    mask = ((i >= 0) & (i < height))[:, None] & ((j >= 0) & (j < width))[None, :]
    return tl.load(plane_ptr + i[:, None] * width + j[None, :], mask=mask, other=0.0)


@triton.jit
def store_moments(parts_ptr, v, mask, count):
    """Count, mean and sum of squared distances from it, of a block's values under a mask."""
    mean = tl.sum(tl.sum(tl.where(mask, v, 0.0), 1), 0) / count
    away = tl.where(mask, v - mean, 0.0)
    tl.store(parts_ptr, count)
    tl.store(parts_ptr + 1, mean)
    tl.store(parts_ptr + 2, tl.sum(tl.sum(away * away, 1), 0))


@triton.jit
def merged_moments(parts_ptr, parts, B: tl.constexpr):
    """Mean, sum of squared distances from it and count, of those of parts (parts, 3)."""
    counts = tl.zeros([B], tl.float32)
    sums = tl.zeros([B], tl.float32)
    for start in range(0, parts, B):
        p = start + tl.arange(0, B)
        count = tl.load(parts_ptr + 3 * p, mask=p < parts, other=0.0)
        counts += count
        sums += count * tl.load(parts_ptr + 3 * p + 1, mask=p < parts, other=0.0)
    total = tl.sum(counts, 0)
    mean = tl.sum(sums, 0) / total
    squares = tl.zeros([B], tl.float32)
    for start in range(0, parts, B):
        p = start + tl.arange(0, B)
        count = tl.load(parts_ptr + 3 * p, mask=p < parts, other=0.0)
        away = tl.load(parts_ptr + 3 * p + 1, mask=p < parts, other=0.0) - mean
        squares += tl.load(parts_ptr + 3 * p + 2, mask=p < parts, other=0.0)
        squares += count * away * away
    return mean, tl.sum(squares, 0), total


@triton.jit(do_not_specialize=['maps', 'height', 'width', 'kh', 'kw', 'eps'])
def spatial_conv_kernel(
    x_ptr,
    f_ptr,
    y_ptr,
    parts_ptr,
    s_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    to_mean_ptr,
    to_var_ptr,
    maps,
    height,
    width,
    kh,
    kw,
    eps,
    END: tl.constexpr,
    UNIT: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
):
    """y, and by END: '' no more; 'moments' those of each program's y (programs, 3); 'sigmoid' s,
    of y; 'norm' s, of y normalised by mean and var, which are copied, and two zeros to `parts`, as
    nothing moves; 'equation' y through a sigmoid, and s, the
    sigmoid of y times weight; 'algorithm' the same without that sigmoid. weight may be 1 (UNIT)."""
    n, i, j, mask = _block(height, width, BH, BW)
    y = tl.zeros([BH, BW], tl.float32)
    for m in range(maps):
        for a in range(kh):
            for b in range(kw):
                f = tl.load(f_ptr + (m * kh + a) * kw + b)
                y += f * _shifted(
                    x_ptr + (n * maps + m) * height * width,
                    i + (a - kh // 2),
                    j + (b - kw // 2),
                    height,
                    width,
                )
    at = n * height * width + i[:, None] * width + j[None, :]
    if END == 'equation' or END == 'algorithm':
        y = 1 / (1 + tl.exp(-y))
    tl.store(y_ptr + at, y, mask=mask)
    if END == 'moments':
        count = tl.sum(tl.sum(tl.where(mask, 1.0, 0.0), 1), 0)
        store_moments(parts_ptr + 3 * tl.program_id(0), y, mask, count)
    elif END != '':
        if END == 'norm':
            mean = tl.load(mean_ptr)
            var = tl.load(var_ptr)
            y = (y - mean) * (tl.load(weight_ptr) / tl.sqrt(var + eps)) + tl.load(bias_ptr)
            if tl.program_id(0) == 0:
                tl.store(to_mean_ptr, mean)
                tl.store(to_var_ptr, var)
                tl.store(parts_ptr, 0.0)
                tl.store(parts_ptr + 1, 0.0)
        if not UNIT and (END == 'equation' or END == 'algorithm'):
            y *= tl.load(weight_ptr)
        if END != 'algorithm':
            y = 1 / (1 + tl.exp(-y))
        tl.store(s_ptr + at, y, mask=mask)


@triton.jit
def _before_norm(g, v, inside, mean, scale, level, slope):
    """The gradient of what a norm took, of that of what it gave and of v, within the map."""
    return tl.where(inside, (g - level - (v - mean) * slope) * scale, 0.0)


@triton.jit(do_not_specialize=['samples', 'maps', 'height', 'width', 'kh', 'kw', 'eps', 'by_batch'])
def spatial_conv_grad_kernel(
    x_ptr,
    f_ptr,
    dy_ptr,
    v_ptr,
    sums_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    dx_ptr,
    df_ptr,
    dweight_ptr,
    dbias_ptr,
    samples,
    maps,
    height,
    width,
    kh,
    kw,
    eps,
    by_batch,
    NORM: tl.constexpr,
    MAJOR: tl.constexpr,
    BN: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
):
    """dx, (samples, maps, H, W) or with MAJOR (maps, samples, H, W), and each program's part of df:
    (programs, maps, kh, kw).

    NORM: dy is the gradient of what a norm gave of v, by the batch or not, and sums (samples, 2)
    hold those of dy and of dy times the unit v: the gradients of its bias and weight."""
    n, i, j, mask = _block(height, width, BH, BW)
    size = height * width
    dy_ptr += n * size
    dy = _shifted(dy_ptr, i, j, height, width)
    if NORM:
        v_ptr += n * size
        levels = tl.zeros([BN], tl.float32)
        slopes = tl.zeros([BN], tl.float32)
        for start in range(0, samples, BN):
            p = start + tl.arange(0, BN)
            levels += tl.load(sums_ptr + 2 * p, mask=p < samples, other=0.0)
            slopes += tl.load(sums_ptr + 2 * p + 1, mask=p < samples, other=0.0)
        level = tl.sum(levels, 0)
        slope = tl.sum(slopes, 0)
        if tl.program_id(0) == 0:
            tl.store(dweight_ptr, slope)
            tl.store(dbias_ptr, level)
        mean = tl.load(mean_ptr)
        unit = 1 / tl.sqrt(tl.load(var_ptr) + eps)
        scale = unit * tl.load(weight_ptr)
        total = samples.to(tl.float32) * size
        level *= by_batch / total
        slope *= by_batch / total * unit
        v = _shifted(v_ptr, i, j, height, width)
        dy = _before_norm(dy, v, mask, mean, scale, level, slope)
    for m in range(maps):
        plane = (n * maps + m) * size
        dx = tl.zeros([BH, BW], tl.float32)
        for a in range(kh):
            for b in range(kw):
                down = a - kh // 2
                right = b - kw // 2
                at = (m * kh + a) * kw + b
                g = _shifted(dy_ptr, i - down, j - right, height, width)
                if NORM:
                    up = i - down
                    left = j - right
                    inside = ((up >= 0) & (up < height))[:, None]
                    inside = inside & ((left >= 0) & (left < width))[None, :]
                    v = _shifted(v_ptr, up, left, height, width)
                    g = _before_norm(g, v, inside, mean, scale, level, slope)
                dx += tl.load(f_ptr + at) * g
                x = _shifted(x_ptr + plane, i + down, j + right, height, width)
                part = tl.sum(tl.sum(dy * x, 1), 0)
                tl.store(df_ptr + tl.program_id(0).to(tl.int64) * maps * kh * kw + at, part)
        to = (m * samples + n) * size if MAJOR else plane
        tl.store(dx_ptr + to + i[:, None] * width + j[None, :], dx, mask=mask)


def _programs(maps):
    n, _, h, w = maps.shape
    columns = pow2(w, 64)
    block = dict(BW=columns, BH=pow2(h, 2048 // columns))
    return n * cdiv(h, block['BH']) * cdiv(w, columns), block


def conv(
    maps: Tensor,
    kernel: Tensor,
    end: str = '',
    norm: Sequence[Any] = (),
    eps: float = 0.0,
    weight: Tensor | None = None,
) -> tuple[Any, ...]:
    """y (N, H, W), and by `end` as in `spatial_conv_kernel`: nothing, the parts of moments, or s.

    `norm`: mean, var, weight and bias of 'norm', and where to put copies of mean and var and two
    zeros; `weight`: of 'equation' and 'algorithm', 1 if None."""
    n, m, h, w = maps.shape
    programs, block = _programs(maps)
    y = floats(maps, n, h, w)
    more = floats(maps, programs, 3) if end == 'moments' else floats(maps, n, h, w) if end else y
    parts, s = (more, y) if end == 'moments' else (y, more)
    given = y, y, y if weight is None else weight, y, y, y
    if norm:
        *given, parts = norm
    launch(
        spatial_conv_kernel, programs, maps, kernel, y, parts, s, *given, m, h, w,
        *kernel.shape[2:], eps, END=end, UNIT=weight is None, **block,
    )  # fmt: skip
    return y, more


def spatial_conv(maps: Tensor, weight: Tensor) -> Tensor:
    return conv(maps, weight)[0]


def conv_grad(
    maps: Tensor, kernel: Tensor, dy: Tensor, norm: Sequence[Any] | None = None, major: bool = False
) -> tuple[Any, ...]:
    """dmaps (with `major` (M, N, H, W)), the parts of dkernel (programs, ...), dweight and dbias.

    `norm`: v, sums, mean, var, weight, eps, by_batch, see `spatial_conv_grad_kernel`."""
    n, m, h, w = maps.shape
    programs, block = _programs(maps)
    dmaps = floats(maps, m, n, h, w) if major else torch.empty_like(maps)
    parts = floats(maps, programs, *kernel.shape)
    *tensors, eps, by_batch = (dy,) * 5 + (0.0, False) if norm is None else norm
    dnorm = (dmaps, dmaps) if norm is None else (floats(maps, 1), floats(maps, 1))
    launch(
        spatial_conv_grad_kernel, programs, maps, kernel, dy, *tensors, dmaps, parts, *dnorm,
        n, m, h, w, *kernel.shape[2:], eps, float(by_batch), NORM=norm is not None, MAJOR=major,
        BN=pow2(n, 256), **block,
    )  # fmt: skip
    return dmaps, parts, dnorm


def spatial_conv_grad(maps: Tensor, weight: Tensor, *, dy: Tensor) -> tuple[Tensor, Tensor]:
    dmaps, parts, _ = conv_grad(maps, weight, dy)
    return dmaps, parts.sum(0)
