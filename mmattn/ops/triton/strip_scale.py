"""The scale of two planes h (C, H) and w (C, W), which are read as `strip` does."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import block_of, floats, launch, part_of, total
from .strip import entries, load_plane, of_channels, of_planes, shares, store_plane, walks


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
    _, k, pid = block_of(tl.program_id(0), nk, SK)
    _, b, pid = block_of(pid, nb, SB)
    _, a, pid = block_of(pid, na, SA)
    n = pid.to(tl.int64)
    in_a = a < na
    in_b = b < nb
    in_k = k < nk
    at, mask = entries(n, a, b, k, in_a, in_b, in_k, na, nb, nk)
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    f = of_planes(h_ptr, w_ptr, n, a, b, k, in_a, in_b, in_k, na, nb, nk, LAST)
    if SHARE:
        f += of_channels(u_ptr, n, a, k, in_a, in_k, na, nk, LAST)
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
    k_block, k, pid = block_of(tl.program_id(0), nk, SK)
    b_block, b, pid = block_of(pid, nb, SB)
    part, first, last, n = part_of(pid, na, splits, SA)
    b_blocks = tl.cdiv(nb, SB)
    in_b = b < nb
    in_k = k < nk
    if LAST:
        w = load_plane(w_ptr, n, b, k, in_b, in_k, nb, nk, True)[None, :, :]
    sums = tl.zeros([SA, SB, SK], tl.float32)
    whole = tl.zeros([SA, SB, SK], tl.float32)
    for start in range(first, last, SA):
        a = start + tl.arange(0, SA)
        in_a = a < last
        at, mask = entries(n, a, b, k, in_a, in_b, in_k, na, nb, nk)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        p = dy * tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if LAST:
            h = load_plane(h_ptr, n, a, k, in_a, in_k, na, nk, True)[:, None, :]
        else:
            h = load_plane(h_ptr, n, a, b, in_a, in_b, na, nb, False)[:, :, None]
            w = load_plane(w_ptr, n, a, k, in_a, in_k, na, nk, False)[:, None, :]
        if NEED_X:
            f = h * w
            if SHARE:
                f += of_channels(u_ptr, n, a, k, in_a, in_k, na, nk, LAST)
            dx = dy * f
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        to_ak = (b_block * samples + n) * na * nk
        if LAST:
            whole += p
            sums += p * h
            store_plane(dh_ptr + to_ak, a, k, in_a, in_k, na, nk, True, tl.sum(p * w, 1))
        else:
            to_ab = (k_block * samples + n) * na * nb
            store_plane(dh_ptr + to_ab, a, b, in_a, in_b, na, nb, False, tl.sum(p * w, 2))
            store_plane(dw_ptr + to_ak, a, k, in_a, in_k, na, nk, False, tl.sum(p * h, 1))
            if SHARE:
                at_a = ((k_block * b_blocks + b_block) * samples + n) * na + a
                tl.store(du_ptr + at_a, tl.sum(tl.sum(p, 2), 1), mask=in_a)
    if LAST:
        to_bk = (part * samples + n) * nb * nk
        store_plane(dw_ptr + to_bk, b, k, in_b, in_k, nb, nk, True, tl.sum(sums, 0))
        if SHARE:
            at_k = ((part * b_blocks + b_block) * samples + n) * nk + k
            tl.store(du_ptr + at_k, tl.sum(tl.sum(whole, 0), 0), mask=in_k)


def coord_scale(x: Tensor, h: Tensor, w: Tensor, u: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x)
    (na, nb, nk), block, programs = shares(x)
    launch(
        coord_scale_kernel,
        programs,
        x,
        y,
        h,
        w,
        x if u is None else u,
        na,
        nb,
        nk // block['VEC'],
        SHARE=u is not None,
        **block,
    )
    return y


def coord_scale_grad(
    x: Tensor, h: Tensor, w: Tensor, u: Tensor | None = None, *, dy: Tensor, need_x: bool
) -> tuple[Any, ...]:
    dx, *grads = coord_grad_parts(x, h, w, dy, need_x, u)
    return dx, *(total(d, 0) for d in grads)


def coord_grad_parts(
    x: Tensor, h: Tensor, w: Tensor, dy: Tensor, need_x: bool = False, u: Tensor | None = None
) -> tuple[Any, ...]:
    """dx or None, parts of dh and dw (parts, N, C, L), and with u of du (parts, N, C)."""
    (na, nb, nk), block, (splits, b_blocks, k_blocks) = walks(x)
    n, last = x.shape[0], block['LAST']
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
        nk // block['VEC'],
        splits,
        num_warps=8,
        SHARE=u is not None,
        NEED_X=need_x,
        **block,
    )
    return (dx, dh, dw) if u is None else (dx, dh, dw, du)
