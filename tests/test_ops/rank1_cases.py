"""DRTAM's `rank1_pool` of a kernel backend against the float64 equations."""

import on_kernels
import torch

from mmattn.ops import reference

# (N, C, H, W), (S, M): usual, blocks of channels, axes shorter than their chunks, one chunk.
SIZES = (
    ((2, 5, 6, 7), (3, 1)),
    ((3, 40, 14, 10), (3, 4)),
    ((1, 33, 7, 7), (3, 1)),
    ((2, 3, 2, 1), (3, 4)),
    ((1, 1, 1, 1), (3, 1)),
    ((2, 16, 5, 9), (4, 3)),
    ((2, 20, 4, 13), (1, 2)),
    ((1, 300, 14, 9), (3, 2)),
)


def make(shape, chunks, taken, seed=0):
    """(planes, weights, chunks, factors taken or None), in float64."""
    n, c, h, w = shape
    rows = sum(chunks) + 1
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    planes = randn(n, c, h), randn(n, c, w), randn(n, h, w)
    weights = randn(1, 4 * chunks[0]), randn(1, rows, 3), randn(1, rows, 3)
    factors = tuple(randn(n, length).sigmoid() for length in (c, h, w))
    return planes, weights, chunks, factors if taken else None


def run(op, args, dtype, device, used):
    """The descriptors, and the gradients of every tensor; only the descriptors `used` get one."""
    planes, weights, chunks, taken = args
    groups = [
        tuple(t.detach().to(device, dtype).requires_grad_() for t in group)
        for group in (planes, weights, taken or ())
    ]
    out = op(groups[0], groups[1], chunks, groups[2] or None)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in out]
    leaves = [t for group in groups for t in group]
    found = torch.autograd.grad(
        [out[i] for i in used], leaves, [grads[i].to(device, dtype) for i in used],
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return [t.detach().cpu().double() for t in (*out, *found)]


def compare(kernels, args, dtype=torch.float32, device='cpu', used=(0, 1, 2), outputs_only=False):
    """Raise AssertionError unless values and gradients are those of the equations."""
    ours = run(lambda *a: on_kernels.rank1_pool(kernels, *a), args, dtype, device, used)
    # The same roundings of the input on both sides: a maximum must not choose another place.
    exact = [
        t
        if t is None or not isinstance(t[0], torch.Tensor)
        else tuple(v.to(dtype).double() for v in t)
        for t in args
    ]
    theirs = run(reference.rank1_pool, exact, torch.float64, 'cpu', used)
    eps = 1e-11 if dtype == torch.float64 else 1e-5
    count = 3 if outputs_only else len(ours)
    for i, (a, b) in enumerate(zip(ours[:count], theirs[:count], strict=True)):
        finite = b[b.isfinite()]
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        torch.testing.assert_close(
            a, b, rtol=eps, atol=eps * scale, equal_nan=True, msg=lambda t, i=i: f'tensor {i}: {t}'
        )
