"""SE and ECA as whole operators: pool, layers, scale in 3 launches, and 4 in backward."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .. import identity
from ..tensors import dense, dense_pair, flat, some
from . import mlp
from .common import channels_last, floats, launch, pow2, total
from .pool import pool_parts
from .pool_grad import channel_dx
from .products import summed
from .scale import channel_scale
from .scale_grad import channel_grad_parts


def _grad_parts(x, c, a, dy):
    """Parts of c's gradient (N, parts, C), and that of a as a list."""
    dc = channel_grad_parts(x, c, dy)
    if a is None:
        return dc, []
    dc, da = identity.part_grad(total(dc, 1), c, a)
    return dc[:, None], [da]


def se(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, a: Tensor | None
) -> tuple[Any, ...]:
    if not mlp.fits(w1):
        return NotImplemented
    x = dense(x)
    avgs, _, _ = pool_parts(x, None, channels_last(x), False)
    c, v, _, hidden = mlp.factors(avgs, None, None, *map(flat, (w1, b1, w2, b2)))
    return channel_scale(x, identity.part(c, a)), c, v.view_as(c), hidden


def se_backward(
    dy: Tensor,
    gc: Tensor | None,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    a: Tensor | None,
    c: Tensor,
    avg: Tensor,
    hidden: Tensor,
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    if not mlp.fits(w1):
        return NotImplemented
    x, dy = dense_pair(x, dy, last)
    w1, w2 = flat(w1), flat(w2)
    dc, da = _grad_parts(x, c, a, dy)
    g, inner, dv = mlp.factors_grad(dc, None, flat(gc), c, w1, w2, hidden)
    grads, *_ = mlp.weights_grad(avg, inner, hidden, g, w1, b1, w2, b2)
    dx = channel_dx(dy, identity.part(c, a), dv, None, None) if need_x else some(None, x)
    return [dx, *(t for t in grads if t is not None), *da]


@triton.jit(do_not_specialize=['channels', 'splits', 'taps'])
def eca_kernel(
    avgs_ptr, kernel_ptr, avg_ptr, c_ptr, channels, splits, taps, B: tl.constexpr
):  # fmt: skip
    """avg (samples, C) from its parts, and c = sigmoid(kernel * avg)."""
    n = tl.program_id(0).to(tl.int64)
    avg_ptr += n * channels
    for start in range(0, channels, B):
        i = start + tl.arange(0, B)
        mask = i < channels
        first = n * splits * channels + i
        tl.store(avg_ptr + i, summed(avgs_ptr, first, channels, splits, mask), mask=mask)
    tl.debug_barrier()
    for start in range(0, channels, B):
        i = start + tl.arange(0, B)
        u = tl.zeros([B], tl.float32)
        for t in range(0, taps):
            j = i + (t - taps // 2)
            avg = tl.load(avg_ptr + j, mask=(j >= 0) & (j < channels), other=0.0)
            u += tl.load(kernel_ptr + t) * avg
        tl.store(c_ptr + n * channels + i, 1 / (1 + tl.exp(-u)), mask=i < channels)


@triton.jit(do_not_specialize=['channels', 'parts', 'taps'])
def eca_grad_kernel(
    dc_ptr,
    gc_ptr,
    c_ptr,
    avg_ptr,
    kernel_ptr,
    g_ptr,
    gavg_ptr,
    dkernel_ptr,
    channels,
    parts,
    taps,
    GIVEN: tl.constexpr,
    B: tl.constexpr,
):
    """The gradients of avg, and each sample's of the kernel, (samples, taps)."""
    n = tl.program_id(0).to(tl.int64)
    at = n * channels
    g_ptr += at
    for start in range(0, channels, B):
        i = start + tl.arange(0, B)
        mask = i < channels
        g = summed(dc_ptr, parts * at + i, channels, parts, mask)
        if GIVEN:
            g += tl.load(gc_ptr + at + i, mask=mask, other=0.0)
        c = tl.load(c_ptr + at + i, mask=mask, other=0.0)
        tl.store(g_ptr + i, g * ((1 - c) * c), mask=mask)
    tl.debug_barrier()
    for start in range(0, channels, B):
        i = start + tl.arange(0, B)
        u = tl.zeros([B], tl.float32)
        for t in range(0, taps):
            j = i - (t - taps // 2)
            g = tl.load(g_ptr + j, mask=(j >= 0) & (j < channels), other=0.0)
            u += tl.load(kernel_ptr + t) * g
        tl.store(gavg_ptr + at + i, u, mask=i < channels)
    for t in range(0, taps):
        sums = tl.zeros([B], tl.float32)
        for start in range(0, channels, B):
            i = start + tl.arange(0, B)
            j = i + (t - taps // 2)
            avg = tl.load(avg_ptr + at + j, mask=(j >= 0) & (j < channels), other=0.0)
            sums += tl.load(g_ptr + i, mask=i < channels, other=0.0) * avg
        tl.store(dkernel_ptr + n * taps + t, tl.sum(sums, 0))


def eca(x: Tensor, kernel: Tensor, a: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    x, kernel = dense(x), flat(kernel)
    avgs, _, _ = pool_parts(x, None, channels_last(x), False)
    n, splits, channels = avgs.shape
    avg, c = floats(x, n, channels), floats(x, n, channels)
    launch(
        eca_kernel, n, avgs, kernel, avg, c, channels, splits, kernel.numel(),
        B=pow2(channels, 1024),
    )  # fmt: skip
    return channel_scale(x, identity.part(c, a)), c, avg


def eca_backward(
    dy: Tensor,
    gc: Tensor | None,
    x: Tensor,
    kernel: Tensor,
    a: Tensor | None,
    c: Tensor,
    avg: Tensor,
    last: bool,
    need_x: bool,
) -> list[Tensor]:
    (x, dy), kernel = dense_pair(x, dy, last), flat(kernel)
    (dc, da), gc = _grad_parts(x, c, a, dy), flat(gc)
    n, channels = c.shape
    g, gavg = floats(x, n, channels), floats(x, n, channels)
    dkernel = floats(x, n, *kernel.shape)
    launch(
        eca_grad_kernel,
        n,
        dc,
        dc if gc is None else gc,
        c,
        avg,
        kernel,
        g,
        gavg,
        dkernel,
        channels,
        dc.shape[1],
        kernel.numel(),
        GIVEN=gc is not None,
        B=pow2(channels, 1024),
    )
    dx = channel_dx(dy, identity.part(c, a), gavg, None, None) if need_x else some(None, x)
    return [dx, dkernel.sum(0), *da]
