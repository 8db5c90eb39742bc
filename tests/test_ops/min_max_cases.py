"""`min_max` of a kernel backend against the float64 equation."""

import on_kernels
import torch

from mmattn.ops import reference

SHAPES = ((2, 7), (1, 1), (3, 40), (2, 5, 9), (1, 60, 50))
VALUES = {
    'normal': lambda v: v,
    'offset': lambda v: 8 + v / 50,
    'ties': lambda v: (2 * v).round(),  # an extreme shared by several
    'constant': lambda v: torch.full_like(v, 2.5),
    'one constant': lambda v: torch.cat((torch.full_like(v[:1], 3), v[1:])),
}


def step(op, v, dy):
    v.requires_grad_()
    u = op(v)
    return [u.detach(), *torch.autograd.grad(u, v, dy)]


def compare(kernels, values, shape, dtype=torch.float32, device='cpu'):
    """Raise AssertionError unless value and gradient are those of the equation."""
    generator = torch.Generator().manual_seed(0)
    v = VALUES[values](torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    dy = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    for low, high in ((0, 1), (-1, 1)):
        ours = step(
            lambda t: on_kernels.min_max(kernels, t, float(low), float(high)),  # noqa: B023
            v.to(device, copy=True), dy.to(device),
        )  # fmt: skip
        theirs = step(lambda t: reference.min_max(t, low, high), v.double(), dy.double())  # noqa: B023
        eps = 1e-10 if dtype == torch.float64 else 2e-5
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == dtype and a.shape == v.shape
            atol = eps * max(1.0, float(b.abs().max()))
            torch.testing.assert_close(a.cpu().double(), b, rtol=eps, atol=atol)
