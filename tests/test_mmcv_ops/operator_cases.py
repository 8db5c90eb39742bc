"""Random inputs that the tests of formulas and of parity share."""

import torch


def boxes(num, size=64, dtype=torch.float64):
    """(num, 4) boxes x1, y1, x2, y2, some of which lie partly outside an image of that size."""
    corner = torch.rand(num, 2, dtype=torch.float64) * size * 1.2 - size * 0.1
    side = torch.rand(num, 2, dtype=torch.float64) * size * 0.5
    return torch.cat((corner, corner + side), dim=1).to(dtype)


def regions(num, images=2, size=64, dtype=torch.float64):
    """(num, 5) boxes behind the index of their image; the last lies wholly outside."""
    index = torch.arange(num, dtype=torch.float64) % images
    rois = torch.cat((index[:, None], boxes(num, size)), dim=1)
    if num:
        rois[-1, 1:] += 2 * size
    return rois.to(dtype)


def deformable(groups=1, offset_groups=1, stride=1, padding=1, dilation=1, dtype=torch.float64):
    """Input, offset, mask, weight, bias and the keywords of a deformable convolution."""
    images, channels, height, width, kernel = 2, 4 * groups, 9, 8, 3
    span = dilation * (kernel - 1) + 1
    out = [(side + 2 * padding - span) // stride + 1 for side in (height, width)]
    points = offset_groups * kernel * kernel
    tensors = [
        torch.randn(images, channels, height, width),
        torch.randn(images, 2 * points, *out) * 2,
        torch.rand(images, points, *out),
        torch.randn(2 * groups, channels // groups, kernel, kernel),
        torch.randn(2 * groups),
    ]
    keywords = dict(
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        deform_groups=offset_groups,
    )
    return [tensor.to(dtype) for tensor in tensors], keywords


def value_and_grads(function, *inputs):
    """The value, and the gradients of the inputs for a fixed random gradient of the value."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    grad = torch.rand(value.shape, generator=generator, dtype=torch.float64, device='cpu')
    return [value.detach(), *torch.autograd.grad(value, inputs, grad.to(value))]
