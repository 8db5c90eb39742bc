"""The gradient of DRTAM: 10 launches, of two attention modules; what is kept, `drtam` says."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..tensors import dense, some
from .common import cdiv, floats, launch, pow2, total
from .drtam import in_part, middle_block, modules_of
from .planes_grad import convolve_grad, lengths_of_weights, pool_grad
from .products import outer_sums, products, store_row_sums, summed
from .scale_grad import channel_grads, rank1_grad_parts
from .strip import strip_pool_grad


@triton.jit
def _norm_sums(
    g_ptr,
    taken_ptr,
    o_ptr,
    v_ptr,
    kept_ptr,
    to_ptr,
    sums_ptr,
    n,
    samples,
    length,
    second,
    TAKEN: tl.constexpr,
    B: tl.constexpr,
):
    """The gradient of what a norm gave to a sigmoid (with what a second module took added), and the
    sums of it times the unit descriptor, and of it alone."""
    mean = tl.load(kept_ptr)
    unit = tl.load(kept_ptr + 1)
    levels = tl.zeros([B], tl.float32)
    slopes = tl.zeros([B], tl.float32)
    for start in range(0, length, B):
        i = start + tl.arange(0, B)
        at = n * length + i
        mask = i < length
        g = tl.load(g_ptr + at, mask=mask, other=0.0)
        if TAKEN:
            g += summed(taken_ptr, at, second, 2, mask)
        o = tl.load(o_ptr + at, mask=mask, other=0.0)
        g *= (1 - o) * o
        tl.store(to_ptr + at, g, mask=mask)
        v = tl.load(v_ptr + at, mask=mask, other=0.0)
        levels += g
        slopes += tl.where(mask, g * ((v - mean) * unit), 0.0)
    tl.store(sums_ptr, tl.sum(slopes, 0))
    tl.store(sums_ptr + 1, tl.sum(levels, 0))


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width', 'hidden', 'parts', 'step'])
def rank1_factors_grad_kernel(
    dc_ptr,
    other_ptr,
    gh_ptr,
    gw_ptr,
    taken_ptr,
    oc_ptr,
    oh_ptr,
    ow_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    kept_ptr,
    w1_ptr,
    w2_ptr,
    hidden_ptr,
    g_ptr,
    inner_ptr,
    to_c_ptr,
    to_h_ptr,
    to_w_ptr,
    sums_ptr,
    samples,
    channels,
    height,
    width,
    hidden,
    parts,
    step,
    WHICH: tl.constexpr,
    DUAL: tl.constexpr,
    TAKEN: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    """From the gradients of an attention module's factors those of what its norms gave, and each
    sample's sums for the norms (3, 2), every `step`.

    That of c comes as sums (1 or 3, samples, parts, C), see `rank1_grad_parts`: of module WHICH,
    whose fellow's c is `other`. TAKEN: (2, samples (C + H + W)) is added to them."""
    n = tl.program_id(0).to(tl.int64)
    g_ptr += n * channels
    inner_ptr += n * hidden
    sums_ptr += n * step
    second = samples.to(tl.int64) * (channels + height + width)
    item = samples.to(tl.int64) * parts * channels
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        mask = i < channels
        at = n * channels + i
        first = n * parts * channels + i
        g = summed(dc_ptr + WHICH * item, first, channels, parts, mask)
        if DUAL:
            other = tl.load(other_ptr + at, mask=mask, other=0.0)
            g -= other * summed(dc_ptr + 2 * item, first, channels, parts, mask)
        if TAKEN:
            g += summed(taken_ptr, at, second, 2, mask)
        c = tl.load(oc_ptr + at, mask=mask, other=0.0)
        tl.store(g_ptr + i, g * ((1 - c) * c), mask=mask)
    tl.debug_barrier()
    for start in range(0, hidden, BK):
        k = start + tl.arange(0, BK)
        u = tl.sum(products(w2_ptr, g_ptr, k, hidden, channels, 1, True, 1, BK, BC), 0)
        h = tl.load(hidden_ptr + n * hidden + k, mask=k < hidden, other=0.0)
        tl.store(inner_ptr + k, tl.where(h <= 0, 0.0, u), mask=k < hidden)
    tl.debug_barrier()
    mean = tl.load(kept_ptr)
    unit = tl.load(kept_ptr + 1)
    levels = tl.zeros([BC], tl.float32)
    slopes = tl.zeros([BC], tl.float32)
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        mask = i < channels
        g = tl.sum(products(w1_ptr, inner_ptr, i, channels, hidden, 1, True, 1, BC, BK), 0)
        tl.store(to_c_ptr + n * channels + i, g, mask=mask)
        v = tl.load(c_ptr + n * channels + i, mask=mask, other=0.0)
        levels += tl.where(mask, g, 0.0)
        slopes += tl.where(mask, g * ((v - mean) * unit), 0.0)
    tl.store(sums_ptr, tl.sum(slopes, 0))
    tl.store(sums_ptr + 1, tl.sum(levels, 0))
    taken_ptr += samples.to(tl.int64) * channels
    _norm_sums(
        gh_ptr, taken_ptr, oh_ptr, h_ptr, kept_ptr + 2, to_h_ptr, sums_ptr + 2, n, samples, height,
        second, TAKEN, BL,
    )  # fmt: skip
    taken_ptr += samples.to(tl.int64) * height
    _norm_sums(
        gw_ptr, taken_ptr, ow_ptr, w_ptr, kept_ptr + 4, to_w_ptr, sums_ptr + 4, n, samples, width,
        second, TAKEN, BL,
    )  # fmt: skip


@triton.jit(do_not_specialize=['samples', 'channels', 'hidden', 'others'])
def rank1_weights_kernel(
    v_ptr,
    v2_ptr,
    hidden_ptr,
    hidden2_ptr,
    g_ptr,
    inner_ptr,
    other_ptr,
    dw1_ptr,
    db1_ptr,
    dw2_ptr,
    db2_ptr,
    dother_ptr,
    samples,
    channels,
    hidden,
    others,
    MODULES: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BR: tl.constexpr,
):
    """The gradients of the MLP that all modules share, a block (BI hidden values, BJ channels) a
    program; further programs sum over samples what they left of other gradients, `others` each.
    g (MODULES, samples, C), inner (MODULES, samples, K)."""
    j_blocks = tl.cdiv(channels, BJ)
    blocks = tl.cdiv(hidden, BI) * j_blocks
    pid = tl.program_id(0)
    rows = MODULES * samples
    if pid < blocks:
        i = pid // j_blocks * BI + tl.arange(0, BI)
        j = pid % j_blocks * BJ + tl.arange(0, BJ)
        mask = (i < hidden)[:, None] & (j < channels)[None, :]
        d = tl.zeros([BI, BJ], tl.float32)
        d = outer_sums(d, inner_ptr, hidden, v_ptr, channels, i, j, hidden, channels, samples, BR)
        d2 = tl.zeros([BI, BJ], tl.float32)
        d2 = outer_sums(
            d2, hidden_ptr, hidden, g_ptr, channels, i, j, hidden, channels, samples, BR
        )
        if MODULES == 2:
            inner2 = inner_ptr + samples.to(tl.int64) * hidden
            d = outer_sums(d, inner2, hidden, v2_ptr, channels, i, j, hidden, channels, samples, BR)
            g2 = g_ptr + samples.to(tl.int64) * channels
            d2 = outer_sums(
                d2, hidden2_ptr, hidden, g2, channels, i, j, hidden, channels, samples, BR
            )
        tl.store(dw1_ptr + i[:, None] * channels + j[None, :], d, mask=mask)
        tl.store(dw2_ptr + j[None, :] * hidden + i[:, None], d2, mask=mask)
        if pid % j_blocks == 0:
            store_row_sums(db1_ptr, inner_ptr, hidden, i, hidden, rows, 1.0, BI, BR)
        if pid < j_blocks:
            store_row_sums(db2_ptr, g_ptr, channels, j, channels, rows, 1.0, BJ, BR)
    else:
        k = (pid - blocks) * BI + tl.arange(0, BI)
        store_row_sums(dother_ptr, other_ptr, others, k, others, samples, 1.0, BI, 8 * BR)


def drtam_backward(
    dy: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    a: Tensor | None,
    by_batch: Sequence[bool],
    eps: Sequence[float],
    chunks: Sequence[int],
    saved: Sequence[Any],
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    x, dy, chunks = dense(x, last), dense(dy, last), tuple(chunks)
    n, c, height, width = x.shape
    mlp, modules = [p.contiguous() for p in params[:4]], modules_of(params)
    planes, hidden, count = saved[:3], mlp[0].shape[0], len(modules)
    stages = [saved[i : i + 13] for i in range(3, len(saved), 13)]
    maps = [stage[7:10] for stage in stages]
    factors, share, da = [f for out in maps for f in out], None, []
    if a is not None:
        *factors, share = in_part(factors, a)
    _, ends, dc = rank1_grad_parts(x, tuple(factors), dy, need_x=False, a=share)
    if a is not None:
        *of_c, da = channel_grads(total(dc, 2), factors[0], factors[3], share)
        da, ready = [identity.summed(da, a)], [t[None, :, None].contiguous() for t in of_c]
    lengths = lengths_of_weights(chunks)
    columns = sum(lengths) + 6
    # Each sample's gradients of a module's convolutions and norms, side by side.
    rows = floats(x, n, count * columns)
    g, inner = floats(x, count, n, c), floats(x, count, n, hidden)
    dplanes, dtaken = None, None
    for i in reversed(range(count)):
        (convs, weights, _), stage, (gh, gw) = modules[i], stages[i], ends[i]
        vectors, strips, at, out, (kept, _, hiddens) = (
            stage[:3], stage[3:5], stage[5:7], stage[7:10], stage[10:],
        )  # fmt: skip
        mine = rows[:, i * columns : (i + 1) * columns]
        sums = mine[:, sum(lengths) :]
        grads = tuple(map(torch.empty_like, vectors))
        sums_of_c, which, dual = (dc, i, count == 2) if a is None else (ready[i], 0, False)
        launch(
            rank1_factors_grad_kernel, n, sums_of_c, maps[1 - i][0] if count == 2 else dc, gh, gw,
            dc if dtaken is None else dtaken, *out, *vectors, kept, mlp[0], mlp[2], hiddens,
            g[i], inner[i], *grads, sums, n, c, height, width, hidden,
            sums_of_c.shape[2], rows.stride(0), WHICH=which, DUAL=dual, TAKEN=dtaken is not None,
            **middle_block(c, height, width, hidden),
        )  # fmt: skip
        norm = (*vectors, sums, kept, *weights, by_batch[3 * i : 3 * i + 3])
        gc, gstrips = convolve_grad(planes, chunks, convs[1:], strips, grads, mine, norm)
        taken = maps[0] if i else None
        dplanes, dtaken = pool_grad(
            planes, convs[0], chunks, taken, gc, gstrips, at, mine, dplanes
        )  # fmt: skip
    dparams = _weights_grad(stages, g, inner, rows, mlp, lengths)
    dx = some(None, x)
    if need_x:
        dx = torch.empty_like(x)
        maps = [factors[:3], factors[3:]] if a is not None else maps
        strip_pool_grad(dx, *dplanes, dy=dy, maps=maps, a=share)
    return [dx, *(d.view_as(p) for d, p in zip(dparams, params, strict=True)), *da]


def _weights_grad(stages, g, inner, rows, mlp, lengths):
    """The gradients of all parameters, in their order."""
    count, n, c = g.shape
    hidden = inner.shape[2]
    found, sums = [torch.empty_like(t) for t in mlp], floats(g, rows.shape[1])
    block = dict(BI=max(16, pow2(hidden, 16)), BJ=max(16, pow2(c, 64)))
    kept = [stages[i][k] for k in (11, 12) for i in (0, count - 1)]
    launch(
        rank1_weights_kernel,
        cdiv(hidden, block['BI']) * cdiv(c, block['BJ']) + cdiv(len(sums), block['BI']),
        *kept, g, inner, rows, *found, sums, n, c, hidden, len(sums), MODULES=count, BR=16, **block,
    )  # fmt: skip
    for part in sums.chunk(count):
        *convs, norms = part.split((*lengths, 6))
        pairs = norms.view(3, 2)
        found += [*convs, *pairs[:, 0].split(1), *pairs[:, 1].split(1)]
    return found
