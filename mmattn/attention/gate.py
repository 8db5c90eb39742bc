"""What the six gates share: checked input, full precision, batches of one value."""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F

from mmattn.ops import Norm, check_impl, spatial_conv, two_devices

from .checks import check_int


def mlp(channels, hidden, bias):
    """Two fully connected layers with a ReLU between."""
    return nn.Sequential(
        nn.Linear(channels, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, channels, bias=bias)
    )


def batch_norm(norm, x):
    """`norm(x)`, also where a training batch holds less than two values a channel.

    One value has no variance and PyTorch refuses it (batch 1 on a 1 x 1 map). It is normalised by
    the running statistics instead, and leaves them alone. SyncBatchNorm counts the values of all
    processes, all of which have to take part, so it decides for itself.
    """
    if (
        norm.training
        and x.numel() <= x.shape[1]
        and not isinstance(norm, (nn.SyncBatchNorm, nn.Identity))
    ):
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    return norm(x)


def is_plain(module, kind):
    """Whether a module is of that very class and nobody listens to it: it may be stood in for."""
    return type(module) is kind and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def norm_state(norm, values):
    """What a plain BatchNorm1d of one channel does to so many values, as an `ops.Norm`.

    It is asked once for each batch, which it counts; of a single value as in `batch_norm`.
    """
    momentum = None
    if norm.training and values > 1:
        norm.num_batches_tracked.add_(1)
        # Without a momentum the running statistics are those of all batches.
        momentum = norm.momentum
        momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
    return Norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, momentum, norm.eps)


def as_input_of(layer, v):
    """A descriptor in the dtype of a layer's weight, on whose device it must lie.

    PyTorch lets a product with a weight on the meta device pass, and gives numbers.
    """
    weight = layer.weight
    if not isinstance(weight, torch.Tensor):  # a quantised layer: it takes float32
        return v.float()
    if weight.device != v.device:
        raise two_devices(v.device, weight.device)
    return v.to(weight.dtype)


class SpatialConv(nn.Conv2d):
    """A convolution of maps (N, M, H, W) to one, (N, 1, H, W), by `ops.spatial_conv`."""

    def __init__(self, maps, kernel_size):
        super().__init__(maps, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, maps, impl=None):
        out = spatial_conv(maps, self.weight, impl=impl).unsqueeze(1)
        # A fused batch norm leaves a bias.
        return out if self.bias is None else out + self.bias.view(1, 1, 1, 1)


class Gate(nn.Module):
    """Base of the gates. A subclass implements `gate(x)`, which `forward` calls on a checked input.

    Autocast is off inside: the ops return float32 descriptors whatever the feature map's dtype, and
    the layers on them are small, so float16 would save nothing and could overflow. In a model
    converted by `.half()` or `.bfloat16()` those layers run in their parameters' dtype.

    Args:
        in_channels (int): Channels C of the feature map.
        impl (str, optional): 'reference' or 'fast'; None follows `mmattn.ops.get_impl()`.

    Raises:
        ValueError: for an argument outside its allowed values, and in `forward` for an input that
            is not a floating-point (N, in_channels, H, W) with H, W >= 1.
    """

    def __init__(self, in_channels, impl=None):
        super().__init__()
        check_int('in_channels', in_channels, 1)
        self.in_channels = in_channels
        self.impl = impl if impl is None else check_impl(impl)

    def forward(self, x):
        # While tracing, sizes are tensors: comparing them would only warn.
        if not torch.jit.is_tracing():
            self._check(x)
        # The meta device has no autocast to switch off.
        with (
            contextlib.nullcontext()
            if x.device.type == 'meta'
            else torch.autocast(x.device.type, enabled=False)
        ):
            return self.gate(x)

    def gate(self, x):
        raise NotImplementedError

    def _check(self, x):
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise ValueError(
                f'{type(self).__name__} takes (N, {self.in_channels}, H, W) with '
                f'H, W >= 1, got {tuple(x.shape)}'
            )
        if not x.is_floating_point():
            raise ValueError(f'{type(self).__name__} takes a floating-point input, got {x.dtype}')
