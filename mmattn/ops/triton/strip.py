"""Means over each axis of a sample (CoordAttention, DRTAM).

A sample is a box A x B x K with K contiguous in memory. Its means over K, B and A are three
planes, called ab, ak and bk after the axes that are left:

    format          A  B  K     ab        ak                  bk
    contiguous      C  H  W     (C, H)    (C, W)              (H, W)
    channels_last   H  W  C     (H, W)    (C, H) transposed   (C, W) transposed
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    PROGRAMS,
    block_of,
    box,
    cdiv,
    channels_last,
    filled,
    floats,
    launch,
    part_of,
    pow2,
    split,
    total,
    vector,
)


@triton.jit
def _plane(i, j, in_i, in_j, length_i, length_j, FLIP: tl.constexpr):
    """Where a plane's entries (i, j) are, stored transposed where FLIP, and which there are."""
    at = i[:, None] * length_j + j[None, :]
    if FLIP:
        at = j[None, :] * length_i + i[:, None]
    return at, in_i[:, None] & in_j[None, :]


@triton.jit
def load_plane(ptr, n, i, j, in_i, in_j, length_i, length_j, FLIP: tl.constexpr):
    at, mask = _plane(i, j, in_i, in_j, length_i, length_j, FLIP)
    return tl.load(ptr + n * length_i * length_j + at, mask=mask, other=0.0)


@triton.jit
def store_plane(ptr, i, j, in_i, in_j, length_i, length_j, FLIP: tl.constexpr, value):
    at, mask = _plane(i, j, in_i, in_j, length_i, length_j, FLIP)
    tl.store(ptr + at, value, mask=mask)


@triton.jit
def entries(n, a, b, k, in_a, in_b, in_k, na, nb, nk):
    """Where a block's entries of sample n are, and which there are."""
    at = (a[:, None] * nb + b[None, :])[:, :, None] * nk + k[None, None, :]
    mask = (in_a[:, None] & in_b[None, :])[:, :, None] & in_k[None, None, :]
    return n * na * nb * nk + at, mask


@triton.jit(do_not_specialize=['samples', 'na', 'nb', 'groups', 'splits'])
def strip_pool_kernel(
    x_ptr,
    ab_ptr,
    ak_ptr,
    bk_ptr,
    samples,
    na,
    nb,
    groups,
    splits,
    mean_k,
    mean_b,
    mean_a,
    VEC: tl.constexpr,
    LAST: tl.constexpr,
    AB: tl.constexpr,
    BK: tl.constexpr,
    SA: tl.constexpr,
    SB: tl.constexpr,
    SK: tl.constexpr,
):
    """ab (K blocks, samples, ...), ak (B blocks, samples, ...), bk (splits, samples, ...).
    LAST: channels_last. SA, SB, SK: the block."""
    nk = groups * VEC
    k_block, k, pid = block_of(tl.program_id(0), nk, SK)
    b_block, b, pid = block_of(pid, nb, SB)
    part, first, last, n = part_of(pid, na, splits, SA)
    in_b = b < nb
    in_k = k < nk
    to_ab = ab_ptr + (k_block * samples + n) * na * nb
    to_ak = ak_ptr + (b_block * samples + n) * na * nk
    to_bk = bk_ptr + (part * samples + n) * nb * nk

    sums = tl.zeros([SA, SB, SK], tl.float32)
    for start in range(first, last, SA):
        a = start + tl.arange(0, SA)
        in_a = a < last
        at, mask = entries(n, a, b, k, in_a, in_b, in_k, na, nb, nk)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if AB:
            store_plane(to_ab, a, b, in_a, in_b, na, nb, False, tl.sum(x, 2) * mean_k)
        store_plane(to_ak, a, k, in_a, in_k, na, nk, LAST, tl.sum(x, 1) * mean_b)
        if BK:
            sums += x
    if BK:
        store_plane(to_bk, b, k, in_b, in_k, nb, nk, LAST, tl.sum(sums, 0) * mean_a)


@triton.jit
def _rank1(a_ptr, b_ptr, k_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk):
    """The product of three vectors over a block."""
    fa = tl.load(a_ptr + n * na + a, mask=in_a, other=0.0)
    fb = tl.load(b_ptr + n * nb + b, mask=in_b, other=0.0)
    fk = tl.load(k_ptr + n * nk + k, mask=in_k, other=0.0)
    return (fa[:, None] * fb[None, :])[:, :, None] * fk[None, None, :]


@triton.jit
def of_channels(ptr, n, a, k, in_a, in_k, na, nk, LAST: tl.constexpr):
    """A number a channel over a block."""
    if LAST:
        return tl.load(ptr + n * nk + k, mask=in_k, other=0.0)[None, None, :]
    return tl.load(ptr + n * na + a, mask=in_a, other=0.0)[:, None, None]


@triton.jit
def of_planes(h_ptr, w_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk, LAST: tl.constexpr):
    """The product of h (C, H) and w (C, W) over a block."""
    if LAST:
        h = load_plane(h_ptr, n, a, k, in_a, in_k, na, nk, True)[:, None, :]
        w = load_plane(w_ptr, n, b, k, in_b, in_k, nb, nk, True)[None, :, :]
    else:
        h = load_plane(h_ptr, n, a, b, in_a, in_b, na, nb, False)[:, :, None]
        w = load_plane(w_ptr, n, a, k, in_a, in_k, na, nk, False)[:, None, :]
    return h * w


@triton.jit(do_not_specialize=['na', 'nb', 'groups'])
def strip_pool_grad_kernel(
    gx_ptr,
    dx_ptr,
    ab_ptr,
    ak_ptr,
    bk_ptr,
    a1_ptr,
    b1_ptr,
    k1_ptr,
    a2_ptr,
    b2_ptr,
    k2_ptr,
    u_ptr,
    na,
    nb,
    groups,
    mean_k,
    mean_b,
    mean_a,
    VEC: tl.constexpr,
    LAST: tl.constexpr,
    AB: tl.constexpr,
    AK: tl.constexpr,
    BK: tl.constexpr,
    SCALE: tl.constexpr,
    SHARE: tl.constexpr,
    SA: tl.constexpr,
    SB: tl.constexpr,
    SK: tl.constexpr,
):
    """The gradient of x: the planes', and by SCALE: '' no more; 'one' and 'two' what comes in,
    scaled by a rank-1 attention map or two; 'coord' scaled by the planes a1 = h and b1 = w.
    SHARE: with u of the channels, by u + h w, or of f made 1 + u (f - 1)."""
    nk = groups * VEC
    _, k, pid = block_of(tl.program_id(0), nk, SK)
    _, b, pid = block_of(pid, nb, SB)
    _, a, pid = block_of(pid, na, SA)
    n = pid.to(tl.int64)
    in_a = a < na
    in_b = b < nb
    in_k = k < nk
    at, mask = entries(n, a, b, k, in_a, in_b, in_k, na, nb, nk)
    dx = tl.zeros([SA, SB, SK], tl.float32)
    if SCALE != '':
        dx = tl.load(gx_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SHARE:
            u = of_channels(u_ptr, n, a, k, in_a, in_k, na, nk, LAST)
        if SCALE == 'coord':
            f = of_planes(a1_ptr, b1_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk, LAST)
            dx *= u + f if SHARE else f
        else:
            f = _rank1(a1_ptr, b1_ptr, k1_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk)
            if SCALE == 'two':
                f += (1 - f) * _rank1(
                    a2_ptr, b2_ptr, k2_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk
                )
            dx *= 1 + u * (f - 1) if SHARE else f
    if AB:
        g = load_plane(ab_ptr, n, a, b, in_a, in_b, na, nb, False)
        dx += (g * mean_k)[:, :, None]
    if AK:
        g = load_plane(ak_ptr, n, a, k, in_a, in_k, na, nk, LAST)
        dx += (g * mean_b)[:, None, :]
    if BK:
        g = load_plane(bk_ptr, n, b, k, in_b, in_k, nb, nk, LAST)
        dx += (g * mean_a)[None, :, :]
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def shares(x: Tensor) -> tuple[Any, ...]:
    """The axes of x read as boxes, the block of a program, and how many programs, of a pass without
    sums: 8 x 8 entries of K share what is loaded of the planes."""
    n, na, nb, nk = box(x)
    sk = pow2(nk, 64)
    sb = pow2(nb, 8)
    sa = pow2(na, 4096 // (sk * sb))
    programs = n * cdiv(na, sa) * cdiv(nb, sb) * cdiv(nk, sk)
    block = dict(VEC=vector(nk, x), LAST=channels_last(x), SA=sa, SB=sb, SK=sk)
    return (na, nb, nk), block, programs


def walks(x: Tensor) -> tuple[Any, ...]:
    """The same of a pass along A with sums over B and K, as much of these as fits in a block; in
    place of the programs how many splits of A there are, and blocks of B and of K."""
    n, na, nb, nk = box(x)
    sb = pow2(nb, 64)
    sk = pow2(nk, min(256, 4096 // sb))
    sa = pow2(na, 4096 // (sk * sb))
    b_blocks, k_blocks = cdiv(nb, sb), cdiv(nk, sk)
    # Each part writes a whole plane, so no more parts than a device needs.
    splits = split(n * b_blocks * k_blocks, na, sa, wanted=PROGRAMS // 2)
    block = dict(VEC=vector(nk, x), LAST=channels_last(x), SA=sa, SB=sb, SK=sk)
    return (na, nb, nk), block, (splits, b_blocks, k_blocks)


def strip_pool_parts(x: Tensor, channel: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """ch, cw, hw (or None), each in parts: (parts, N, ...)."""
    (na, nb, nk), block, (splits, b_blocks, k_blocks) = walks(x)
    n, c, height, width = x.shape
    last = block['LAST']
    if last:
        ch, cw = floats(x, b_blocks, n, c, height), floats(x, splits, n, c, width)
        hw = floats(x, k_blocks, n, height, width) if channel else None
        planes = (hw, ch, cw)
    else:
        ch, cw = floats(x, k_blocks, n, c, height), floats(x, b_blocks, n, c, width)
        hw = floats(x, splits, n, height, width) if channel else None
        planes = (ch, cw, hw)
    launch(
        strip_pool_kernel,
        n * splits * b_blocks * k_blocks,
        x,
        *filled(x, *planes),
        n,
        na,
        nb,
        nk // block['VEC'],
        splits,
        1 / nk,
        1 / nb,
        1 / na,
        AB=channel or not last,
        BK=channel or last,
        **block,
    )
    return ch, cw, hw


def strip_pool(x: Tensor, *, channel: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    ch, cw, hw = strip_pool_parts(x, channel)
    return total(ch, 0), total(cw, 0), total(hw, 0) if channel else None


def coord_dx(
    dy: Tensor,
    h: Tensor,
    w: Tensor,
    gch: Tensor | None,
    gcw: Tensor | None,
    u: Tensor | None = None,
) -> Tensor:
    return _dx(torch.empty_like(dy), dy, 'coord', (gch, gcw, None), (h, w), u)


def strip_pool_grad(
    dx: Tensor,
    gch: Tensor | None,
    gcw: Tensor | None,
    ghw: Tensor | None,
    *,
    dy: Tensor | None = None,
    maps: Sequence[Sequence[Tensor]] = (),
    a: Tensor | None = None,
) -> Tensor:
    """`dy`: what is to be added, scaled by `maps`: factors c, h, w of one or two rank-1 attention
    maps, of which a (N, C) is the share."""
    last = channels_last(dx)
    factors = [f for c, h, w in maps for f in ((h, w, c) if last else (c, h, w))]
    return _dx(dx, dy, ('', 'one', 'two')[len(maps)], (gch, gcw, ghw), factors, a)


def _dx(dx, dy, scale, planes, factors, share):
    gx = dx if dy is None else dy
    (na, nb, nk), block, programs = shares(gx)
    gch, gcw, ghw = planes
    planes = (ghw, gch, gcw) if block['LAST'] else (gch, gcw, ghw)
    launch(
        strip_pool_grad_kernel,
        programs,
        gx,
        dx,
        *filled(gx, *planes),
        *factors,
        *[gx] * (6 - len(factors)),
        gx if share is None else share,
        na,
        nb,
        nk // block['VEC'],
        1 / nk,
        1 / nb,
        1 / na,
        AB=planes[0] is not None,
        AK=planes[1] is not None,
        BK=planes[2] is not None,
        SCALE=scale,
        SHARE=share is not None,
        **block,
    )
    return dx
