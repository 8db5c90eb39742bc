"""CAT as a whole operator: 5 launches, and 6 in backward.

Two passes read the map. One program a sample and axis (channels, positions) then makes statistics
of their parts, normalises the entropies, and goes through the MLP. The convolution of the maps
needs neighbours, and so a launch of its own, each way.
"""

import torch
import triton
import triton.language as tl

from .. import identity
from ..pool import saved_like
from ..tensors import dense, some
from . import mlp
from .common import channels_last, floats, ints, launch, nan_max, nan_min, pow2, total
from .conv import conv, conv_grad
from .entropy import entropy_dx
from .maxima import FILTERS, maxima_parts
from .moments import merged_moments, moments_parts
from .norm import EPS, store_min_max_grad
from .pool import first_of_parts
from .products import products, relu, summed
from .scale import affine_grad_parts, affine_scale, sum_scale, two_sided_grad_parts


@triton.jit
def _statistics(
    moments_ptr,
    tops_ptr,
    args_ptr,
    stack_ptr,
    at_ptr,
    m_ptr,
    l_ptr,
    q_ptr,
    ent_ptr,
    n,
    samples,
    length,
    parts,
    max_parts,
    scale,
    low,
    stretch,
    SIGN: tl.constexpr,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    ENT: tl.constexpr,
    B: tl.constexpr,
):
    """Of a sample and an axis: the statistics of their parts side by side, (P, L), the average
    times SIGN, the entropy stretched; and what backward needs of them."""
    P: tl.constexpr = AVG + MAX + ENT
    stack_ptr += n * P * length
    item = samples.to(tl.int64) * parts * length
    least = tl.full([B], float('inf'), tl.float32)
    most = tl.full([B], -float('inf'), tl.float32)
    for start in range(0, length, B):
        i = start + tl.arange(0, B)
        mask = i < length
        to = n * length + i
        if MAX:
            first = n * max_parts * length + i
            top, arg = first_of_parts(tops_ptr, args_ptr, first, length, max_parts, mask)
            tl.store(stack_ptr + AVG * length + i, top, mask=mask)
            tl.store(at_ptr + to, arg, mask=mask)
        if AVG or ENT:
            sums, m, log_s, q = merged_moments(
                moments_ptr, n * parts * length + i, length, item, parts, mask, AVG, ENT, B
            )
            if AVG:
                tl.store(stack_ptr + i, sums * (scale * SIGN), mask=mask)
            if ENT:
                tl.store(m_ptr + to, m, mask=mask)
                tl.store(l_ptr + to, log_s, mask=mask)
                tl.store(q_ptr + to, q, mask=mask)
                tl.store(ent_ptr + to, log_s - q, mask=mask)
                least = nan_min(tl.where(mask, log_s - q, float('inf')), least)
                most = nan_max(tl.where(mask, log_s - q, -float('inf')), most)
    tl.debug_barrier()
    if ENT:
        bottom = tl.reduce(least, 0, nan_min)
        spread = tl.reduce(most, 0, nan_max) - bottom
        slope = stretch / tl.where(spread > EPS, spread, 1.0)
        for start in range(0, length, B):
            i = start + tl.arange(0, B)
            v = tl.load(ent_ptr + n * length + i, mask=i < length, other=0.0)
            to = stack_ptr + (AVG + MAX) * length + i
            tl.store(to, (v - bottom) * slope + low, mask=i < length)
        tl.debug_barrier()


@triton.jit
def _weight(ptr, p, GIVEN: tl.constexpr):
    return tl.load(ptr + p) if GIVEN else 1.0


@triton.jit
def _weighted_maps(
    stack_ptr,
    beta_ptr,
    maps_ptr,
    n,
    size,
    P: tl.constexpr,
    BETA: tl.constexpr,
    SIDES: tl.constexpr,
    B: tl.constexpr,
):
    """What the convolution takes: the sum of beta_p times map p, or with SIDES each of them."""
    for start in range(0, size, B):
        i = start + tl.arange(0, B)
        mask = i < size
        sums = tl.zeros([B], tl.float32)
        for p in tl.static_range(P):
            v = tl.load(stack_ptr + (n * P + p) * size + i, mask=mask, other=0.0)
            v *= _weight(beta_ptr, p, BETA)
            if SIDES:
                tl.store(maps_ptr + (n * P + p) * size + i, v, mask=mask)
            sums += v
        if not SIDES:
            tl.store(maps_ptr + n * size + i, sums, mask=mask)


SIZES = ['samples', 'channels', 'size', 'hidden']


@triton.jit(
    do_not_specialize=[*SIZES, 'parts_c', 'parts_s', 'max_parts_c', 'max_parts_s', 'low', 'stretch']
)
def cat_factors_kernel(
    moments_c_ptr,
    moments_s_ptr,
    tops_c_ptr,
    args_c_ptr,
    tops_s_ptr,
    args_s_ptr,
    w1_ptr,
    w2_ptr,
    alpha_ptr,
    beta_ptr,
    outer_ptr,
    channel_ptr,
    spatial_ptr,
    at_c_ptr,
    m_c_ptr,
    l_c_ptr,
    q_c_ptr,
    ent_c_ptr,
    at_s_ptr,
    m_s_ptr,
    l_s_ptr,
    q_s_ptr,
    ent_s_ptr,
    hidden_ptr,
    inner_ptr,
    c_ptr,
    maps_ptr,
    samples,
    channels,
    size,
    hidden,
    parts_c,
    parts_s,
    max_parts_c,
    max_parts_s,
    mean_c,
    mean_s,
    low,
    stretch,
    AVG: tl.constexpr,
    MAX: tl.constexpr,
    ENT: tl.constexpr,
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
    """Program 2 n: the channels' statistics, and by the MLP (`inner`) c. Program 2 n + 1: the
    positions' statistics, and the maps that are to be convolved."""
    pid = tl.program_id(0)
    n = (pid // 2).to(tl.int64)
    P: tl.constexpr = AVG + MAX + ENT
    if pid % 2 == 0:
        _statistics(
            moments_c_ptr, tops_c_ptr, args_c_ptr, channel_ptr, at_c_ptr, m_c_ptr, l_c_ptr, q_c_ptr,
            ent_c_ptr, n, samples, channels, parts_c, max_parts_c, mean_c, low, stretch, 1, AVG,
            MAX, ENT, BC,
        )  # fmt: skip
        p = tl.arange(0, BP)[:, None]
        mix = tl.zeros([BP, 1], tl.float32) + 1
        if ALPHA:
            mix = tl.load(alpha_ptr + p, mask=p < P, other=0.0)
        hidden_ptr += n * P * hidden
        for start in range(0, hidden, BK):
            k = start + tl.arange(0, BK)
            v_ptr = channel_ptr + n * P * channels
            u = relu(products(w1_ptr, v_ptr, k, hidden, channels, P, False, BP, BK, BC))
            mask = (p < P) & (k < hidden)[None, :]
            tl.store(hidden_ptr + p * hidden + k[None, :], u, mask=mask)
        tl.debug_barrier()
        for start in range(0, channels, BC):
            i = start + tl.arange(0, BC)
            mask = i < channels
            u = products(w2_ptr, hidden_ptr, i, channels, hidden, P, False, BP, BC, BK)
            a = tl.sum(u * mix, 0)
            tl.store(inner_ptr + n * channels + i, a, mask=mask)
            weight = _weight(outer_ptr, 0, OUTER)
            c = 1 / (1 + tl.exp(-a * weight)) if EQUATION else weight / (1 + tl.exp(-a))
            tl.store(c_ptr + n * channels + i, c, mask=mask)
    else:
        _statistics(
            moments_s_ptr, tops_s_ptr, args_s_ptr, spatial_ptr, at_s_ptr, m_s_ptr, l_s_ptr, q_s_ptr,
            ent_s_ptr, n, samples, size, parts_s, max_parts_s, mean_s, low, stretch, -1, AVG, MAX,
            ENT, BS,
        )  # fmt: skip
        _weighted_maps(spatial_ptr, beta_ptr, maps_ptr, n, size, P, BETA, SIDES, BS)


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
        weight = _weight(outer_ptr, 0, OUTER)
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
        weight_s = _weight(outer_ptr, 1, OUTER)
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
        _weighted_maps(spatial_ptr, beta_ptr, maps_ptr, n, size, P, BETA, SIDES, BS)


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
        weight = _weight(beta_ptr, p, BETA)
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


def _whole(w1, taps, pools):
    return mlp.fits(w1) and (taps.numel() in FILTERS or not pools[1])


def _options(pools, alpha, beta, outer, equation, side_by_side):
    avg, peak, ent = pools
    return dict(
        AVG=int(avg), MAX=int(peak), ENT=int(ent), ALPHA=alpha is not None, BETA=beta is not None,
        OUTER=outer is not None, EQUATION=equation, SIDES=side_by_side,
    )  # fmt: skip


def _block(c, size, hidden, count):
    return dict(
        BP=pow2(count, 4), BC=pow2(c, 128), BK=pow2(hidden, 16), BS=pow2(size, 1024), num_warps=8
    )


def _or(x, *tensors):
    return [x if t is None else t for t in tensors]


def cat(x, taps, w1, w2, kernel, alpha, beta, outer, pools, low, high, equation, a):
    if not _whole(w1, taps, pools):
        return NotImplemented
    x = dense(x)
    (n, c, height, width), hidden = x.shape, w1.shape[0]
    size, count, sides = height * width, sum(pools), kernel.shape[1] > 1
    avg, peak, ent = pools
    moments = moments_parts(x, (avg, ent), (avg, ent))
    if channels_last(x):
        moments = moments[::-1]
    maxima = maxima_parts(x, taps, True, True) if peak else (x,) * 4
    parts = [m.shape[2] if avg or ent else 1 for m in moments]
    max_parts = [maxima[i].shape[1] for i in (0, 2)]
    channel, spatial = floats(x, n, count, c), floats(x, n, count, height, width)
    saved = []
    for shape, whole in zip(
        saved_like('entropy_pool', x, True, True, *pools), (ints, *[floats] * 3) * 2, strict=True
    ):
        saved.append(whole(x, *shape.shape))
    ents = [
        floats(x, n, c) if ent else some(None, x),
        torch.empty_like(spatial[:, 0]) if ent else some(None, x),
    ]
    kept, inner, factor = floats(x, n, count, hidden), floats(x, n, c), floats(x, n, c)
    maps = floats(x, n, kernel.shape[1], height, width)
    launch(
        cat_factors_kernel, 2 * n, *moments, *maxima, w1, w2, *_or(x, alpha, beta, outer), channel,
        spatial, *saved[:4], ents[0], *saved[4:], ents[1], kept, inner, factor, maps, n, c, size,
        hidden, *parts, *max_parts, 1 / size, 1 / c, low, high - low,
        **_options(pools, alpha, beta, outer, equation, sides), **_block(c, size, hidden, count),
    )  # fmt: skip
    weight = None if outer is None else outer[1:]
    z, s = conv(maps, kernel, 'equation' if equation else 'algorithm', weight=weight)
    by = (factor,) if a is None else identity.part_of_sum(factor, a)
    y = (sum_scale if a is None else affine_scale)(x, *by, s)
    return y, factor, s, [inner, z, channel, spatial, kept, *ents, *saved]


def cat_backward(
    dy, gc, gs, x, taps, w1, w2, kernel, alpha, beta, outer, a, c, s, saved, pools, low, high,
    equation, last, need_x,
):  # fmt: skip
    if not _whole(w1, taps, pools):
        return NotImplemented
    x = dense(x, last)
    dy = torch.zeros_like(x) if dy is None else dense(dy, last)
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
    options = _options(pools, alpha, beta, outer, equation, sides)
    block = _block(channels, size, hidden, count)
    g, mixed, dhidden = floats(x, n, channels), floats(x, n, 1, hidden), torch.empty_like(kept)
    dchannel, dspatial = floats(x, count, n, channels), floats(x, count, *s.shape)
    dz, maps = torch.empty_like(z), floats(x, n, kernel.shape[1], *s.shape[1:])
    sums = floats(x, n, 2 + 2 * count)
    launch(
        cat_factors_grad_kernel, 2 * n, dc, ds, *_or(dc, gc, gs), c, s, inner, z, w1, w2,
        *_or(dc, alpha, beta, outer), spatial, kept, c_ent, g, mixed, dhidden, dchannel, dz, maps,
        sums, n, channels, size, hidden, dc.shape[1], ds.shape[1], stretch, sums.stride(0),
        GIVEN_C=gc is not None, GIVEN_S=gs is not None, **options, **block,
    )  # fmt: skip
    dmaps, parts, _ = conv_grad(maps, kernel, dz)
    kinds = {name: options[name] for name in ('AVG', 'MAX', 'ENT', 'BETA', 'SIDES')}
    launch(
        cat_maps_grad_kernel, n, dmaps, spatial, *_or(dmaps, beta), s_ent, dspatial,
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
        kept_of_pool = tuple(t if t.numel() else None for t in pooled)
        dx = entropy_dx(x, taps, dy, by, s, tuple(grads), kept_of_pool, v=slope)
    douter, dalpha, dbeta = vectors.split((2, count, count))
    more = [d for d, t in ((dalpha, alpha), (dbeta, beta), (douter, outer)) if t is not None]
    return [dx, dw1, dw2, dkernel, *more, *da]
