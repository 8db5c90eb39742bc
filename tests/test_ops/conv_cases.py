"""`spatial_conv` of a kernel backend against PyTorch's convolution in float64."""

import on_kernels
import torch
import torch.nn.functional as F

# (N, M, H, W), kernel: usual, a row of vectors and a tail, less than the kernel, other kernels.
SIZES = (
    ((2, 1, 9, 8), (7, 7)),
    ((1, 2, 20, 35), (7, 7)),
    ((2, 2, 1, 3), (7, 7)),
    ((1, 1, 1, 1), (7, 7)),
    ((2, 3, 6, 17), (3, 3)),
    ((1, 2, 5, 4), (1, 1)),
    ((1, 1, 12, 9), (11, 11)),
    ((3, 1, 1, 40), (1, 5)),
    ((1, 2, 9, 4), (7, 3)),
)


def step(op, maps, weight, dy):
    maps, weight = maps.requires_grad_(), weight.requires_grad_()
    y = op(maps, weight)
    return [y.detach(), *torch.autograd.grad(y, (maps, weight), dy)]


def compare(kernels, shape, k, dtype=torch.float32, device='cpu'):
    """Raise AssertionError unless value and gradients are those of the convolution."""
    n, m, h, w = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (1, m, *k), (n, h, w))
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes]
    ours = step(
        lambda x, f: on_kernels.spatial_conv(kernels, x, f),
        *(t.to(device, copy=True) for t in made),
    )
    theirs = step(
        lambda x, f: F.conv2d(x, f, padding=(k[0] // 2, k[1] // 2))[:, 0],
        *(t.double() for t in made),
    )
    eps = 1e-11 if dtype == torch.float64 else 1e-5
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        a = a.cpu().double()
        torch.testing.assert_close(a, b, rtol=eps, atol=eps * float(b.abs().max()))
