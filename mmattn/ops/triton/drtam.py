"""DRTAM as a whole operator: 8 launches, and 10 in backward, of two attention modules.

Pools, descriptors and scale are those of other operators; here is what lies between, one program a
sample. The three descriptors c (N, C), h (N, H) and w (N, W) are normalised each as of one channel:
by the batch, so that a launch ends where their moments are made, and one in backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..tensors import dense
from .common import floats, launch, pow2
from .planes import convolve, pool_strips
from .products import products, relu
from .scale import rank1_scale
from .strip import strip_pool_parts

RULES = 'by_batch_c', 'by_batch_h', 'by_batch_w', 'eps_c', 'eps_h', 'eps_w'


@triton.jit
def _norm(
    parts_ptr,
    which: tl.constexpr,
    samples,
    length,
    by_batch,
    eps,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    kept_ptr,
    batch_ptr,
    B: tl.constexpr,
):
    """Mean, scale and bias of a descriptor by the batch's moments, from those of samples, or by
    running ones. Kept: mean and 1 / deviation; the batch's own go to `batch`."""
    mean = 0.0
    var = 0.0
    if by_batch > 0:
        sums = tl.zeros([B], tl.float32)
        for start in range(0, samples, B):
            p = start + tl.arange(0, B)
            at = parts_ptr + 6 * p + 2 * which
            sums += tl.load(at, mask=p < samples, other=0.0)
        mean = tl.sum(sums, 0) / samples
        squares = tl.zeros([B], tl.float32)
        for start in range(0, samples, B):
            p = start + tl.arange(0, B)
            at = parts_ptr + 6 * p + 2 * which
            away = tl.load(at, mask=p < samples, other=0.0) - mean
            squares += tl.load(at + 1, mask=p < samples, other=0.0)
            squares += tl.where(p < samples, length * away * away, 0.0)
        count = samples.to(tl.float32) * length
        var = tl.sum(squares, 0) / count
        if tl.program_id(0) == 0:
            tl.store(batch_ptr + 2 * which, mean)
            unbiased = tl.sum(squares, 0) / tl.maximum(count - 1, 1.0)
            tl.store(batch_ptr + 2 * which + 1, unbiased)
    else:
        mean = tl.load(mean_ptr)
        var = tl.load(var_ptr)
        if tl.program_id(0) == 0:
            tl.store(batch_ptr + 2 * which, 0.0)
            tl.store(batch_ptr + 2 * which + 1, 0.0)
    scale = 1 / tl.sqrt(var + eps)
    if tl.program_id(0) == 0:
        tl.store(kept_ptr + 2 * which, mean)
        tl.store(kept_ptr + 2 * which + 1, scale)
    return mean, scale * tl.load(weight_ptr), tl.load(bias_ptr)


@triton.jit
def _sigmoid_of(v_ptr, to_ptr, n, length, mean, scale, bias, B: tl.constexpr):
    for start in range(0, length, B):
        i = start + tl.arange(0, B)
        v = tl.load(v_ptr + n * length + i, mask=i < length, other=0.0)
        v = 1 / (1 + tl.exp(-((v - mean) * scale + bias)))
        tl.store(to_ptr + n * length + i, v, mask=i < length)


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width', 'hidden', *RULES])
def rank1_factors_kernel(
    c_ptr,
    h_ptr,
    w_ptr,
    parts_ptr,
    weight_c,
    weight_h,
    weight_w,
    bias_c,
    bias_h,
    bias_w,
    mean_c,
    var_c,
    mean_h,
    var_h,
    mean_w,
    var_w,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    kept_ptr,
    batch_ptr,
    v_ptr,
    hidden_ptr,
    oc_ptr,
    oh_ptr,
    ow_ptr,
    samples,
    channels,
    height,
    width,
    hidden,
    by_batch_c,
    by_batch_h,
    by_batch_w,
    eps_c,
    eps_h,
    eps_w,
    BN: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    """The factors of an attention module, of its descriptors and the samples' moments (samples, 3,
    2): h and w normalised, through a sigmoid; c normalised (v), through the MLP and a sigmoid."""
    n = tl.program_id(0).to(tl.int64)
    mean, scale, bias = _norm(
        parts_ptr, 1, samples, height, by_batch_h, eps_h, mean_h, var_h, weight_h, bias_h,
        kept_ptr, batch_ptr, BN,
    )  # fmt: skip
    _sigmoid_of(h_ptr, oh_ptr, n, height, mean, scale, bias, BL)
    mean, scale, bias = _norm(
        parts_ptr, 2, samples, width, by_batch_w, eps_w, mean_w, var_w, weight_w, bias_w,
        kept_ptr, batch_ptr, BN,
    )  # fmt: skip
    _sigmoid_of(w_ptr, ow_ptr, n, width, mean, scale, bias, BL)
    mean, scale, bias = _norm(
        parts_ptr, 0, samples, channels, by_batch_c, eps_c, mean_c, var_c, weight_c, bias_c,
        kept_ptr, batch_ptr, BN,
    )  # fmt: skip
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        c = tl.load(c_ptr + n * channels + i, mask=i < channels, other=0.0)
        tl.store(v_ptr + n * channels + i, (c - mean) * scale + bias, mask=i < channels)
    tl.debug_barrier()
    for start in range(0, hidden, BK):
        k = start + tl.arange(0, BK)
        u = tl.sum(
            products(w1_ptr, v_ptr + n * channels, k, hidden, channels, 1, False, 1, BK, BC), 0
        )
        u = relu(u + tl.load(b1_ptr + k, mask=k < hidden, other=0.0))
        tl.store(hidden_ptr + n * hidden + k, u, mask=k < hidden)
    tl.debug_barrier()
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        u = tl.sum(
            products(w2_ptr, hidden_ptr + n * hidden, i, channels, hidden, 1, False, 1, BC, BK), 0
        )
        u += tl.load(b2_ptr + i, mask=i < channels, other=0.0)
        tl.store(oc_ptr + n * channels + i, 1 / (1 + tl.exp(-u)), mask=i < channels)


def middle_block(c: int, h: int, w: int, hidden: int) -> dict[str, int]:
    return dict(BC=pow2(c, 256), BK=pow2(hidden, 16), BL=pow2(max(h, w), 256), num_warps=8)


def modules_of(params: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Of each module the weights of its convolutions, of its norms, and the norms' biases."""
    params = [p.contiguous() for p in params[4:]]
    return [tuple(params[i + k : i + k + 3] for k in (0, 3, 6)) for i in range(0, len(params), 9)]


def in_part(factors: Sequence[Tensor], a: Tensor | None) -> Sequence[Tensor]:
    """The factors of one map or two, and for a share a those of two, and a of each channel."""
    if a is None:
        return factors
    c, h, w = factors[:3]
    second = factors[3:] or [torch.zeros_like(c), h, w]
    return [c, h, w, *second, identity.per_channel(a, c)]


def drtam(
    x: Tensor,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    by_batch: Sequence[bool],
    eps: Sequence[float],
    chunks: Sequence[int],
    a: Tensor | None,
) -> tuple[Any, ...]:
    x = dense(x)
    n, c, height, width = x.shape
    mlp, modules = [p.contiguous() for p in params[:4]], modules_of(params)
    hidden = mlp[0].shape[0]
    running = running or [*params[-6:]] * len(modules)  # that are not read
    parts = strip_pool_parts(x, True)
    merged = all(len(part) == 1 for part in parts)
    planes = [part[0] if merged else torch.empty_like(part[0]) for part in parts]
    moments = floats(x, len(eps), 2)
    factors, saved = [], []
    for i, (convs, weights, biases) in enumerate(modules):
        mine = slice(3 * i, 3 * i + 3)
        halves, pooled = pool_strips(
            planes, convs[0], chunks, factors[0] if factors else None,
            None if merged or i else parts,
        )  # fmt: skip
        of_samples, kept = floats(x, n, 3, 2), floats(x, 3, 2)
        vectors = convolve(planes, halves, pooled[:2], convs[1:], of_samples)
        v, inner, out = floats(x, n, c), floats(x, n, hidden), tuple(map(torch.empty_like, vectors))
        launch(
            rank1_factors_kernel, n, *vectors, of_samples, *weights, *biases,
            *running[6 * i : 6 * i + 6], *mlp, kept, moments[mine], v, inner, *out, n, c, height,
            width, hidden, *map(float, by_batch[mine]), *eps[mine], BN=pow2(n, 256),
            **middle_block(c, height, width, hidden),
        )  # fmt: skip
        factors.append(out)
        saved += [*vectors, *pooled, *out, kept, v, inner]
    y = rank1_scale(x, *in_part([f for out in factors for f in out], a))
    return y, moments, [*planes, *saved]
