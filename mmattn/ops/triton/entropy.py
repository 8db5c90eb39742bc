"""CAT's six statistics: mean, filtered maximum and entropy, over positions and over channels.

Two passes over x: `moments` and `maxima`. Backward is one pass: it walks in the same way as that of
the maxima, with the filter run backwards over the spatial map of gradients, of which a channel sees
the entries that it is the arg-max of.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import LOG2E, block_of, cdiv, channels_last, filled, launch, nan_max, part_of, split
from .maxima import FILTERS, filter_step, filtered, load_taps, maxima, pick, plain_maxima, walks
from .moments import moments


@triton.jit
def _entropy_term(x, m, shift, slope, base):
    """The entropy's gradient -g p (log p + H), as p (slope d + base) with d = x - m, where
    log p + H = d - t / s."""
    d = x - m
    return tl.exp2(d * LOG2E - shift) * (slope * d + base)


@triton.jit
def _entropy_vectors(g_ptr, m_ptr, l_ptr, q_ptr, at, mask):
    g = tl.load(g_ptr + at, mask=mask, other=0.0)
    m = tl.load(m_ptr + at, mask=mask, other=0.0)
    shift = tl.load(l_ptr + at, mask=mask, other=0.0) * LOG2E
    base = g * tl.load(q_ptr + at, mask=mask, other=0.0)
    return m, shift, -g, base


@triton.jit(do_not_specialize=['channel_groups', 'height', 'width', 'splits'])
def entropy_grad_kernel(
    x_ptr,
    gx_ptr,
    dx_ptr,
    c_ptr,
    s_ptr,
    slope_ptr,
    taps_ptr,
    cavg_ptr,
    cmax_ptr,
    cent_ptr,
    savg_ptr,
    smax_ptr,
    sent_ptr,
    carg_ptr,
    cm_ptr,
    cl_ptr,
    cq_ptr,
    sarg_ptr,
    sm_ptr,
    sl_ptr,
    sq_ptr,
    channel_groups,
    height,
    width,
    splits,
    mean_c,
    mean_s,
    VEC: tl.constexpr,
    LAST: tl.constexpr,
    K: tl.constexpr,
    CAVG: tl.constexpr,
    CMAX: tl.constexpr,
    CENT: tl.constexpr,
    SAVG: tl.constexpr,
    SMAX: tl.constexpr,
    SENT: tl.constexpr,
    ADD: tl.constexpr,
    SCALE: tl.constexpr,
    PART: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
):
    """dx = gx (ADD), scaled by c + s (SCALE) or by c + v s (PART, v = slope), + the shares of the
    six statistics, given their gradients cavg to sent, the indices of the maxima carg and sarg, and
    m, l = log s and q = t / s of either entropy."""
    R: tl.constexpr = K // 2
    MAX: tl.constexpr = CMAX or SMAX
    channels = channel_groups * VEC
    _, c, pid = block_of(tl.program_id(0), channels, BC)
    _, w, pid = block_of(pid, width, BW)
    part, first, last, n = part_of(pid, height, splits, 1)
    in_c = c < channels
    in_w = w < width
    mask = in_c[:, None] & in_w[None, :]
    sample = n * channels * height * width
    to_c = n * channels + c
    to_s = n * height * width + w
    t0, t1, t2, t3, t4 = load_taps(taps_ptr, K, True)
    if LAST:
        at = w[None, :] * channels + c[:, None]
        row_step = width * channels
    else:
        at = c[:, None] * height * width + w[None, :]
        row_step = width
    at += sample

    if CAVG:
        cavg = (tl.load(cavg_ptr + to_c, mask=in_c, other=0.0) * mean_c)[:, None]
    if CMAX:
        cmax = tl.load(cmax_ptr + to_c, mask=in_c, other=0.0)[:, None]
        carg = tl.load(carg_ptr + to_c, mask=in_c, other=-1)[:, None]
    if CENT:
        cm, cl, cg, cb = _entropy_vectors(cent_ptr, cm_ptr, cl_ptr, cq_ptr, to_c, in_c)
        cm = cm[:, None]
        cl = cl[:, None]
        cg = cg[:, None]
        cb = cb[:, None]

    if SCALE:
        factor = tl.load(c_ptr + to_c, mask=in_c, other=0.0)[:, None]
        if PART:
            slope = tl.load(slope_ptr + to_c, mask=in_c, other=0.0)[:, None]
    zero = tl.zeros([BC, BW], tl.float32)
    f1 = zero
    f2 = zero
    f3 = zero
    f4 = zero
    for row in range(first - R, last + R):
        acc = zero
        if MAX:
            # What the maxima of this row send to its entries, before the filter along H.
            v = zero
            if SMAX:  # noqa: SIM102 - a constant, then a condition at run time
                if (row >= 0) & (row < height):
                    sarg_row = sarg_ptr + to_s + row * width
                    smax_row = smax_ptr + to_s + row * width
                    for j in tl.static_range(-R, R + 1):
                        in_u = (w + j >= 0) & (w + j < width)
                        which = tl.load(sarg_row + j, mask=in_u, other=-1)[None, :]
                        g = tl.load(smax_row + j, mask=in_u, other=0.0)
                        g = (g * pick(t0, t1, t2, t3, t4, R + j))[None, :]
                        v = tl.where(which == c[:, None], v + g, v)
            if CMAX:
                v = tl.where(carg == (row * width + w)[None, :], v + cmax, v)
            acc, f1, f2, f3, f4 = filter_step(v, f1, f2, f3, f4, t0, t1, t2, t3, t4, K)
        h = row - R
        if h >= first:
            here = at + h * row_step
            if ADD:
                gx = tl.load(gx_ptr + here, mask=mask, other=0.0).to(tl.float32)
                if SCALE:
                    s = tl.load(s_ptr + to_s + h * width, mask=in_w, other=0.0)[None, :]
                    gx *= factor + (slope * s if PART else s)
                acc += gx
            if CAVG:
                acc += cavg
            if SAVG:
                g = tl.load(savg_ptr + to_s + h * width, mask=in_w, other=0.0)
                acc += (g * mean_s)[None, :]
            if CENT or SENT:
                x = tl.load(x_ptr + here, mask=mask, other=0.0).to(tl.float32)
                # -inf has probability 0, and no other share.
                x = nan_max(x, -3.4028234663852886e38)
            if CENT:
                acc += _entropy_term(x, cm, cl, cg, cb)
            if SENT:
                sm, sl, sg, sb = _entropy_vectors(
                    sent_ptr, sm_ptr, sl_ptr, sq_ptr, to_s + h * width, in_w
                )
                acc += _entropy_term(x, sm[None, :], sl[None, :], sg[None, :], sb[None, :])
            tl.store(dx_ptr + here, acc.to(dx_ptr.dtype.element_ty), mask=mask)


def _plain_maxima_grad(gx, taps, gcmax, carg, gsmax, sarg):
    """gx, in float32, with the gradients of the maxima added."""
    n, c, height, width = gx.shape
    dx = gx.float()
    for g, arg, dim in ((gcmax, carg, 2), (gsmax, sarg, 1)):
        if g is not None:
            at = dx.new_zeros(n, c, height * width)
            at.scatter_(dim, arg.long().unsqueeze(dim), g.reshape(arg.shape).unsqueeze(dim))
            at = at.view(gx.shape)
            at = filtered(at, taps.flip(0), 3) if dim == 1 else at
            dx = dx + filtered(at, taps.flip(0), 2)
    return dx.contiguous(memory_format=torch.channels_last) if channels_last(gx) else dx


def entropy_pool(
    x: Tensor, taps: Tensor, *, channel: bool, spatial: bool, avg: bool, max: bool, ent: bool
) -> tuple[Any, ...]:
    n, _, height, width = x.shape
    last = channels_last(x)
    of_channels = (channel and avg, channel and ent)
    of_positions = (spatial and avg, spatial and ent)
    by_rows, by_cols = moments(
        x, *((of_positions, of_channels) if last else (of_channels, of_positions))
    )
    if last:
        by_rows, by_cols = by_cols, by_rows
    c_avg, *c_saved, c_ent = by_rows
    s_avg, *s_saved, s_ent = by_cols
    c_max, c_arg, s_max, s_arg = None, None, None, None
    if max:
        found = maxima if taps.numel() in FILTERS else plain_maxima
        c_max, c_arg, s_max, s_arg = found(x, taps, channel, spatial)
    s_avg, s_max, s_ent = (
        None if s is None else s.view(n, height, width) for s in (s_avg, s_max, s_ent)
    )
    saved = (c_arg, *c_saved, s_arg, *s_saved)
    return (c_avg, c_max, c_ent, s_avg, s_max, s_ent), saved


def entropy_pool_grad(
    x: Tensor,
    taps: Tensor,
    grads: Sequence[Tensor | None],
    saved: Sequence[Any],
    *,
    gx: Tensor | None = None,
    c: Tensor | None = None,
    s: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    """gx: what is to be added, in x's memory format; c and s: that scale it by
    c + s first, with v by c + v s."""
    n, ch, height, width = x.shape
    dx = torch.empty_like(x)
    c_avg, c_max, c_ent, s_avg, s_max, s_ent = grads
    if (c_max is not None or s_max is not None) and taps.numel() not in FILTERS:
        if gx is None:
            gx = torch.zeros_like(x)
        elif c is not None:
            part = s[:, None] if v is None else v[:, :, None, None] * s[:, None]
            gx, c, s, v = gx.float() * (c[:, :, None, None] + part), None, None, None
        gx = _plain_maxima_grad(gx, taps, c_max, saved[0], s_max, saved[4])
        c_max = s_max = None
    block_c, block_w, vec = walks(x, 4)
    c_blocks, w_blocks = cdiv(ch, block_c), cdiv(width, block_w)
    splits = split(n * c_blocks * w_blocks, height, 1, least=16)
    grads = c_avg, c_max, c_ent, s_avg, s_max, s_ent
    tensors = filled(x, gx, dx, c, s, v, taps, *grads, *saved)
    given = {
        name: grad is not None
        for name, grad in zip(('CAVG', 'CMAX', 'CENT', 'SAVG', 'SMAX', 'SENT'), grads, strict=True)
    }
    filtered = given['CMAX'] or given['SMAX']
    launch(
        entropy_grad_kernel,
        n * splits * w_blocks * c_blocks,
        x,
        *tensors,
        ch // vec,
        height,
        width,
        splits,
        1 / (height * width),
        1 / ch,
        maxnreg=168,
        VEC=vec,
        LAST=channels_last(x),
        K=taps.numel() if filtered else 1,
        ADD=gx is not None,
        SCALE=c is not None,
        PART=v is not None,
        BC=block_c,
        BW=block_w,
        **given,
    )
    return dx


def entropy_dx(
    x: Tensor,
    taps: Tensor,
    dy: Tensor,
    c: Tensor,
    s: Tensor,
    grads: Sequence[Tensor | None],
    saved: Sequence[Any],
    v: Tensor | None = None,
) -> Tensor:
    return entropy_pool_grad(x, taps, grads, saved, gx=dy, c=c, s=s, v=v)
