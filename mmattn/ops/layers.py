"""Layers between a gate's pools and its scale, forward and backward, within an operator.

Descriptors are small: these are products and sums of PyTorch, without autograd's nodes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

sigmoid_grad = torch.ops.aten.sigmoid_backward


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
