"""Layers between a gate's pools and its scale, forward and backward, within an operator.

Descriptors are small: these are products and sums of PyTorch, without autograd's nodes. What a
backend has as one function of its own takes the place of these.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .tensors import flat

sigmoid_grad = torch.ops.aten.sigmoid_backward


def or_own(written: Callable) -> Callable:
    """A function that is called with a backend first: its own of that name, where it has one."""

    @functools.wraps(written)
    def call(kernels: Any, *args: Any) -> Any:
        own = getattr(kernels, written.__name__, None)
        return written(kernels, *args) if own is None else own(*args)

    return call


def added(grads: Sequence[Tensor | None]) -> Tensor:
    """The sum of gradients, of which the first is there."""
    total, *more = (g for g in grads if g is not None)
    for g in more:
        total = total + g
    return total


@or_own
def channel_factors(
    kernels: Any, descriptors: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """c = sigmoid(sum of the MLP of each descriptor), all (N, C): SE, CBAM.

    `weights`: w1, b1, w2, b2. With c, what its gradient needs: descriptors side by side (N, P, C)
    and hidden values (N, P, K).
    """
    v = torch.stack(tuple(descriptors), 1)
    out, hidden = mlp(v, *weights, None)
    return out.sigmoid_(), v, hidden


@or_own
def channel_factors_grad(
    kernels: Any,
    grads: Sequence[Tensor | None],
    c: Tensor,
    v: Tensor,
    hidden: Tensor,
    weights: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The gradients of the descriptors and of `weights`; `grads`: of c, up to three, added up."""
    dv, dweights, _ = mlp_grad(sigmoid_grad(added(grads), c), v, hidden, *weights, None)
    return [flat(t) for t in dv.unbind(1)], dweights


@or_own
def spatial_factors(
    kernels: Any,
    descriptors: Sequence[Tensor],
    kernel: Tensor,
    norm: Sequence[Tensor],
    by_batch: bool,
    eps: float,
) -> tuple[Tensor, ...]:
    """s = sigmoid(norm(kernel * descriptors)), all (N, H, W): CBAM.

    `norm`: weight, bias, running mean and var, or nothing for none. With s, what its gradient
    needs: descriptors side by side (N, M, H, W), their convolution, the mean and var it is
    normalised by; and the moments (2,) that the running ones move to.
    """
    maps = torch.stack(tuple(descriptors), 1)
    v = kernels.spatial_conv(maps, kernel)
    if not norm:
        return v.sigmoid(), maps, v, v.new_empty(0), v.new_empty(0), v.new_zeros(2)
    weight, bias, mean, var = norm
    row = v.flatten(1)[:, None]
    if by_batch:
        mean, var, moments = batch_moments(row)
    else:
        mean, var, moments = mean.clone(), var.clone(), v.new_zeros(2)
    s = batch_norm(row, mean, var, weight, bias, eps).view_as(v).sigmoid()
    return s, maps, v, mean, var, moments.flatten()


@or_own
def spatial_factors_grad(
    kernels: Any,
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
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The gradients of the descriptors, of the kernel, and of the norm's weight and bias, if any;
    `grads`: of s two, added up, the second or None."""
    ds, norm = sigmoid_grad(added(grads), s), []
    if weight is not None:
        rows = (t.flatten(1)[:, None] for t in (ds, v))
        ds, *norm = batch_norm_grad(*rows, weight, mean, var, by_batch, eps)
        ds = ds.view_as(s)
    dmaps, dkernel = kernels.spatial_conv_grad(maps, kernel, dy=flat(ds))
    return [flat(t) for t in dmaps.unbind(1)], dkernel, norm


def mlp(
    v: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, mix: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sum over p of mix[p] * MLP(v[:, p]), v (N, P, C), without `mix` of all as they are.

    The second layer is linear and takes the sum. Returns it (N, C) and the hidden values (N, P, K).
    """
    hidden = F.linear(v, w1, b1).relu_()
    out = F.linear(_mixed(hidden, mix), w2)
    if b2 is not None:
        out += b2 * (v.shape[1] if mix is None else mix.sum())
    return out, hidden


def _mixed(hidden, mix):
    if hidden.shape[1] == 1 and mix is None:
        return hidden[:, 0]
    return hidden.sum(1) if mix is None else torch.matmul(mix, hidden)


def mlp_grad(
    g: Tensor,
    v: Tensor,
    hidden: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    mix: Tensor | None,
) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
    """The gradients of v, of w1, b1, w2, b2, and of `mix`. The latter with b2 is not asked for."""
    n, parts, channels = v.shape
    dmixed = g @ w2
    dhidden = dmixed[:, None].expand_as(hidden) if mix is None else dmixed[:, None] * mix[:, None]
    inner = torch.ops.aten.threshold_backward(dhidden, hidden, 0).flatten(0, 1)
    dw2 = g.t() @ _mixed(hidden, mix)
    db1 = None if b1 is None else inner.sum(0)
    db2 = None if b2 is None else g.sum(0) * parts
    dmix = None if mix is None else torch.einsum('nk,npk->p', dmixed, hidden)
    dv = (inner @ w1).view(n, parts, channels)
    return dv, [inner.t() @ v.flatten(0, 1), db1, dw2, db2], dmix


def batch_moments(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel of v (N, C, L), and what running ones move to (2, C)."""
    var, mean = torch.var_mean(v, (0, 2), correction=0)
    count = v.shape[0] * v.shape[2]
    return mean, var, torch.stack((mean, var * (count / max(count - 1, 1))))


def batch_norm(
    v: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """v (N, C, L) normalised by mean and var, be they the batch's or running ones."""
    return F.batch_norm(v, mean, var, weight, bias, False, 0.0, eps)


def batch_norm_grad(
    g: Tensor, v: Tensor, weight: Tensor, mean: Tensor, var: Tensor, by_batch: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of v, weight and bias. `by_batch`: mean and var are v's own."""
    return torch.ops.aten.native_batch_norm_backward(
        g, v, weight, mean, var, mean, (var + eps).rsqrt(), by_batch, eps, [True] * 3
    )
