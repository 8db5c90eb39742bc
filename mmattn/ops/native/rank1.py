"""DRTAM: its descriptors of three planes, and all of it."""

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..chunks import windows
from ..tensors import acc, ints
from .call import run
from .sizes import meta


@functools.lru_cache
def _cuts(height, width, channels, chunks, channel_chunks):
    """The windows of the three axes of a map, begin and end of one after the other."""
    axes = (height, chunks), (width, chunks), (channels, channel_chunks)
    edges = [edge for axis in axes for window in windows(*axis) for edge in window]
    return (ctypes.c_int64 * len(edges))(*edges)


def _rank1(name, planes, chunks, *groups):
    """Call a kernel on DRTAM's planes; `groups`: tuples of tensors."""
    ch, cw, _ = planes
    (n, c, h), w = ch.shape, cw.shape[2]
    run(name, ch, *planes, n, c, h, w, *chunks, _cuts(h, w, c, *chunks), *groups)


def rank1_pool(
    planes: Sequence[Tensor],
    weights: Sequence[Tensor],
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    ch, cw, _ = planes
    (n, c, h), w, rows = ch.shape, cw.shape[2], sum(chunks) + 1
    out = acc(ch, n, c), acc(ch, n, h), acc(ch, n, w)
    strips = acc(ch, n, rows, h), acc(ch, n, rows, w)
    at = ints(ch, n, h), ints(ch, n, w)
    _rank1('rank1_pool', planes, chunks, weights, taken or (None,) * 3, out, strips, at)
    return out, (*strips, *at)


def rank1_pool_grad(
    planes: Sequence[Tensor],
    weights: Sequence[Tensor],
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None,
    grads: Sequence[Tensor | None],
    saved: Sequence[Any],
) -> tuple[Any, Any, tuple[Tensor, ...] | None]:
    dplanes, dweights, dtaken = (
        tuple(torch.empty_like(t) for t in group) if group else None
        for group in (planes, weights, taken)
    )
    none = (None,) * 3
    _rank1(
        'rank1_pool_grad', planes, chunks, weights, taken or none, grads, saved[:2], saved[2:],
        dplanes, dweights, dtaken or none,
    )  # fmt: skip
    return dplanes, dweights, dtaken


def kept_of_rank1(x: Tensor, params: Sequence[Tensor], chunks: Sequence[int]) -> tuple[Any, Any]:
    """How many floats and integers `rank1_attention` keeps for backward (`lay_out` in C++)."""
    (n, c, h, w), hidden, strips = x.shape, params[0].shape[0], sum(chunks) + 1
    modules = (len(params) - 4) // 9
    planes = n * (c * h + c * w + h * w)
    each = n * (2 * (c + h + w) + strips * (h + w) + c + hidden) + 6
    return ((planes + modules * each,), False), ((modules * n * (h + w),), True)


def _sizes(x, params, chunks):
    """What the kernels of `rank1_attention` take after the maps: sizes and parameters."""
    n, c, h, w, last = meta(x)
    cuts, modules = _cuts(h, w, c, *chunks), (len(params) - 4) // 9
    return n, c, h, w, last, *chunks, cuts, params[0].shape[0], modules, params


@functools.lru_cache
def _rules(*norms):
    """Of norms that normalise by the batch or not, with an eps, what the kernels take."""
    rules = [number for by_batch, eps in norms for number in (1.0 if by_batch else -1.0, eps)]
    return (ctypes.c_double * len(rules))(*rules)


def rank1_attention(
    x: Tensor,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    by_batch: Sequence[bool],
    eps: Sequence[float],
    chunks: Sequence[int],
    a: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    y, moments = torch.empty_like(x), acc(x, len(eps), 2).zero_()
    (floats, _), (places, _) = kept_of_rank1(x, params, chunks)
    kept = [acc(x, *floats), ints(x, *places)]
    rules = _rules(*zip(by_batch, eps, strict=True))
    run('rank1_attention', x, x, y, *_sizes(x, params, chunks), running, moments, rules, a, *kept)
    return y, moments, kept


def rank1_attention_parts(
    x: Tensor, params: Sequence[Tensor], chunks: Sequence[int], saved: Sequence[Any]
) -> tuple[Sequence[Tensor], list[tuple[Any, ...]]]:
    (n, c, h, w), hidden, strips = x.shape, params[0].shape[0], sum(chunks) + 1
    left, used = saved[0], 0

    def take(*shape):
        nonlocal used
        used += math.prod(shape)
        return left[used - math.prod(shape) : used].view(shape)

    planes, stages = (take(n, c, h), take(n, c, w), take(n, h, w)), []
    for _ in range((len(params) - 4) // 9):  # as `lay_out` in C++ does
        pairs = [(take(n, length), take(n, length)) for length in (c, h, w)]
        stages.append(tuple(zip(*pairs, strict=True)))
        take(n * strips * (h + w) + 6 + n * c + n * hidden)
    return planes, stages


def rank1_attention_grad(
    x: Tensor,
    params: Sequence[Tensor],
    by_batch: Sequence[bool],
    eps: Sequence[float],
    chunks: Sequence[int],
    saved: Sequence[Any],
    a: Tensor | None = None,
    *,
    dy: Tensor,
    need_x: bool,
) -> tuple[Any, ...]:
    dx = torch.empty_like(x) if need_x else None
    da = None if a is None else torch.empty_like(a)
    dparams = [torch.empty_like(p) for p in params]
    sizes, rules = _sizes(x, params, chunks), _rules(*zip(by_batch, eps, strict=True))
    run('rank1_attention_grad', x, x, dy, dx, *sizes, rules, a, *saved, dparams, da)
    return (dx, dparams) if a is None else (dx, dparams, da)
