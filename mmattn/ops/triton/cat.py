"""CAT as a whole operator: 5 launches, and 6 in backward.

Two passes read the map. One program a sample and axis (channels, positions) then makes statistics
of their parts, normalises the entropies, and goes through the MLP. The convolution of the maps
needs neighbours, and so a launch of its own, each way.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..pool import saved_like
from ..tensors import dense, some
from . import mlp
from .common import channels_last, filled, floats, ints, launch, nan_max, nan_min, pow2
from .conv import conv
from .maxima import FILTERS, maxima_parts
from .moments import merged_moments, moments_parts
from .norm import EPS
from .pool import first_of_parts
from .products import products, relu
from .scale import affine_scale, sum_scale


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
def weight_of(ptr, p, GIVEN: tl.constexpr):
    return tl.load(ptr + p) if GIVEN else 1.0


@triton.jit
def weighted_maps(
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
            v *= weight_of(beta_ptr, p, BETA)
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
            weight = weight_of(outer_ptr, 0, OUTER)
            c = 1 / (1 + tl.exp(-a * weight)) if EQUATION else weight / (1 + tl.exp(-a))
            tl.store(c_ptr + n * channels + i, c, mask=mask)
    else:
        _statistics(
            moments_s_ptr, tops_s_ptr, args_s_ptr, spatial_ptr, at_s_ptr, m_s_ptr, l_s_ptr, q_s_ptr,
            ent_s_ptr, n, samples, size, parts_s, max_parts_s, mean_s, low, stretch, -1, AVG, MAX,
            ENT, BS,
        )  # fmt: skip
        weighted_maps(spatial_ptr, beta_ptr, maps_ptr, n, size, P, BETA, SIDES, BS)


def is_whole(w1: Tensor, taps: Tensor, pools: Sequence[bool]) -> bool:
    return mlp.fits(w1) and (taps.numel() in FILTERS or not pools[1])


def options_of(
    pools: Sequence[bool],
    alpha: Tensor | None,
    beta: Tensor | None,
    outer: Tensor | None,
    equation: bool,
    side_by_side: bool,
) -> dict[str, Any]:
    avg, peak, ent = pools
    return dict(
        AVG=int(avg), MAX=int(peak), ENT=int(ent), ALPHA=alpha is not None, BETA=beta is not None,
        OUTER=outer is not None, EQUATION=equation, SIDES=side_by_side,
    )  # fmt: skip


def middle_block(c: int, size: int, hidden: int, count: int) -> dict[str, int]:
    return dict(
        BP=pow2(count, 4), BC=pow2(c, 128), BK=pow2(hidden, 16), BS=pow2(size, 1024), num_warps=8
    )


def cat(
    x: Tensor,
    taps: Tensor,
    w1: Tensor,
    w2: Tensor,
    kernel: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    outer: Tensor | None,
    pools: Sequence[bool],
    low: float,
    high: float,
    equation: bool,
    a: Tensor | None,
) -> tuple[Any, ...]:
    if not is_whole(w1, taps, pools):
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
        cat_factors_kernel, 2 * n, *moments, *maxima, w1, w2, *filled(x, alpha, beta, outer),
        channel, spatial, *saved[:4], ents[0], *saved[4:], ents[1], kept, inner, factor, maps, n, c,
        size, hidden, *parts, *max_parts, 1 / size, 1 / c, low, high - low,
        **options_of(pools, alpha, beta, outer, equation, sides),
        **middle_block(c, size, hidden, count),
    )  # fmt: skip
    weight = None if outer is None else outer[1:]
    z, s = conv(maps, kernel, 'equation' if equation else 'algorithm', weight=weight)
    by = (factor,) if a is None else identity.part_of_sum(factor, a)
    y = (sum_scale if a is None else affine_scale)(x, *by, s)
    return y, factor, s, [inner, z, channel, spatial, kept, *ents, *saved]
