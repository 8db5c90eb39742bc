"""Pooling of regions: RoIAlign and RoIPool."""

import torch
from torch import Tensor

from .common import tv, wide
from .finder import recipe


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """(N, C, H, W) and regions (K, 5) -> output (K, C, aligned_height, aligned_width)."""
    _check_average(pool_mode)
    input = wide(input)
    size = (aligned_height, aligned_width)
    output.copy_(tv.roi_align(input, rois.to(input), spatial_scale, *size, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds to the gradient of the input."""
    _check_average(pool_mode)
    grad = wide(grad_output)
    size = (aligned_height, aligned_width)
    grad_input += tv._roi_align_backward(
        grad, rois.to(grad), spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned
    )


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' has no counterpart in torchvision: use pool_mode='avg', "
            f'or the compiled operators of mmcv: {recipe()}'
        )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """(N, C, H, W) and regions (K, 5) -> output, argmax (K, C, pooled_height, pooled_width).

    torchvision rounds a region's corners to pixels, mmcv those of its bins. So each bin is
    computed here, and given to torchvision as a region of its own.
    """
    input = wide(input)
    rois = rois.to(input)
    corner = rois[:, 1:3] * spatial_scale
    side = (rois[:, 3:5] + 1) * spatial_scale - corner
    xs = _bins(corner[:, :1], side[:, :1], pooled_width, input.size(3))[:, :, None, :]
    ys = _bins(corner[:, 1:], side[:, 1:], pooled_height, input.size(2))[:, :, :, None]
    image = rois[:, 0, None, None]
    parts = (image, xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1])
    bins = torch.stack(torch.broadcast_tensors(*parts), dim=-1)
    # torchvision widens an empty bin to a pixel: this one lies outside the image, and pools 0.
    empty = (bins[..., 3] < bins[..., 1]) | (bins[..., 4] < bins[..., 2])
    empty |= (side <= 0).any(1)[:, None, None]
    bins[..., 1:][empty] = max(input.shape[2:])
    pooled = tv.roi_pool(input, bins.flatten(0, 2), 1, 1, 1)
    for buffer, values in zip((output, argmax), pooled, strict=True):
        buffer.copy_(values.view(*bins.shape[:3], input.size(1)).permute(0, 3, 1, 2))


def _bins(start: Tensor, side: Tensor, count: int, limit: int) -> Tensor:
    """First and last pixel of each bin: start and side (K, 1) -> (K, 2, count)."""
    edges = torch.arange(count + 1, device=start.device) * (side / count) + start
    first = edges[:, :-1].floor().clamp(0, limit)
    last = edges[:, 1:].ceil().clamp(0, limit) - 1
    return torch.stack((first, last), dim=1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds to the gradient of the input."""
    grad = wide(grad_output)
    size = (pooled_height, pooled_width)
    grad_input += tv._roi_pool_backward(
        grad, rois.to(grad), argmax, spatial_scale, *size, *grad_input.shape
    )
