"""CAT's normalised entropies: one program a sample, which is a vector or a map."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launch, nan_max, nan_min, pow2

EPS = tl.constexpr(64 * 2**-23)


@triton.jit
def spread_of(v_ptr, at, length, B: tl.constexpr):
    """Smallest and largest value, and their distance: 1 where rounding alone can make it."""
    low = tl.full([B], float('inf'), tl.float32)
    high = tl.full([B], -float('inf'), tl.float32)
    for start in range(0, length, B):
        i = start + tl.arange(0, B)
        v = tl.load(v_ptr + at + i, mask=i < length, other=0.0)
        low = nan_min(tl.where(i < length, v, float('inf')), low)
        high = nan_max(tl.where(i < length, v, -float('inf')), high)
    least = tl.reduce(low, 0, nan_min)
    most = tl.reduce(high, 0, nan_max)
    spread = most - least
    return least, most, tl.where(spread > EPS, spread, 1.0)


@triton.jit(do_not_specialize=['length', 'low', 'stretch'])
def min_max_kernel(v_ptr, u_ptr, length, low, stretch, B: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * length
    least, _, spread = spread_of(v_ptr, at, length, B)
    for start in range(0, length, B):
        i = start + tl.arange(0, B)
        v = tl.load(v_ptr + at + i, mask=i < length, other=0.0)
        tl.store(u_ptr + at + i, (v - least) * (stretch / spread) + low, mask=i < length)


@triton.jit
def store_min_max_grad(v_ptr, g_ptr, dv_ptr, at, length, stretch, B: tl.constexpr):
    """The gradient of a sample of raw values v, g that of the stretched ones; dv may be g."""
    least, most, spread = spread_of(v_ptr, at, length, B)
    # Of u = (v - least) / spread: du/dleast = (u - 1) / spread, du/dmost = -u / spread. Equal
    # extremes share.
    to_least = tl.zeros([B], tl.float32)
    to_most = tl.zeros([B], tl.float32)
    lowest = tl.zeros([B], tl.float32)
    highest = tl.zeros([B], tl.float32)
    constant = (most - least) <= EPS
    for start in range(0, length, B):
        i = start + tl.arange(0, B)
        in_v = i < length
        v = tl.load(v_ptr + at + i, mask=in_v, other=0.0)
        g = tl.load(g_ptr + at + i, mask=in_v, other=0.0)
        inner = tl.where(constant, 0.0, g * ((v - least) / spread))
        to_least += inner - g
        to_most -= inner
        lowest += tl.where(in_v & (v == least), 1.0, 0.0)
        highest += tl.where(in_v & (v == most), 1.0, 0.0)
    scale = stretch / spread
    least_g = tl.sum(to_least, 0) * scale / tl.maximum(tl.sum(lowest, 0), 1.0)
    most_g = tl.sum(to_most, 0) * scale / tl.maximum(tl.sum(highest, 0), 1.0)
    for start in range(0, length, B):
        i = start + tl.arange(0, B)
        in_v = i < length
        v = tl.load(v_ptr + at + i, mask=in_v, other=0.0)
        dv = tl.load(g_ptr + at + i, mask=in_v, other=0.0) * scale
        dv += tl.where(v == least, least_g, 0.0) + tl.where(v == most, most_g, 0.0)
        tl.store(dv_ptr + at + i, dv, mask=in_v)


@triton.jit(do_not_specialize=['length', 'stretch'])
def min_max_grad_kernel(v_ptr, g_ptr, dv_ptr, length, stretch, B: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * length
    store_min_max_grad(v_ptr, g_ptr, dv_ptr, at, length, stretch, B)


def min_max(v: Tensor, low: float, high: float) -> Tensor:
    u = torch.empty_like(v)
    length = v[0].numel()
    launch(min_max_kernel, v.shape[0], v, u, length, low, high - low, B=pow2(length, 2048))
    return u


def min_max_grad(v: Tensor, low: float, high: float, *, dy: Tensor) -> Tensor:
    dv = torch.empty_like(v)
    length = v[0].numel()
    launch(min_max_grad_kernel, v.shape[0], v, dy, dv, length, high - low, B=pow2(length, 2048))
    return dv
