"""The gradient of CAT: 6 launches; what is kept, `cat` says."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..tensors import dense_pair, some, unless_empty
from . import mlp
from .cat import SIZES, is_whole, middle_block, options_of, weight_of, weighted_maps
from .common import filled, floats, launch, total
from .conv import conv_grad
from .entropy import entropy_dx
from .norm import store_min_max_grad
from .products import products, summed
from .scale_grad import affine_grad_parts, two_sided_grad_parts


@triton.jit(do_not_specialize=[*SIZES, 'parts_c', 'parts_s', 'stretch', 'step'])
def cat_factors_grad_kernel(
    dc_ptr,
    ds_ptr,
    gc_ptr,
    gs_ptr,
    c_ptr,
    s_ptr,
    inner_ptr,
    z_ptr,
    w1_ptr,
    w2_ptr,
    alpha_ptr,
    beta_ptr,
    outer_ptr,
    spatial_ptr,
    hidden_ptr,
    ent_c_ptr,
    g_ptr,
    mixed_ptr,
    dhidden_ptr,
    dchannel_ptr,
    dz_ptr,
    maps_ptr,
    sums_ptr,
    samples,
    channels,
    size,
    hidden,
    parts_c,
    parts_s,
    stretch,
    step,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    ENT: tl.constexpr,
    GIVEN_C: tl.constexpr,
    GIVEN_S: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    OUTER: tl.constexpr,
    EQUATION: tl.constexpr,
    SIDES: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BS: tl.constexpr,
):
    """Program 2 n: from the parts of dc, through the MLP, the gradients of the channels' statistics
    (P, samples, C). Program 2 n + 1: dz, that of what the convolution gave, and its maps again.
    Sums of a sample, every `step`: of C_w, S_w, and alpha."""
    pid = tl.program_id(0)
    n = (pid // 2).to(tl.int64)
    P: tl.constexpr = AVG + MAX + ENT
    sums_ptr += n * step
    if pid % 2 == 0:
        weight = weight_of(outer_ptr, 0, OUTER)
        g_ptr += n * channels
        douter = tl.zeros([BC], tl.float32)
        for start in range(0, channels, BC):
            i = start + tl.arange(0, BC)
            mask = i < channels
            at = n * channels + i
            t = summed(dc_ptr, n * parts_c * channels + i, channels, parts_c, mask)
            if GIVEN_C:
                t += tl.load(gc_ptr + at, mask=mask, other=0.0)
            a = tl.load(inner_ptr + at, mask=mask, other=0.0)
            if EQUATION:
                c = tl.load(c_ptr + at, mask=mask, other=0.0)
                t *= (1 - c) * c
                douter += t * a
                t *= weight
            else:
                a = 1 / (1 + tl.exp(-a))
                douter += tl.where(mask, t * a, 0.0)
                t *= weight * ((1 - a) * a)
            tl.store(g_ptr + i, t, mask=mask)
        tl.store(sums_ptr, tl.sum(douter, 0))
        tl.debug_barrier()
        p = tl.arange(0, BP)[:, None]
        mix = tl.zeros([BP, 1], tl.float32) + 1
        if ALPHA:
            mix = tl.load(alpha_ptr + p, mask=p < P, other=0.0)
        dalpha = tl.zeros([BP, BK], tl.float32)
        for start in range(0, hidden, BK):
            k = start + tl.arange(0, BK)
            at = n * P * hidden + p * hidden + k[None, :]
            mask = (p < P) & (k < hidden)[None, :]
            u = products(w2_ptr, g_ptr, k, hidden, channels, 1, True, 1, BK, BC)
            h = tl.load(hidden_ptr + at, mask=mask, other=0.0)
            dalpha += tl.where(mask, u * h, 0.0)
            tl.store(dhidden_ptr + at, tl.where(h <= 0, 0.0, u * mix), mask=mask)
            tl.store(mixed_ptr + n * hidden + k, tl.sum(h * mix, 0), mask=k < hidden)
        q = tl.arange(0, BP)
        tl.store(sums_ptr + 2 + q, tl.sum(dalpha, 1), mask=q < P)
        tl.debug_barrier()
        for start in range(0, channels, BC):
            i = start + tl.arange(0, BC)
            u = products(
                w1_ptr, dhidden_ptr + n * P * hidden, i, channels, hidden, P, True, BP, BC, BK
            )
            to = (p * samples + n) * channels + i[None, :]
            tl.store(dchannel_ptr + to, u, mask=(p < P) & (i < channels)[None, :])
        if ENT:
            tl.debug_barrier()
            last_ptr = dchannel_ptr + (P - 1) * samples.to(tl.int64) * channels
            store_min_max_grad(ent_c_ptr, last_ptr, last_ptr, n * channels, channels, stretch, BC)
    else:
        weight_s = weight_of(outer_ptr, 1, OUTER)
        dweight = tl.zeros([BS], tl.float32)
        for start_s in range(0, size, BS):
            j = start_s + tl.arange(0, BS)
            in_s = j < size
            at_s = n * size + j
            d = summed(ds_ptr, n * parts_s * size + j, size, parts_s, in_s)
            if GIVEN_S:
                d += tl.load(gs_ptr + at_s, mask=in_s, other=0.0)
            if EQUATION:
                s = tl.load(s_ptr + at_s, mask=in_s, other=0.0)
                d *= (1 - s) * s
            z = tl.load(z_ptr + at_s, mask=in_s, other=0.0)
            dweight += d * z
            tl.store(dz_ptr + at_s, d * weight_s * ((1 - z) * z), mask=in_s)
        tl.store(sums_ptr + 1, tl.sum(dweight, 0))
        weighted_maps(spatial_ptr, beta_ptr, maps_ptr, n, size, P, BETA, SIDES, BS)


@triton.jit(do_not_specialize=['samples', 'size', 'stretch', 'step'])
def cat_maps_grad_kernel(
    dmaps_ptr,
    spatial_ptr,
    beta_ptr,
    ent_ptr,
    dspatial_ptr,
    sums_ptr,
    samples,
    size,
    stretch,
    step,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    ENT: tl.constexpr,
    BETA: tl.constexpr,
    SIDES: tl.constexpr,
    B: tl.constexpr,
):
    """The gradients of the positions' statistics (P, samples, H W), and each sample's of beta,
    every `step`. One program a sample."""
    n = tl.program_id(0).to(tl.int64)
    P: tl.constexpr = AVG + MAX + ENT
    plane = samples.to(tl.int64) * size
    for p in tl.static_range(P):
        weight = weight_of(beta_ptr, p, BETA)
        dbeta = tl.zeros([B], tl.float32)
        # The map has the average with its sign turned.
        sign = -1.0 if AVG and p == 0 else 1.0
        for start in range(0, size, B):
            i = start + tl.arange(0, B)
            mask = i < size
            of = n * P + p if SIDES else n
            g = tl.load(dmaps_ptr + of * size + i, mask=mask, other=0.0)
            dbeta += g * tl.load(spatial_ptr + (n * P + p) * size + i, mask=mask, other=0.0)
            to = dspatial_ptr + p * plane + n * size + i
            tl.store(to, g * (weight * sign), mask=mask)
        tl.store(sums_ptr + n * step + p, tl.sum(dbeta, 0))
    if ENT:
        tl.debug_barrier()
        last_ptr = dspatial_ptr + (P - 1) * plane
        store_min_max_grad(ent_ptr, last_ptr, last_ptr, n * size, size, stretch, B)


def cat_backward(
    dy: Tensor,
    gc: Tensor | None,
    gs: Tensor | None,
    x: Tensor,
    taps: Tensor,
    w1: Tensor,
    w2: Tensor,
    kernel: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    outer: Tensor | None,
    a: Tensor | None,
    c: Tensor,
    s: Tensor,
    saved: Sequence[Any],
    pools: Sequence[bool],
    low: float,
    high: float,
    equation: bool,
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    if not is_whole(w1, taps, pools):
        return NotImplemented
    x, dy = dense_pair(x, dy, last)
    inner, z, channel, spatial, kept, c_ent, s_ent, *pooled = saved
    (n, count, hidden), (channels, size) = kept.shape, (c.shape[1], s[0].numel())
    sides, stretch = kernel.shape[1] > 1, high - low
    by, slope, da = c, None, []
    if a is None:
        dc, ds = two_sided_grad_parts(x, 'sum', c, s, dy)
    else:
        by, slope = identity.part_of_sum(c, a)
        (du, dv), ds = affine_grad_parts(x, by, slope, s, dy)
        dc, *da = identity.part_of_sum_grad(total(du, 1), total(dv, 1), c, a)
        dc = dc[:, None]
    options = options_of(pools, alpha, beta, outer, equation, sides)
    block = middle_block(channels, size, hidden, count)
    g, mixed, dhidden = floats(x, n, channels), floats(x, n, 1, hidden), torch.empty_like(kept)
    dchannel, dspatial = floats(x, count, n, channels), floats(x, count, *s.shape)
    dz, maps = torch.empty_like(z), floats(x, n, kernel.shape[1], *s.shape[1:])
    sums = floats(x, n, 2 + 2 * count)
    launch(
        cat_factors_grad_kernel, 2 * n, dc, ds, *filled(dc, gc, gs), c, s, inner, z, w1, w2,
        *filled(dc, alpha, beta, outer), spatial, kept, c_ent, g, mixed, dhidden, dchannel, dz,
        maps, sums, n, channels, size, hidden, dc.shape[1], ds.shape[1], stretch, sums.stride(0),
        GIVEN_C=gc is not None, GIVEN_S=gs is not None, **options, **block,
    )  # fmt: skip
    dmaps, parts, _ = conv_grad(maps, kernel, dz)
    kinds = {name: options[name] for name in ('AVG', 'MAX', 'ENT', 'BETA', 'SIDES')}
    launch(
        cat_maps_grad_kernel, n, dmaps, spatial, *filled(dmaps, beta), s_ent, dspatial,
        sums[:, 2 + count :], n, size, stretch, sums.stride(0), **kinds, B=block['BS'], num_warps=8,
    )  # fmt: skip
    (dw1, _, dw2, _), dkernel, vectors = mlp.weights_grad(
        channel, dhidden, mixed, g, w1, None, w2, None, parts, sums
    )
    dx = some(None, x)
    if need_x:
        grads = []
        for stack in (dchannel, dspatial):
            each = iter(stack)
            grads += [next(each) if wanted else None for wanted in pools]
        dx = entropy_dx(x, taps, dy, by, s, tuple(grads), tuple(unless_empty(pooled)), v=slope)
    douter, dalpha, dbeta = vectors.split((2, count, count))
    more = [d for d, t in ((dalpha, alpha), (dbeta, beta), (douter, outer)) if t is not None]
    return [dx, dw1, dw2, dkernel, *more, *da]
