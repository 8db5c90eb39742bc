"""`rank1_attention` of a kernel backend against its float64 equations: values, running statistics
and all gradients."""

import on_kernels
import torch

from mmattn import ops
from mmattn.ops import Norm

# (N, C, H, W), (S, M), attention modules: usual, narrow, wide, odd, axes shorter than their chunks.
SIZES = (
    ((2, 5, 6, 7), (3, 1), 2),
    ((3, 40, 14, 10), (3, 4), 2),
    ((2, 17, 5, 33), (2, 2), 2),
    ((1, 9, 12, 16), (3, 1), 1),
    ((2, 3, 2, 1), (3, 4), 1),
    ((2, 6, 1, 1), (3, 1), 2),
)
TRAIN, EVAL, MIXED = (0.1,) * 6, (None,) * 6, (0.1, None, 0.3, None, 1.0, 0.1)


def make(shape, chunks, modules, momenta=TRAIN, seed=0):
    """x, [(weights, norms)], mlp, in float64."""
    rows, channels, hidden = sum(chunks) + 1, shape[1], 8
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    mlp = randn(hidden, channels), randn(hidden), randn(channels, hidden), randn(channels)
    made = []
    for i in range(modules):
        weights = randn(1, 4 * chunks[0]), randn(1, rows, 3), randn(1, rows, 3)
        norms = [
            Norm(1 + 0.3 * randn(1), randn(1), randn(1), 0.5 + randn(1).abs(), momentum, 1e-5)
            for momentum in momenta[3 * i : 3 * i + 3]
        ]
        made.append((weights, norms))
    return randn(*shape), made, mlp


def run(op, args, chunks, dtype, acc, device='cpu', last=False, given=None):
    """y, the running statistics, and the gradients of x and of every parameter, in float64.

    The gradient of y has values of the dtype `given`.
    """
    x, modules, mlp = args
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.to(device, dtype).to(memory_format=layout).requires_grad_()

    def leaf(t):
        return t.to(device, acc).clone().requires_grad_()

    mlp = [leaf(t) for t in mlp]
    modules = [
        (
            [leaf(w) for w in weights],
            [
                Norm(leaf(n.weight), leaf(n.bias), n.mean.to(device, acc, copy=True),
                     n.var.to(device, acc, copy=True), n.momentum, n.eps)
                for n in norms
            ],
        )
        for weights, norms in modules
    ]  # fmt: skip
    leaves = [x, *mlp]
    for weights, norms in modules:
        leaves += [*weights, *(t for n in norms for t in (n.weight, n.bias))]
    y = op(x, modules, mlp, chunks)
    assert y.dtype == dtype and y.stride() == x.stride()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dy = dy.to(given or dtype)
    grads = torch.autograd.grad(y, leaves, dy.to(device, dtype).to(memory_format=layout))
    running = [t for _, norms in modules for n in norms for t in (n.mean, n.var)]
    return [t.detach().cpu().double() for t in (y, *running, *grads)]


def compare(kernels, shape, chunks, modules, dtype=torch.float32, last=False, momenta=TRAIN,
            device='cpu', seed=0, sums=3e-5):  # fmt: skip
    """Raise AssertionError unless the kernels give what the equations give.

    `sums`: the relative error allowed in float32 sums.
    """
    x, *layers = make(shape, chunks, modules, momenta, seed)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    # The same roundings of the input on both sides: a maximum must not choose another place.
    x = x.to(dtype).double()
    layers = [
        [([w.to(acc).double() for w in weights], norms) for weights, norms in layers[0]],
        [t.to(acc).double() for t in layers[1]],
    ]

    def op(*args):
        return on_kernels.rank1_attention(kernels, *args)

    def equations(*args):
        return ops.rank1_attention(*args, impl='reference')

    ours = run(op, (x, *layers), chunks, dtype, acc, device, last)
    theirs = run(equations, (x, *layers), chunks, torch.float64, torch.float64, given=dtype)
    rounding = {torch.float64: 1e-10, torch.float32: sums}.get(dtype, 1e-2)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        full = a.shape == x.shape  # what is stored in x's dtype
        eps = rounding if full or acc == torch.float64 else sums
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(
            a, b, rtol=eps, atol=eps * scale, msg=lambda t, i=i: f'tensor {i}: {t}'
        )
