"""What lies between a gate's pools and its scale, each way a call.

In operators of PyTorch they are in `mmattn.ops.layers` and `mmattn.ops.cat`, with what they return.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..tensors import acc
from .call import run
from .sizes import like


def channel_factors(
    descriptors: Sequence[Tensor], weights: Sequence[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    first = descriptors[0]
    (n, c), parts, hidden = first.shape, len(descriptors), weights[0].shape[0]
    v, hiddens = acc(first, n, parts, c), acc(first, n, parts, hidden)
    out = torch.empty_like(first)
    run('channel_factors', first, descriptors, *v.shape, hidden, weights, v, hiddens, out)
    return out, v, hiddens


def channel_factors_grad(
    grads: Sequence[Tensor | None], c: Tensor, v: Tensor, hiddens: Tensor, weights: Sequence[Any]
) -> tuple[Any, Any]:
    dv, dweights = like([c] * v.shape[1]), like(weights)
    grads = (*grads, None, None)[:3]
    sizes = *v.shape, weights[0].shape[0]
    run('channel_factors_grad', c, grads, c, v, hiddens, *sizes, weights, dv, dweights)
    return dv, dweights


def spatial_factors(
    descriptors: Sequence[Tensor], kernel: Tensor, norm: Sequence[Any], by_batch: bool, eps: float
) -> tuple[Any, ...]:
    first = descriptors[0]
    (n, h, w), m = first.shape, len(descriptors)
    maps, v, s, moments = acc(first, n, m, h, w), *like((first, first)), acc(first, 2)
    state = like(norm[2:]) or [None, None]
    sizes = *maps.shape, *kernel.shape[2:]
    run(
        'spatial_factors', first, descriptors, *sizes, kernel, norm or (None,) * 4, by_batch, eps,
        maps, v, s, *state, moments,
    )  # fmt: skip
    return s, maps, v, *(state if norm else (v.new_empty(0), v.new_empty(0))), moments


def spatial_factors_grad(
    grads: Sequence[Tensor | None],
    s: Tensor,
    maps: Tensor,
    v: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    by_batch: bool,
    eps: float,
) -> tuple[Any, ...]:
    dmaps, dkernel = like([s] * maps.shape[1]), torch.empty_like(kernel)
    state, dnorm = (None, None), [None, None]
    if weight is not None:
        state, dnorm = (mean, var), like((weight, weight))
    sizes = *maps.shape, *kernel.shape[2:]
    run(
        'spatial_factors_grad', s, grads, s, maps, v, *sizes, kernel, (weight, None), *state,
        by_batch, eps, dmaps, (dkernel, *dnorm),
    )  # fmt: skip
    return dmaps, dkernel, [] if weight is None else dnorm


def cat_factors(
    channel: Sequence[Tensor | None],
    spatial: Sequence[Tensor | None],
    weights: Sequence[Any],
    low: float,
    high: float,
    equation: bool,
) -> tuple[Any, ...]:
    w1, _, kernel, *_ = weights
    given = [t for t in channel if t is not None]
    first, parts = given[0], len(given)
    (n, c), (_, h, w) = first.shape, next(t.shape for t in spatial if t is not None)
    kept = [
        acc(first, *shape)
        for shape in ((n, parts, c), (n, parts, h, w), (n, parts, w1.shape[0]), (n, c), (n, h, w))
    ]
    factors = like(kept[3:])
    sizes = n, c, h, w, parts, w1.shape[0], *kernel.shape[1:]
    run(
        'cat_factors', first, channel, spatial, *sizes, weights, low, high, equation, kept, *factors
    )
    return *factors, kept


def cat_factors_grad(
    grads: Sequence[Tensor | None],
    factors: Sequence[Tensor],
    kept: Sequence[Tensor],
    entropies: Sequence[Tensor | None],
    pools: Sequence[bool],
    weights: Sequence[Any],
    low: float,
    high: float,
    equation: bool,
) -> tuple[Any, ...]:
    (n, c), (_, h, w) = (t.shape for t in factors)
    w1, _, kernel, *_ = weights
    dchannel, dspatial = (like(f if pool else None for pool in pools) for f in factors)
    dweights = like(weights)
    sizes = n, c, h, w, sum(pools), w1.shape[0], *kernel.shape[1:]
    run(
        'cat_factors_grad', factors[0], grads, factors, kept, entropies, *sizes, weights, low, high,
        equation, dchannel, dspatial, dweights,
    )  # fmt: skip
    return dchannel, dspatial, dweights
