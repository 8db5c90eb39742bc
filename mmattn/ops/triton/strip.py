"""Means over each axis of a sample (CoordAttention, DRTAM), and the gate of two such planes.

A sample is a box A x B x K with K contiguous in memory. Its means over K, B and A are three
planes, called ab, ak and bk after the axes that are left:

    format          A  B  K     ab        ak                  bk
    contiguous      C  H  W     (C, H)    (C, W)              (H, W)
    channels_last   H  W  C     (H, W)    (C, H) transposed   (C, W) transposed
"""

import torch
import triton
import triton.language as tl

from .common import PROGRAMS, box, cdiv, channels_last, floats, launch, pow2, split, total, vector


@triton.jit
def _plane(i, j, length_i, length_j, FLIP: tl.constexpr):
    """Offsets of a plane's entries (i, j), stored transposed where FLIP."""
    return j * length_i + i if FLIP else i * length_j + j


@triton.jit
def _load_plane(ptr, n, i, j, in_i, in_j, length_i, length_j, FLIP: tl.constexpr):
    at = n * length_i * length_j + _plane(i[:, None], j[None, :], length_i, length_j, FLIP)
    return tl.load(ptr + at, mask=in_i[:, None] & in_j[None, :], other=0.0)


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
    b_blocks = tl.cdiv(nb, SB)
    k_blocks = tl.cdiv(nk, SK)
    pid = tl.program_id(0)
    k_block = pid % k_blocks
    pid = pid // k_blocks
    b_block = pid % b_blocks
    pid = pid // b_blocks
    part = pid % splits
    n = (pid // splits).to(tl.int64)
    b = b_block * SB + tl.arange(0, SB)
    k = k_block * SK + tl.arange(0, SK)
    in_b = b < nb
    in_k = k < nk
    span = tl.cdiv(tl.cdiv(na, SA), splits) * SA
    first = part * span
    last = tl.minimum(first + span, na)
    to_ab = ab_ptr + (k_block * samples + n) * na * nb
    to_ak = ak_ptr + (b_block * samples + n) * na * nk
    to_bk = bk_ptr + (part * samples + n) * nb * nk

    sums = tl.zeros([SA, SB, SK], tl.float32)
    for start in range(first, last, SA):
        a = start + tl.arange(0, SA)
        in_a = a < last
        in_ab = in_a[:, None] & in_b[None, :]
        in_ak = in_a[:, None] & in_k[None, :]
        at = (a[:, None] * nb + b[None, :])[:, :, None] * nk + k[None, None, :]
        mask = in_ab[:, :, None] & in_k[None, None, :]
        x = tl.load(x_ptr + n * na * nb * nk + at, mask=mask, other=0.0).to(tl.float32)
        if AB:
            tl.store(to_ab + (a[:, None] * nb + b[None, :]), tl.sum(x, 2) * mean_k, mask=in_ab)
        tl.store(
            to_ak + _plane(a[:, None], k[None, :], na, nk, LAST), tl.sum(x, 1) * mean_b, mask=in_ak
        )
        if BK:
            sums += x
    if BK:
        in_bk = in_b[:, None] & in_k[None, :]
        tl.store(
            to_bk + _plane(b[:, None], k[None, :], nb, nk, LAST),
            tl.sum(sums, 0) * mean_a,
            mask=in_bk,
        )


@triton.jit
def _rank1(a_ptr, b_ptr, k_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk):
    """The product of three vectors over a block."""
    fa = tl.load(a_ptr + n * na + a, mask=in_a, other=0.0)
    fb = tl.load(b_ptr + n * nb + b, mask=in_b, other=0.0)
    fk = tl.load(k_ptr + n * nk + k, mask=in_k, other=0.0)
    return (fa[:, None] * fb[None, :])[:, :, None] * fk[None, None, :]


@triton.jit
def _of_channels(ptr, n, a, k, in_a, in_k, na, nk, LAST: tl.constexpr):
    """A number a channel over a block."""
    if LAST:
        return tl.load(ptr + n * nk + k, mask=in_k, other=0.0)[None, None, :]
    return tl.load(ptr + n * na + a, mask=in_a, other=0.0)[:, None, None]


@triton.jit
def _of_planes(h_ptr, w_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk, LAST: tl.constexpr):
    """The product of h (C, H) and w (C, W) over a block."""
    if LAST:
        h = _load_plane(h_ptr, n, a, k, in_a, in_k, na, nk, True)[:, None, :]
        w = _load_plane(w_ptr, n, b, k, in_b, in_k, nb, nk, True)[None, :, :]
    else:
        h = _load_plane(h_ptr, n, a, b, in_a, in_b, na, nb, False)[:, :, None]
        w = _load_plane(w_ptr, n, a, k, in_a, in_k, na, nk, False)[:, None, :]
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
    a_blocks = tl.cdiv(na, SA)
    b_blocks = tl.cdiv(nb, SB)
    k_blocks = tl.cdiv(nk, SK)
    pid = tl.program_id(0)
    k = (pid % k_blocks) * SK + tl.arange(0, SK)
    pid = pid // k_blocks
    b = (pid % b_blocks) * SB + tl.arange(0, SB)
    pid = pid // b_blocks
    a = (pid % a_blocks) * SA + tl.arange(0, SA)
    n = (pid // a_blocks).to(tl.int64)
    in_a = a < na
    in_b = b < nb
    in_k = k < nk
    mask = (in_a[:, None] & in_b[None, :])[:, :, None] & in_k[None, None, :]
    at = n * na * nb * nk + ((a[:, None] * nb + b[None, :])[:, :, None] * nk + k[None, None, :])
    dx = tl.zeros([SA, SB, SK], tl.float32)
    if SCALE != '':
        dx = tl.load(gx_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SHARE:
            u = _of_channels(u_ptr, n, a, k, in_a, in_k, na, nk, LAST)
        if SCALE == 'coord':
            f = _of_planes(a1_ptr, b1_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk, LAST)
            dx *= u + f if SHARE else f
        else:
            f = _rank1(a1_ptr, b1_ptr, k1_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk)
            if SCALE == 'two':
                f += (1 - f) * _rank1(
                    a2_ptr, b2_ptr, k2_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk
                )
            dx *= 1 + u * (f - 1) if SHARE else f
    if AB:
        g = _load_plane(ab_ptr, n, a, b, in_a, in_b, na, nb, False)
        dx += (g * mean_k)[:, :, None]
    if AK:
        g = _load_plane(ak_ptr, n, a, k, in_a, in_k, na, nk, LAST)
        dx += (g * mean_b)[:, None, :]
    if BK:
        g = _load_plane(bk_ptr, n, b, k, in_b, in_k, nb, nk, LAST)
        dx += (g * mean_a)[None, :, :]
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['na', 'nb', 'groups'])
def coord_scale_kernel(
    x_ptr,
    y_ptr,
    h_ptr,
    w_ptr,
    u_ptr,
    na,
    nb,
    groups,
    VEC: tl.constexpr,
    LAST: tl.constexpr,
    SHARE: tl.constexpr,
    SA: tl.constexpr,
    SB: tl.constexpr,
    SK: tl.constexpr,
):
    nk = groups * VEC
    a_blocks = tl.cdiv(na, SA)
    b_blocks = tl.cdiv(nb, SB)
    k_blocks = tl.cdiv(nk, SK)
    pid = tl.program_id(0)
    k = (pid % k_blocks) * SK + tl.arange(0, SK)
    pid = pid // k_blocks
    b = (pid % b_blocks) * SB + tl.arange(0, SB)
    pid = pid // b_blocks
    a = (pid % a_blocks) * SA + tl.arange(0, SA)
    n = (pid // a_blocks).to(tl.int64)
    in_a = a < na
    in_b = b < nb
    in_k = k < nk
    mask = (in_a[:, None] & in_b[None, :])[:, :, None] & in_k[None, None, :]
    at = n * na * nb * nk + ((a[:, None] * nb + b[None, :])[:, :, None] * nk + k[None, None, :])
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    f = _of_planes(h_ptr, w_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk, LAST)
    if SHARE:
        f += _of_channels(u_ptr, n, a, k, in_a, in_k, na, nk, LAST)
    y = x * f
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['samples', 'na', 'nb', 'groups', 'splits'])
def coord_scale_grad_kernel(
    x_ptr,
    dy_ptr,
    dx_ptr,
    h_ptr,
    w_ptr,
    u_ptr,
    dh_ptr,
    dw_ptr,
    du_ptr,
    samples,
    na,
    nb,
    groups,
    splits,
    VEC: tl.constexpr,
    LAST: tl.constexpr,
    SHARE: tl.constexpr,
    NEED_X: tl.constexpr,
    SA: tl.constexpr,
    SB: tl.constexpr,
    SK: tl.constexpr,
):
    """dx, and the gradients of h and w in parts as strip_pool_kernel leaves its planes. SHARE: of a
    scale by u + h w, and those of u (parts, samples, C)."""
    nk = groups * VEC
    b_blocks = tl.cdiv(nb, SB)
    k_blocks = tl.cdiv(nk, SK)
    pid = tl.program_id(0)
    k_block = pid % k_blocks
    pid = pid // k_blocks
    b_block = pid % b_blocks
    pid = pid // b_blocks
    part = pid % splits
    n = (pid // splits).to(tl.int64)
    b = b_block * SB + tl.arange(0, SB)
    k = k_block * SK + tl.arange(0, SK)
    in_b = b < nb
    in_k = k < nk
    span = tl.cdiv(tl.cdiv(na, SA), splits) * SA
    first = part * span
    last = tl.minimum(first + span, na)
    if LAST:
        w = _load_plane(w_ptr, n, b, k, in_b, in_k, nb, nk, True)[None, :, :]
    sums = tl.zeros([SA, SB, SK], tl.float32)
    whole = tl.zeros([SA, SB, SK], tl.float32)
    for start in range(first, last, SA):
        a = start + tl.arange(0, SA)
        in_a = a < last
        mask = (in_a[:, None] & in_b[None, :])[:, :, None] & in_k[None, None, :]
        at = (a[:, None] * nb + b[None, :])[:, :, None] * nk + k[None, None, :]
        at += n * na * nb * nk
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        p = dy * tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if LAST:
            h = _load_plane(h_ptr, n, a, k, in_a, in_k, na, nk, True)[:, None, :]
        else:
            h = _load_plane(h_ptr, n, a, b, in_a, in_b, na, nb, False)[:, :, None]
            w = _load_plane(w_ptr, n, a, k, in_a, in_k, na, nk, False)[:, None, :]
        if NEED_X:
            f = h * w
            if SHARE:
                f += _of_channels(u_ptr, n, a, k, in_a, in_k, na, nk, LAST)
            dx = dy * f
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        in_ak = in_a[:, None] & in_k[None, :]
        at_ak = (b_block * samples + n) * na * nk + _plane(a[:, None], k[None, :], na, nk, LAST)
        if SHARE:  # noqa: SIM102 - both are constants
            if not LAST:
                at_a = ((k_block * b_blocks + b_block) * samples + n) * na + a
                tl.store(du_ptr + at_a, tl.sum(tl.sum(p, 2), 1), mask=in_a)
        if LAST:
            whole += p
            tl.store(dh_ptr + at_ak, tl.sum(p * w, 1), mask=in_ak)
            sums += p * h
        else:
            at_ab = (k_block * samples + n) * na * nb + (a[:, None] * nb + b[None, :])
            tl.store(dh_ptr + at_ab, tl.sum(p * w, 2), mask=in_a[:, None] & in_b[None, :])
            tl.store(dw_ptr + at_ak, tl.sum(p * h, 1), mask=in_ak)
    if LAST:
        at_bk = (part * samples + n) * nb * nk + _plane(b[:, None], k[None, :], nb, nk, LAST)
        tl.store(dw_ptr + at_bk, tl.sum(sums, 0), mask=in_b[:, None] & in_k[None, :])
        if SHARE:
            at_k = ((part * b_blocks + b_block) * samples + n) * nk + k
            tl.store(du_ptr + at_k, tl.sum(tl.sum(whole, 0), 0), mask=in_k)


def _shares(na, nb, nk):
    """A block for a pass without sums: 8 x 8 entries of K share what is loaded of the planes."""
    sk = pow2(nk, 64)
    sb = pow2(nb, 8)
    return dict(SA=pow2(na, 4096 // (sk * sb)), SB=sb, SK=sk)


def _walks(na, nb, nk):
    """A block for a pass along A with sums over B and K: as much of these as fits."""
    sb = pow2(nb, 64)
    sk = pow2(nk, min(256, 4096 // sb))
    return dict(SA=pow2(na, 4096 // (sk * sb)), SB=sb, SK=sk)


def _plane_blocks(n, na, nb, nk, block):
    return n * cdiv(na, block['SA']) * cdiv(nb, block['SB']) * cdiv(nk, block['SK'])


def strip_pool_parts(x, channel):
    """ch, cw, hw (or None), each in parts: (parts, N, ...)."""
    n, na, nb, nk = box(x)
    last = channels_last(x)
    vec = vector(nk, x)
    block = _walks(na, nb, nk)
    b_blocks, k_blocks = cdiv(nb, block['SB']), cdiv(nk, block['SK'])
    # Each part writes a whole plane, so no more parts than a device needs.
    splits = split(n * b_blocks * k_blocks, na, block['SA'], wanted=PROGRAMS // 2)
    _, c, height, width = x.shape
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
        *(x if plane is None else plane for plane in planes),
        n,
        na,
        nb,
        nk // vec,
        splits,
        1 / nk,
        1 / nb,
        1 / na,
        VEC=vec,
        LAST=last,
        AB=channel or not last,
        BK=channel or last,
        **block,
    )
    return ch, cw, hw


def strip_pool(x, *, channel):
    ch, cw, hw = strip_pool_parts(x, channel)
    return total(ch, 0), total(cw, 0), total(hw, 0) if channel else None


def coord_dx(dy, h, w, gch, gcw, u=None):
    return _dx(torch.empty_like(dy), dy, 'coord', (gch, gcw, None), (h, w), u)


def strip_pool_grad(dx, gch, gcw, ghw, *, dy=None, maps=(), a=None):
    """`dy`: what is to be added, scaled by `maps`: factors c, h, w of one or two rank-1 attention
    maps, of which a (N, C) is the share."""
    last = channels_last(dx)
    factors = [f for c, h, w in maps for f in ((h, w, c) if last else (c, h, w))]
    return _dx(dx, dy, ('', 'one', 'two')[len(maps)], (gch, gcw, ghw), factors, a)


def _dx(dx, dy, scale, planes, factors, share):
    gx = dx if dy is None else dy
    n, na, nb, nk = box(gx)
    last = channels_last(gx)
    vec = vector(nk, gx)
    block = _shares(na, nb, nk)
    gch, gcw, ghw = planes
    planes = (ghw, gch, gcw) if last else (gch, gcw, ghw)
    launch(
        strip_pool_grad_kernel,
        _plane_blocks(n, na, nb, nk, block),
        gx,
        dx,
        *(gx if plane is None else plane for plane in planes),
        *factors,
        *[gx] * (6 - len(factors)),
        gx if share is None else share,
        na,
        nb,
        nk // vec,
        1 / nk,
        1 / nb,
        1 / na,
        VEC=vec,
        LAST=last,
        AB=planes[0] is not None,
        AK=planes[1] is not None,
        BK=planes[2] is not None,
        SCALE=scale,
        SHARE=share is not None,
        **block,
    )
    return dx


def coord_scale(x, h, w, u=None):
    y = torch.empty_like(x)
    n, na, nb, nk = box(x)
    vec = vector(nk, x)
    block = _shares(na, nb, nk)
    launch(
        coord_scale_kernel,
        _plane_blocks(n, na, nb, nk, block),
        x,
        y,
        h,
        w,
        x if u is None else u,
        na,
        nb,
        nk // vec,
        VEC=vec,
        LAST=channels_last(x),
        SHARE=u is not None,
        **block,
    )
    return y


def coord_scale_grad(x, h, w, u=None, *, dy, need_x):
    dx, *grads = coord_grad_parts(x, h, w, dy, need_x, u)
    return dx, *(total(d, 0) for d in grads)


def coord_grad_parts(x, h, w, dy, need_x=False, u=None):
    """dx or None, parts of dh and dw (parts, N, C, L), and with u of du (parts, N, C)."""
    n, na, nb, nk = box(x)
    last = channels_last(x)
    vec = vector(nk, x)
    block = _walks(na, nb, nk)
    b_blocks, k_blocks = cdiv(nb, block['SB']), cdiv(nk, block['SK'])
    splits = split(n * b_blocks * k_blocks, na, block['SA'], wanted=PROGRAMS // 2)
    dx = torch.empty_like(x) if need_x else None
    dh = floats(x, b_blocks if last else k_blocks, *h.shape)
    dw = floats(x, splits if last else b_blocks, *w.shape)
    if u is not None:
        du = floats(x, b_blocks * (splits if last else k_blocks), *u.shape)
    launch(
        coord_scale_grad_kernel,
        n * splits * b_blocks * k_blocks,
        x,
        dy,
        dx if need_x else x,
        h,
        w,
        x if u is None else u,
        dh,
        dw,
        x if u is None else du,
        n,
        na,
        nb,
        nk // vec,
        splits,
        num_warps=8,
        VEC=vec,
        LAST=last,
        SHARE=u is not None,
        NEED_X=need_x,
        **block,
    )
    return (dx, dh, dw) if u is None else (dx, dh, dw, du)
