"""The functions of `mmcv._ext` that torch and torchvision have, called as mmcv calls them.

A function has the name and the arguments of mmcv's, and like it writes into the buffers that it is
given; gradients are added to what lies in `grad_input`, `grad_weight` and `grad_bias`. Half
precision is computed in float32 and rounded at the end, on CPU and CUDA.
"""

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from .finder import recipe

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]

# torchvision's gradients have no public name of their own.
_tv = torch.ops.torchvision


class Missing:
    """Stands for an operator without a counterpart: exists by name, and raises when called."""

    def __init__(self, name: str):
        self.__name__ = name

    def __repr__(self):
        return f'<no counterpart of mmcv._ext.{self.__name__}>'

    def __call__(self, *args, **kwargs):
        raise NotImplementedError(
            f"mmcv's operator '{self.__name__}' has no counterpart in torch or torchvision, which "
            f"stand in for mmcv's compiled operators here. To get the compiled ones: {recipe()}"
        )


def missing(name: str) -> Missing:
    """`__getattr__` of the module: mmcv asserts of every operator that it exists."""
    if name.startswith('_'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute '{name}'")
    return Missing(name)


def get_compiler_version() -> str:
    return f'none, operators of torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    return torch.version.cuda or 'not available'


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# Non-maximum suppression


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (N, 4) that stay, by falling score."""
    dtype = torch.promote_types(_wide(boxes).dtype, scores.dtype)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        # Corners are pixels, the last one counts: its far edge is one further.
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares in float32: an IoU of exactly 0.6 is not above a threshold of 0.6.
    return _tv.nms(boxes, scores, float(np.float32(iou_threshold)))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices of the boxes (N, 4) that stay; their boxes and lowered scores go to dets (N, 5).

    `method` is 0 for hard, 1 for linear, 2 for Gaussian lowering. On the CPU, as mmcv's.
    """
    boxes, scores = _wide(boxes).numpy().copy(), _wide(scores).numpy().copy()
    index = np.arange(len(boxes))
    stay, best = len(boxes), 0
    while best < stay:
        rest = slice(best + 1, stay)
        # Equal scores stand where mmcv's swaps put them, so that they come in its order.
        swap = [best, best + scores[best:stay].argmax()]
        for array in (boxes, scores, index):
            array[swap] = array[swap[::-1]]
        iou = _iou(boxes[best], boxes[rest], offset)
        if method == 2:
            scores[rest] *= np.exp(-iou * iou / sigma)
        else:
            scores[rest] *= np.where(iou >= iou_threshold, 1 - iou if method == 1 else 0, 1)
        keep = ~(scores[rest] < min_score)
        kept = keep.sum()
        holes = best + 1 + np.flatnonzero(~keep[:kept])
        fillers = best + 1 + kept + np.flatnonzero(keep[kept:])[::-1]
        for array in (boxes, scores, index):
            array[holes] = array[fillers]
        best += 1
        stay = best + kept
    dets[:stay, :4] = torch.from_numpy(boxes[:stay])
    dets[:stay, 4] = torch.from_numpy(scores[:stay])
    return torch.from_numpy(index[:stay])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of dets (N, 5), each one that stays followed by those that it suppresses."""
    order = dets[:, 4].argsort(descending=True, stable=True).numpy()
    boxes = _wide(dets[:, :4]).numpy()
    groups = []
    while len(order):
        best, rest = order[0], order[1:]
        hit = _iou(boxes[best], boxes[rest], 0) >= np.float32(iou_threshold)
        groups.append([int(best), *rest[hit].tolist()])
        order = rest[~hit]
    return groups


def _iou(box: np.ndarray, boxes: np.ndarray, offset: int) -> np.ndarray:
    """IoU of a box (4,) with boxes (N, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + offset
    overlap = sides.clip(min=0).prod(1)
    area = (box[2:] - box[:2] + offset).prod()
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    with np.errstate(invalid='ignore'):  # two boxes without area
        return overlap / (area + areas - overlap)


# Pooling of regions


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
    input = _wide(input)
    size = (aligned_height, aligned_width)
    output.copy_(
        _tv.roi_align(input, rois.to(input), spatial_scale, *size, sampling_ratio, aligned)
    )


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
    _check_average(pool_mode)
    grad = _wide(grad_output)
    size = (aligned_height, aligned_width)
    grad_input += _tv._roi_align_backward(
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
    input = _wide(input)
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
    pooled = _tv.roi_pool(input, bins.flatten(0, 2), 1, 1, 1)
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
    grad = _wide(grad_output)
    size = (pooled_height, pooled_width)
    grad_input += _tv._roi_pool_backward(
        grad, rois.to(grad), argmax, spatial_scale, *size, *grad_input.shape
    )


# Focal losses: with p the probability of what is right, -alpha (1 - p)^gamma log p


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Logits (N, C) and classes (N,), C being none of them -> output (N, C)."""
    logit, _, factor = _right(input, target, weight, alpha)
    output.copy_(-F.logsigmoid(logit) * torch.sigmoid(-logit) ** gamma * factor)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    logit, sign, factor = _right(input, target, weight, alpha)
    right, wrong = torch.sigmoid(logit), torch.sigmoid(-logit)
    slope = gamma * right * F.logsigmoid(logit) - wrong
    grad_input.copy_(slope * wrong**gamma * sign * factor)


def _right(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The logit of being right, its sign in `input`, and the factor of the loss."""
    input = _wide(input)
    hit = target[:, None] == torch.arange(input.size(1), device=target.device)
    sign = torch.where(hit, 1, -1).to(input.dtype)
    factor = torch.where(hit, alpha, 1 - alpha).to(input.dtype)
    if weight.numel():
        factor *= _class_weight(weight, target)[:, None]
    return input * sign, sign, factor


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Probabilities (N, C) and classes (N,), those below 0 ignored -> output (N,)."""
    right, log, factor = _right_class(input, target, weight, alpha)
    output.copy_(-((1 - right) ** gamma) * log * factor)


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """The gradient with respect to the logits, of which `input` are the probabilities."""
    right, log, factor = _right_class(input, target, weight, alpha)
    wrong = 1 - right
    buff.copy_((gamma * wrong ** (gamma - 1) * right * log - wrong**gamma) * factor)
    hit = target[:, None] == torch.arange(input.size(1), device=target.device)
    grad_input.copy_((hit.to(input.dtype) - input) * buff[:, None])


def _right_class(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The probability of the right class, its logarithm, and the factor of the loss: (N,)."""
    right = _wide(input).gather(1, target.clamp(min=0)[:, None])[:, 0]
    factor = alpha * (target >= 0).to(right.dtype)
    if weight.numel():
        factor *= _class_weight(weight, target)
    return right, right.clamp(min=torch.finfo(torch.float32).tiny).log(), factor


def _class_weight(weight: Tensor, target: Tensor) -> Tensor:
    """The weight of each target's class, 1 for no class (there mmcv reads past the weights)."""
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, _wide(weight)[target.clamp(0, len(weight) - 1)], 1)


# Deformable convolution


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
    bias = bias if with_bias else None
    output.copy_(_deform_conv(input, weight, offset, mask, bias, geometry))


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
    grads = _deform_conv_grads(grad_output, input, weight, offset, mask, None, geometry)
    grad_input += grads[0]
    grad_weight += grads[1]
    grad_offset.copy_(grads[2])
    grad_mask.copy_(grads[3])
    if with_bias:
        grad_bias += grads[4]


def _deform_conv(input, weight, offset, mask, bias, geometry) -> Tensor:
    return _tv.deform_conv2d(
        *_deform_arguments(input, weight, offset, mask, bias), *geometry, mask is not None
    )


def _deform_conv_grads(grad, input, weight, offset, mask, bias, geometry) -> tuple[Tensor, ...]:
    """The gradients of input, weight, offset, mask and bias."""
    arguments = _deform_arguments(input, weight, offset, mask, bias)
    return _tv._deform_conv2d_backward(_wide(grad), *arguments, *geometry, mask is not None)


def _deform_arguments(input, weight, offset, mask, bias) -> tuple[Tensor, ...]:
    input = _wide(input)
    mask = input.new_zeros(input.size(0), 1) if mask is None else mask
    bias = input.new_zeros(weight.size(0)) if bias is None else bias
    return (input, *(tensor.to(input) for tensor in (weight, offset, mask, bias)))


# Convolution at chosen places, and attention at sampled ones


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


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention, by the form that mmcv itself runs on CPUs."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes, sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    inputs = [t.detach().requires_grad_() for t in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], value_spatial_shapes, value_level_start_index, *inputs[1:], im2col_step
        )
    buffers = (grad_value, grad_sampling_loc, grad_attn_weight)
    grads = torch.autograd.grad(output, inputs, grad_output)
    for buffer, grad in zip(buffers, grads, strict=True):
        buffer += grad
