"""The convolution of a few maps to one (CBAM, CAT)."""

import torch
import triton
import triton.language as tl

from .common import cdiv, floats, launch, pow2


@triton.jit
def _block(height, width, BH: tl.constexpr, BW: tl.constexpr):
    """Sample, rows and columns of this program, and which of them there are."""
    columns = tl.cdiv(width, BW)
    blocks = tl.cdiv(height, BH) * columns
    pid = tl.program_id(0)
    i = (pid % blocks) // columns * BH + tl.arange(0, BH)
    j = pid % columns * BW + tl.arange(0, BW)
    return (pid // blocks).to(tl.int64), i, j, (i < height)[:, None] & (j < width)[None, :]


@triton.jit
def _shifted(plane_ptr, i, j, height, width):
    mask = ((i >= 0) & (i < height))[:, None] & ((j >= 0) & (j < width))[None, :]
    return tl.load(plane_ptr + i[:, None] * width + j[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=['maps', 'height', 'width', 'kh', 'kw'])
def spatial_conv_kernel(
    x_ptr, f_ptr, y_ptr, maps, height, width, kh, kw, BH: tl.constexpr, BW: tl.constexpr
):
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
    tl.store(y_ptr + n * height * width + i[:, None] * width + j[None, :], y, mask=mask)


@triton.jit(do_not_specialize=['maps', 'height', 'width', 'kh', 'kw'])
def spatial_conv_grad_kernel(
    x_ptr,
    f_ptr,
    dy_ptr,
    dx_ptr,
    df_ptr,
    maps,
    height,
    width,
    kh,
    kw,
    BH: tl.constexpr,
    BW: tl.constexpr,
):
    """dx, and each program's part of df: (programs, maps, kh, kw)."""
    n, i, j, mask = _block(height, width, BH, BW)
    dy_ptr += n * height * width
    dy = _shifted(dy_ptr, i, j, height, width)
    for m in range(maps):
        plane = (n * maps + m) * height * width
        dx = tl.zeros([BH, BW], tl.float32)
        for a in range(kh):
            for b in range(kw):
                down = a - kh // 2
                right = b - kw // 2
                at = (m * kh + a) * kw + b
                dx += tl.load(f_ptr + at) * _shifted(dy_ptr, i - down, j - right, height, width)
                x = _shifted(x_ptr + plane, i + down, j + right, height, width)
                part = tl.sum(tl.sum(dy * x, 1), 0)
                tl.store(df_ptr + tl.program_id(0) * maps * kh * kw + at, part)
        tl.store(dx_ptr + plane + i[:, None] * width + j[None, :], dx, mask=mask)


def _programs(maps):
    n, _, h, w = maps.shape
    columns = pow2(w, 64)
    block = dict(BW=columns, BH=pow2(h, 2048 // columns))
    return n * cdiv(h, block['BH']) * cdiv(w, columns), block


def spatial_conv(maps, weight):
    n, m, h, w = maps.shape
    programs, block = _programs(maps)
    y = floats(maps, n, h, w)
    launch(spatial_conv_kernel, programs, maps, weight, y, m, h, w, *weight.shape[2:], **block)
    return y


def spatial_conv_grad(maps, weight, *, dy):
    _, m, h, w = maps.shape
    programs, block = _programs(maps)
    dmaps, parts = torch.empty_like(maps), floats(maps, programs, *weight.shape)
    launch(
        spatial_conv_grad_kernel,
        programs,
        maps,
        weight,
        dy,
        dmaps,
        parts,
        m,
        h,
        w,
        *weight.shape[2:],
        **block,
    )
    return dmaps, parts.sum(0)
