"""The gradients of the pools over positions and over channels (`pool`), and what ends a backward of
SE, ECA and CBAM: dy scaled, with what the pools send."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    block_of,
    cdiv,
    channels_last,
    filled,
    floats,
    launch,
    matrix_block,
    part_of,
    split,
    total,
)


@triton.jit(do_not_specialize=['rows', 'groups'])
def channel_pool_grad_kernel(
    dy_ptr,
    dx_ptr,
    c_ptr,
    s_ptr,
    ga_ptr,
    gm_ptr,
    at_ptr,
    gavg_ptr,
    gmax_ptr,
    channel_at_ptr,
    a_ptr,
    rows,
    groups,
    mean_c,
    mean_s,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    SCALE: tl.constexpr,
    PART: tl.constexpr,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of x: what the pools over positions send (AVG, MAX), and by SCALE: '' no more;
    'c' dy scaled by c; 'cs' dy scaled by c s, and what the pools over channels of x c send. PART:
    the scale is 1 + a (c s - 1). ROWS: positions are the rows."""
    cols = groups * VEC
    _, k, pid = block_of(tl.program_id(0), cols, BK)
    _, i, pid = block_of(pid, rows, BR)
    n = pid.to(tl.int64)
    in_rows = (i < rows)[:, None]
    in_cols = (k < cols)[None, :]
    mask = in_rows & in_cols
    at = n * rows * cols + (i[:, None] * cols + k[None, :])
    if ROWS:
        to_c = (n * cols + k)[None, :]
        in_c = in_cols
        channel = k[None, :]
        to_s = (n * rows + i)[:, None]
        in_s = in_rows
        position = i[:, None]
    else:
        to_c = (n * rows + i)[:, None]
        in_c = in_rows
        channel = i[:, None]
        to_s = (n * cols + k)[None, :]
        in_s = in_cols
        position = k[None, :]
    dx = tl.zeros([BR, BK], tl.float32)
    if SCALE != '':
        c = tl.load(c_ptr + to_c, mask=in_c, other=0.0)
        dx = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SCALE == 'c':
            dx *= c
        else:
            f = c * tl.load(s_ptr + to_s, mask=in_s, other=0.0)
            if PART:
                f = 1 + tl.load(a_ptr + to_c, mask=in_c, other=0.0) * (f - 1)
            dx *= f
            du = tl.load(ga_ptr + to_s, mask=in_s, other=0.0) * mean_c
            gm = tl.load(gm_ptr + to_s, mask=in_s, other=0.0)
            du += tl.where(channel == tl.load(at_ptr + to_s, mask=in_s, other=-1), gm, 0.0)
            dx += du * c
    if AVG:
        dx += tl.load(gavg_ptr + to_c, mask=in_c, other=0.0) * mean_s
    if MAX:
        gmax = tl.load(gmax_ptr + to_c, mask=in_c, other=0.0)
        dx += tl.where(position == tl.load(channel_at_ptr + to_c, mask=in_c, other=-1), gmax, 0.0)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['rows', 'groups', 'splits'])
def spatial_pool_grad_kernel(
    x_ptr,
    dx_ptr,
    c_ptr,
    gavg_ptr,
    gmax_ptr,
    arg_ptr,
    dc_ptr,
    rows,
    groups,
    splits,
    scale,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    NEED_X: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """With u = x c pooled over channels: dx = du c, and dc, the sum of du x over positions
    (ROWS: they are the rows), in (samples, splits, C) or (samples, column blocks, C)."""
    cols = groups * VEC
    block, k, pid = block_of(tl.program_id(0), cols, BK)
    part, first, last, n = part_of(pid, rows, splits, BR)
    in_cols = k < cols
    col_blocks = tl.cdiv(cols, BK)
    sums = tl.zeros([BR, BK], tl.float32)
    for start in range(first, last, BR):
        i = start + tl.arange(0, BR)
        in_rows = i < last
        mask = in_rows[:, None] & in_cols[None, :]
        at = n * rows * cols + (i[:, None] * cols + k[None, :])
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if ROWS:
            c = tl.load(c_ptr + n * cols + k, mask=in_cols, other=0.0)[None, :]
            to = (n * rows + i)[:, None]
            in_map = in_rows[:, None]
            channel = k[None, :]
        else:
            c = tl.load(c_ptr + n * rows + i, mask=in_rows, other=0.0)[:, None]
            to = (n * cols + k)[None, :]
            in_map = in_cols[None, :]
            channel = i[:, None]
        du = tl.zeros([BR, BK], tl.float32)
        if AVG:
            du += tl.load(gavg_ptr + to, mask=in_map, other=0.0) * scale
        if MAX:
            gmax = tl.load(gmax_ptr + to, mask=in_map, other=0.0)
            du += tl.where(channel == tl.load(arg_ptr + to, mask=in_map, other=-1), gmax, 0.0)
        if NEED_X:
            tl.store(dx_ptr + at, (du * c).to(dx_ptr.dtype.element_ty), mask=mask)
        if ROWS:
            sums += du * x
        else:
            tl.store(dc_ptr + (n * col_blocks + block) * rows + i, tl.sum(du * x, 1), mask=in_rows)
    if ROWS:
        tl.store(dc_ptr + (n * splits + part) * cols + k, tl.sum(sums, 0), mask=in_cols)


def _dx(like, dy, scale, c, s, over_channels, over_positions, a=None):
    """dx by channel_pool_grad_kernel, see there; `over_*`: gradients of mean and maximum, and where
    the maxima are."""
    dx = torch.empty_like(like)
    (n, rows, cols), block = matrix_block(dx, sums=False)
    over_rows = channels_last(dx)
    given = (dy, dx, c, s, *over_channels, *over_positions, a)
    channels, positions = (cols, rows) if over_rows else (rows, cols)
    launch(
        channel_pool_grad_kernel,
        n * cdiv(rows, block['BR']) * cdiv(cols, block['BK']),
        *filled(dx, *given),
        rows,
        cols // block['VEC'],
        1 / channels,
        1 / positions,
        ROWS=over_rows,
        SCALE=scale,
        PART=a is not None,
        AVG=over_positions[0] is not None,
        MAX=over_positions[1] is not None,
        **block,
    )
    return dx


NOTHING = None, None, None


def channel_pool_grad(
    dx: Tensor, gavg: Tensor | None, gmax: Tensor | None, argmax: Tensor | None
) -> Tensor:
    return _dx(dx, None, '', None, None, NOTHING, (gavg, gmax, argmax))


def channel_dx(
    dy: Tensor, c: Tensor, gavg: Tensor | None, gmax: Tensor | None, at: Tensor | None
) -> Tensor:
    return _dx(dy, dy, 'c', c, None, NOTHING, (gavg, gmax, at))


def cbam_dx(
    dy: Tensor,
    c: Tensor,
    s: Tensor,
    ga: Tensor,
    gm: Tensor,
    at: Tensor | None,
    gavg: Tensor | None,
    gmax: Tensor | None,
    channel_at: Tensor,
    a: Tensor | None = None,
) -> Tensor:
    return _dx(dy, dy, 'cs', c, s, (ga, gm, at), (gavg, gmax, channel_at), a)


def spatial_pool_grad_parts(
    x: Tensor, c: Tensor, gavg: Tensor, gmax: Tensor, argmax: Tensor, need_x: bool
) -> tuple[Tensor | None, Tensor]:
    """dx or None, and parts of dc: (N, parts, C)."""
    dx = torch.empty_like(x) if need_x else None
    (n, rows, cols), block = matrix_block(x, sums=True)
    blocks = cdiv(cols, block['BK'])
    splits = split(n * blocks, rows, block['BR'])
    over_rows = channels_last(x)
    dc = floats(x, n, splits if over_rows else blocks, c.shape[1])
    launch(
        spatial_pool_grad_kernel,
        n * splits * blocks,
        x,
        dx if need_x else x,
        c,
        *filled(x, gavg, gmax, argmax),
        dc,
        rows,
        cols // block['VEC'],
        splits,
        1 / (cols if over_rows else rows),
        ROWS=over_rows,
        AVG=gavg is not None,
        MAX=gmax is not None,
        NEED_X=need_x,
        **block,
    )
    return dx, dc


def spatial_pool_grad(
    x: Tensor, c: Tensor, gavg: Tensor, gmax: Tensor, argmax: Tensor, *, need_x: bool
) -> tuple[Tensor | None, Tensor]:
    dx, dc = spatial_pool_grad_parts(x, c, gavg, gmax, argmax, need_x)
    return dx, total(dc, 1)
