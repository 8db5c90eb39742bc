"""The layers of SE and CBAM between pools and factors: one program a sample, each way.

    hidden[p] = relu(W1 v[p] + b1),  c = sigmoid(sum over p of (W2 hidden[p] + b2))

v holds the means of the channels and, with P = 2, their maxima. Gradients of the weights are sums
over samples, which a launch of its own makes: two runs give the same bits.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import cdiv, filled, floats, ints, launch, pow2
from .pool import first_of_parts
from .products import outer_sums, products, relu, store_row_sums, summed

# The largest W1 that every program may read: 1 MB, of 2048 channels and 128 hidden values. Beyond,
# PyTorch's products of matrices are quicker than their launches cost.
LARGEST = 2**18


@triton.jit(do_not_specialize=['channels', 'hidden', 'splits'])
def mlp_kernel(
    avgs_ptr,
    tops_ptr,
    args_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    v_ptr,
    at_ptr,
    hidden_ptr,
    c_ptr,
    channels,
    hidden,
    splits,
    P: tl.constexpr,
    BIAS1: tl.constexpr,
    BIAS2: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """From the parts of means and maxima (samples, splits, C): v (samples, P, C), the maxima's
    places, hidden (samples, P, K), c (samples, C)."""
    n = tl.program_id(0).to(tl.int64)
    v_ptr += n * P * channels
    hidden_ptr += n * P * hidden
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        mask = i < channels
        first = n * splits * channels + i
        tl.store(v_ptr + i, summed(avgs_ptr, first, channels, splits, mask), mask=mask)
        if P == 2:
            best, place = first_of_parts(tops_ptr, args_ptr, first, channels, splits, mask)
            tl.store(v_ptr + channels + i, best, mask=mask)
            tl.store(at_ptr + n * channels + i, place, mask=mask)
    tl.debug_barrier()
    for start in range(0, hidden, BK):
        i = start + tl.arange(0, BK)
        mask = i < hidden
        u = products(w1_ptr, v_ptr, i, hidden, channels, P, False, P, BK, BC)
        if BIAS1:
            u += tl.load(b1_ptr + i, mask=mask, other=0.0)[None, :]
        at = tl.arange(0, P)[:, None] * hidden + i[None, :]
        tl.store(hidden_ptr + at, relu(u), mask=mask[None, :])
    tl.debug_barrier()
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        mask = i < channels
        u = tl.sum(products(w2_ptr, hidden_ptr, i, channels, hidden, P, False, P, BC, BK), 0)
        if BIAS2:
            u += P * tl.load(b2_ptr + i, mask=mask, other=0.0)
        tl.store(c_ptr + n * channels + i, 1 / (1 + tl.exp(-u)), mask=mask)


@triton.jit(do_not_specialize=['channels', 'hidden', 'parts', 'more_parts'])
def mlp_grad_kernel(
    dc_ptr,
    more_ptr,
    gc_ptr,
    c_ptr,
    w1_ptr,
    w2_ptr,
    hidden_ptr,
    g_ptr,
    inner_ptr,
    dv_ptr,
    channels,
    hidden,
    parts,
    more_parts,
    P: tl.constexpr,
    MORE: tl.constexpr,
    GIVEN: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """From the parts of c's gradient (samples, parts, C), of one sum or two (MORE), and c's own
    (GIVEN): g, of what the sigmoid took; inner (samples, P, K), of what relu took; dv (P, samples,
    C)."""
    n = tl.program_id(0).to(tl.int64)
    g_ptr += n * channels
    inner_ptr += n * P * hidden
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        mask = i < channels
        g = summed(dc_ptr, n * parts * channels + i, channels, parts, mask)
        if MORE:
            g += summed(more_ptr, n * more_parts * channels + i, channels, more_parts, mask)
        if GIVEN:
            g += tl.load(gc_ptr + n * channels + i, mask=mask, other=0.0)
        c = tl.load(c_ptr + n * channels + i, mask=mask, other=0.0)
        tl.store(g_ptr + i, g * ((1 - c) * c), mask=mask)
    tl.debug_barrier()
    for start in range(0, hidden, BK):
        i = start + tl.arange(0, BK)
        at = tl.arange(0, P)[:, None] * hidden + i[None, :]
        mask = (i < hidden)[None, :]
        u = products(w2_ptr, g_ptr, i, hidden, channels, 1, True, 1, BK, BC)
        h = tl.load(hidden_ptr + n * P * hidden + at, mask=mask, other=0.0)
        tl.store(inner_ptr + at, tl.where(h <= 0, 0.0, u), mask=mask)
    tl.debug_barrier()
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        at = (tl.arange(0, P)[:, None] * tl.num_programs(0) + n) * channels + i[None, :]
        u = products(w1_ptr, inner_ptr, i, channels, hidden, P, True, P, BC, BK)
        tl.store(dv_ptr + at, u, mask=(i < channels)[None, :])


@triton.jit(do_not_specialize=['samples', 'channels', 'hidden', 'other_rows', 'others', 'mores'])
def mlp_weights_kernel(
    v_ptr,
    inner_ptr,
    hidden_ptr,
    g_ptr,
    other_ptr,
    more_ptr,
    dw1_ptr,
    db1_ptr,
    dw2_ptr,
    db2_ptr,
    dother_ptr,
    dmore_ptr,
    samples,
    channels,
    hidden,
    other_rows,
    others,
    mores,
    P: tl.constexpr,
    H: tl.constexpr,
    BIAS1: tl.constexpr,
    BIAS2: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BR: tl.constexpr,
):
    """The gradients of the weights, a block (BI hidden values, BJ channels) a program; further
    programs sum columns of the parts of other gradients, (other_rows, others) and (samples, mores).
    H: how many hidden vectors of a sample the second layer takes the sum of."""
    j_blocks = tl.cdiv(channels, BJ)
    blocks = tl.cdiv(hidden, BI) * j_blocks
    pid = tl.program_id(0)
    if pid < blocks:
        i = pid // j_blocks * BI + tl.arange(0, BI)
        j = pid % j_blocks * BJ + tl.arange(0, BJ)
        in_i = i < hidden
        in_j = j < channels
        zero = tl.zeros([BI, BJ], tl.float32)
        d = outer_sums(
            zero, inner_ptr, hidden, v_ptr, channels, i, j, hidden, channels, P * samples, BR
        )
        mask = in_i[:, None] & in_j[None, :]
        tl.store(dw1_ptr + i[:, None] * channels + j[None, :], d, mask=mask)
        d = zero
        for p in tl.static_range(H):
            d = outer_sums(
                d, hidden_ptr + p * hidden, H * hidden, g_ptr, channels, i, j, hidden, channels,
                samples, BR,
            )  # fmt: skip
        tl.store(dw2_ptr + j[None, :] * hidden + i[:, None], d, mask=mask)
        if BIAS1:  # noqa: SIM102 - a constant, then a condition at run time
            if pid % j_blocks == 0:
                store_row_sums(db1_ptr, inner_ptr, hidden, i, hidden, P * samples, 1.0, BI, BR)
        if BIAS2:  # noqa: SIM102
            if pid < j_blocks:
                store_row_sums(db2_ptr, g_ptr, channels, j, channels, samples, P, BJ, BR)
    else:
        pid -= blocks
        first = tl.cdiv(others, BI)
        if pid < first:
            k = pid * BI + tl.arange(0, BI)
            store_row_sums(dother_ptr, other_ptr, others, k, others, other_rows, 1.0, BI, 8 * BR)
        else:
            m = (pid - first) * BI + tl.arange(0, BI)
            store_row_sums(dmore_ptr, more_ptr, mores, m, mores, samples, 1.0, BI, 8 * BR)


def fits(w1: Tensor) -> bool:
    """Whether one program a sample does for an MLP of these weights (K, C)."""
    return w1.numel() <= LARGEST


def _block(channels, hidden):
    return dict(BC=pow2(channels, 256), BK=pow2(hidden, 16), num_warps=8)


def factors(
    avgs: Tensor,
    tops: Tensor | None,
    args: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """c, and what backward needs: v (N, P, C), where the maxima are (or None), hidden (N, P, K).

    avgs, tops, args: the parts (N, splits, C) of `pool_parts`; tops and args None with P = 1.
    """
    n, splits, channels = avgs.shape
    hidden, p = w1.shape[0], 1 if tops is None else 2
    v, c = floats(avgs, n, p, channels), floats(avgs, n, channels)
    at = None if tops is None else ints(avgs, n, channels)
    kept = floats(avgs, n, p, hidden)
    given = (avgs, tops, args, w1, b1, w2, b2, v, at, kept, c)
    launch(
        mlp_kernel,
        n,
        *filled(avgs, *given),
        channels,
        hidden,
        splits,
        P=p,
        BIAS1=b1 is not None,
        BIAS2=b2 is not None,
        **_block(channels, hidden),
    )
    return c, v, at, kept


def factors_grad(
    dc: Tensor,
    more: Tensor | None,
    gc: Tensor | None,
    c: Tensor,
    w1: Tensor,
    w2: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """g and inner, of which `weights_grad` is made, and dv (P, N, C); see `mlp_grad_kernel`."""
    n, p, hidden = kept.shape
    channels = c.shape[1]
    g, inner, dv = floats(c, n, channels), floats(c, n, p, hidden), floats(c, p, n, channels)
    given = (dc, more, gc, c, w1, w2, kept, g, inner, dv)
    launch(
        mlp_grad_kernel,
        n,
        *filled(dc, *given),
        channels,
        hidden,
        dc.shape[1],
        0 if more is None else more.shape[1],
        P=p,
        MORE=more is not None,
        GIVEN=gc is not None,
        **_block(channels, hidden),
    )
    return g, inner, dv


def weights_grad(
    v: Tensor,
    inner: Tensor,
    kept: Tensor,
    g: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    other: Tensor | None = None,
    more: Tensor | None = None,
) -> tuple[Any, ...]:
    """The gradients of w1, b1, w2, b2, None for what there is not, and the sums of the rows of
    `other` and of `more`, the parts of other gradients, (rows, ...) and (N, ...).

    v (N, P, C), inner (N, P, K); kept (N, P, K), or (N, 1, K) if it is summed up already."""
    n, p, hidden = inner.shape
    channels = g.shape[1]
    found = [None if t is None else floats(g, *t.shape) for t in (w1, b1, w2, b2)]
    sums = [None if t is None else floats(g, *t.shape[1:]) for t in (other, more)]
    columns = [0 if t is None else t.numel() for t in sums]
    # Products of matrices take blocks of 16 and more.
    block = dict(BI=max(16, pow2(hidden, 16)), BJ=max(16, pow2(channels, 64)))
    given = (v, inner, kept, g, other, more, *found, *sums)
    launch(
        mlp_weights_kernel,
        cdiv(hidden, block['BI']) * cdiv(channels, block['BJ'])
        + sum(cdiv(count, block['BI']) for count in columns),
        *filled(v, *given),
        n,
        channels,
        hidden,
        1 if other is None else other.shape[0],
        *columns,
        P=p,
        H=kept.shape[1],
        BIAS1=b1 is not None,
        BIAS2=b2 is not None,
        BR=16,
        **block,
    )
    return found, *sums
