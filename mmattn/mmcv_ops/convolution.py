"""Convolution at places that a network chooses: deformable and masked."""

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor

from .common import tv, wide


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """(N, C, H, W), weight (O, C / group, kH, kW), offset (N, 2 kH kW groups, ...) -> output."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_deform_conv(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _deform_conv_grads(gradOutput, input, weight, offset, None, None, geometry)
    gradInput += grads[0]
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # The gradient of the weight does not depend on the weight.
    grads = _deform_conv_grads(gradOutput, input, gradWeight, offset, None, None, geometry)
    gradWeight += grads[1] * scale


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """As :func:`deform_conv_forward`, each sample multiplied by its mask (N, kH kW groups, ...)."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    offset, mask = (_as_read(tensor, output) for tensor in (offset, mask))
    output.copy_(_deform_conv(input, weight, offset, mask, bias if with_bias else None, geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    offset, mask = (_as_read(tensor, grad_output) for tensor in (offset, mask))
    grads = _deform_conv_grads(grad_output, input, weight, offset, mask, None, geometry)
    grad_input += grads[0]
    grad_weight += grads[1]
    _as_read(grad_offset, grad_output).copy_(grads[2])
    _as_read(grad_mask, grad_output).copy_(grads[3])
    if with_bias:
        grad_bias += grads[4]


def _as_read(tensor: Tensor, output: Tensor) -> Tensor:
    """Offsets or masks (N, C, ...) as mmcv's kernel reads them: as if they had the output's size.

    mmdet's DyHead gives larger ones, those of the next finer level, and is trained with what the
    kernel makes of them: the first values in memory.
    """
    shape = (*tensor.shape[:2], *output.shape[2:])
    return tensor if tensor.shape == shape else tensor.flatten(1)[:, : prod(shape[1:])].view(shape)


def _deform_conv(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Sequence[int],
) -> Tensor:
    return tv.deform_conv2d(
        *_deform_arguments(input, weight, offset, mask, bias), *geometry, mask is not None
    )


def _deform_conv_grads(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Sequence[int],
) -> tuple[Tensor, ...]:
    """The gradients of input, weight, offset, mask and bias."""
    arguments = _deform_arguments(input, weight, offset, mask, bias)
    return tv._deform_conv2d_backward(wide(grad), *arguments, *geometry, mask is not None)


def _deform_arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    input = wide(input)
    mask = input.new_zeros(input.size(0), 1) if mask is None else mask
    bias = input.new_zeros(weight.size(0)) if bias is None else bias
    return (input, *(tensor.to(input) for tensor in (weight, offset, mask, bias)))


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """The windows of im (1, C, H, W) at M places -> col (C kernel_h kernel_w, M)."""
    windows = F.unfold(im, (kernel_h, kernel_w), padding=(pad_h, pad_w))[0]
    width = im.size(3) + 2 * pad_w - kernel_w + 1
    col.copy_(windows[:, mask_h_idx * width + mask_w_idx])


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Values (C, M) at M places -> im (1, C, height, width), whose other places stay."""
    im[0, :, mask_h_idx, mask_w_idx] = col
