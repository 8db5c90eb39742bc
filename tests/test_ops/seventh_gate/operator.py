"""The operator: y = x sigmoid(E), E = (x - mean)^2 / (4 (variance + lambda)) + 1/2 (SimAM).

Mean and variance are a channel's. The equation, its kernel's call, its shapes and its gradient are
here, the kernel itself is in `energy_gate.cpp`.
"""

from pathlib import Path

import torch
from torch import Tensor

from mmattn.ops import native
from mmattn.ops.library import Gradient, define
from mmattn.ops.tensors import dense, is_last, layout


def energy_gate(x: Tensor, strength: float) -> Tensor:
    """y of a map x (N, C, H, W), by kernels; `strength` is lambda."""
    return torch.ops.mmattn.energy_gate(x, strength)


def equations(x: Tensor, strength: float) -> Tensor:
    wide = x if x.dtype is torch.float64 else x.float()
    squares = (wide - wide.mean((2, 3), keepdim=True)).square()
    count = max(x.shape[2] * x.shape[3] - 1, 1)
    variance = squares.sum((2, 3), keepdim=True) / count
    return (wide * (squares / (4 * (variance + strength)) + 0.5).sigmoid()).to(x.dtype)


def _like(y, last):
    return y.contiguous(memory_format=layout(last))


def _kernel(kernels, x, strength):
    n, c, h, w = x.shape
    rows = dense(x, last=False)
    y = torch.empty_like(rows)
    native.run('energy_gate', rows, rows, y, n * c, h * w, strength)
    return _like(y, is_last(x))


def _kernel_grad(kernels, dy, x, strength, last):
    n, c, h, w = x.shape
    rows = dense(x, last=False)
    dx = torch.empty_like(rows)
    native.run('energy_gate_grad', rows, rows, dense(dy, last=False), dx, n * c, h * w, strength)
    return _like(dx, last)


def _keep(ctx, args, outputs):
    x, ctx.strength = args
    ctx.last = is_last(x)
    return (x,)


def _grads(ctx, saved, dy):
    return (ctx.backward_op(dy, *saved, ctx.strength, ctx.last),)


def kernels_on(device: torch.device) -> bool:
    """Elsewhere, and without a compiler, the equations run."""
    return device.type == 'cpu' and native.added(Path(__file__).with_name('energy_gate.cpp'))


define(
    'energy_gate(Tensor x, float strength) -> Tensor',
    kernel=_kernel,
    fake=lambda x, strength: torch.empty_like(dense(x)),
    equations=equations,
    gradient=Gradient(_keep, _grads),
    kernels_on=kernels_on,
)
define(
    'energy_gate_backward(Tensor dy, Tensor x, float strength, bool last) -> Tensor',
    kernel=_kernel_grad,
    fake=lambda dy, x, strength, last: _like(torch.empty_like(x), last),
)
