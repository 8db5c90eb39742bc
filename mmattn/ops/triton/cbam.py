"""CBAM as a whole operator: 6 launches, and 7 in backward.

Two pools, of which the second reads what the first gave a factor for, and a norm by the batch each
end a launch: fewer there cannot be but by one program for the whole batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..tensors import dense, dense_pair, flat, some
from . import mlp
from .common import channels_last, floats, launch, pow2, total
from .conv import conv, conv_grad, merged_moments
from .pool import pool_parts, spatial_maps
from .pool_grad import cbam_dx, spatial_pool_grad_parts
from .products import summed
from .scale import affine_scale, product_scale
from .scale_grad import affine_grad_parts, two_sided_grad_parts


@triton.jit(do_not_specialize=['size', 'parts', 'eps'])
def cbam_norm_kernel(
    v_ptr,
    parts_ptr,
    weight_ptr,
    bias_ptr,
    s_ptr,
    mean_ptr,
    var_ptr,
    moments_ptr,
    size,
    parts,
    eps,
    BP: tl.constexpr,
    B: tl.constexpr,
):
    """s = sigmoid(norm(v)) by the moments of parts, mean and var of the batch, and what running
    ones move to. One program a sample."""
    n = tl.program_id(0).to(tl.int64)
    mean, squares, total = merged_moments(parts_ptr, parts, BP)
    var = squares / total
    if tl.program_id(0) == 0:
        tl.store(mean_ptr, mean)
        tl.store(var_ptr, var)
        tl.store(moments_ptr, mean)
        tl.store(moments_ptr + 1, squares / tl.maximum(total - 1, 1.0))
    scale = tl.load(weight_ptr) / tl.sqrt(var + eps)
    bias = tl.load(bias_ptr)
    for start in range(0, size, B):
        i = start + tl.arange(0, B)
        v = tl.load(v_ptr + n * size + i, mask=i < size, other=0.0)
        s = 1 / (1 + tl.exp(-((v - mean) * scale + bias)))
        tl.store(s_ptr + n * size + i, s, mask=i < size)


@triton.jit(do_not_specialize=['size', 'parts', 'eps'])
def cbam_norm_grad_kernel(
    ds_ptr,
    gs_ptr,
    s_ptr,
    v_ptr,
    mean_ptr,
    var_ptr,
    g_ptr,
    sums_ptr,
    size,
    parts,
    eps,
    GIVEN: tl.constexpr,
    NORM: tl.constexpr,
    B: tl.constexpr,
):
    """g, the gradient of what the sigmoid took, from the parts of that of s, (samples, parts, H W);
    and NORM: each sample's sums of g and of g times the unit v. One program a sample."""
    n = tl.program_id(0).to(tl.int64)
    mean = 0.0
    unit = 0.0
    if NORM:
        mean = tl.load(mean_ptr)
        unit = 1 / tl.sqrt(tl.load(var_ptr) + eps)
    levels = tl.zeros([B], tl.float32)
    slopes = tl.zeros([B], tl.float32)
    for start in range(0, size, B):
        i = start + tl.arange(0, B)
        mask = i < size
        g = summed(ds_ptr, n * parts * size + i, size, parts, mask)
        if GIVEN:
            g += tl.load(gs_ptr + n * size + i, mask=mask, other=0.0)
        s = tl.load(s_ptr + n * size + i, mask=mask, other=0.0)
        g *= (1 - s) * s
        tl.store(g_ptr + n * size + i, g, mask=mask)
        if NORM:
            v = tl.load(v_ptr + n * size + i, mask=mask, other=0.0)
            levels += g
            slopes += tl.where(mask, g * ((v - mean) * unit), 0.0)
    if NORM:
        tl.store(sums_ptr + 2 * n, tl.sum(levels, 0))
        tl.store(sums_ptr + 2 * n + 1, tl.sum(slopes, 0))


def _spatial(maps, kernel, norm, by_batch, eps):
    """v, s, and the batch's or the running mean and variance, and the moments."""
    if not norm:
        v, s = conv(maps, kernel, 'sigmoid')
        return v, s, floats(maps, 0), floats(maps, 0), torch.zeros_like(floats(maps, 2))
    weight, bias, *running = norm
    mean, var, moments = floats(maps, 1), floats(maps, 1), floats(maps, 2)
    if not by_batch:
        v, s = conv(maps, kernel, 'norm', (*running, weight, bias, mean, var, moments), eps)
        return v, s, mean, var, moments
    v, parts = conv(maps, kernel, 'moments')
    s = torch.empty_like(v)
    size, programs = v[0].numel(), parts.shape[0]
    launch(
        cbam_norm_kernel, v.shape[0], v, parts, weight, bias, s, mean, var, moments, size, programs,
        eps, BP=pow2(programs, 1024), B=pow2(size, 1024),
    )  # fmt: skip
    return v, s, mean, var, moments


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    kernel: Tensor,
    norm: Sequence[Any],
    by_batch: bool,
    eps: float,
    a: Tensor | None,
) -> tuple[Any, ...]:
    if not mlp.fits(w1):
        return NotImplemented
    x, kernel = dense(x), flat(kernel)
    pools = pool_parts(x, None, channels_last(x), True)
    c, pooled, channel_at, hidden = mlp.factors(*pools, *map(flat, (w1, b1, w2, b2)))
    maps, at = spatial_maps(x, c)
    v, s, mean, var, moments = _spatial(maps, kernel, norm, by_batch, eps)
    saved = [pooled, channel_at, hidden, maps, at, v, mean, var]
    by = (c,) if a is None else identity.part_of_product(c, a)
    y = (product_scale if a is None else affine_scale)(x, *by, s)
    return y, c, s, moments, saved


def cbam_backward(
    dy: Tensor,
    gc: Tensor | None,
    gs: Tensor | None,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    kernel: Tensor,
    a: Tensor | None,
    weight: Sequence[Tensor],
    saved: Sequence[Any],
    by_batch: bool,
    eps: float,
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    if not mlp.fits(w1):
        return NotImplemented
    (x, dy), kernel, gs = dense_pair(x, dy, last), flat(kernel), flat(gs)
    c, s, pooled, channel_at, hidden, maps, at, v, mean, var = saved
    da = []
    if a is None:
        dc, ds = two_sided_grad_parts(x, 'product', c, s, dy)
    else:
        (du, dv), ds = affine_grad_parts(x, *identity.part_of_product(c, a), s, dy)
        dc, *da = identity.part_of_product_grad(total(du, 1), total(dv, 1), c, a)
        dc = dc[:, None]
    g, sums = torch.empty_like(s), floats(s, s.shape[0], 2)
    launch(
        cbam_norm_grad_kernel,
        s.shape[0],
        ds,
        ds if gs is None else gs,
        s,
        v,
        mean,
        var,
        g,
        sums,
        s[0].numel(),
        ds.shape[1],
        eps,
        GIVEN=gs is not None,
        NORM=bool(weight),
        B=pow2(s[0].numel(), 1024),
    )
    norm = (v, sums, mean, var, weight[0], eps, by_batch) if weight else None
    (gm, ga), parts, dnorm = conv_grad(maps, kernel, g, norm, major=True)
    _, more = spatial_pool_grad_parts(x, c, ga, gm, at, need_x=False)
    inner_g, inner, (gavg, gmax) = mlp.factors_grad(
        dc, more, flat(gc), c, *map(flat, (w1, w2)), hidden
    )
    grads, dkernel, _ = mlp.weights_grad(pooled, inner, hidden, inner_g, w1, b1, w2, b2, parts)
    dx = some(None, x)
    if need_x:
        share = None if a is None else identity.per_channel(a, c)
        dx = cbam_dx(dy, c, s, ga, gm, at, gavg, gmax, channel_at, a=share)
    return [dx, *(t for t in grads if t is not None), dkernel, *(dnorm if weight else ()), *da]
