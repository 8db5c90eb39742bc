from typing import Any

import torch
from torch import Tensor, nn

from mmattn import ops
from mmattn.registry import register_gate

from .checks import check_flags, check_int, check_number, check_odd
from .gate import (
    Gate,
    SpatialConv,
    as_input_of,
    batch_norm,
    is_plain,
    is_plain_norm,
    listened_to,
    mlp,
    mlp_weights,
    move,
    runs_kernels,
    tensor,
)


@register_gate
class CBAM(Gate):
    """CBAM: Convolutional Block Attention Module, https://arxiv.org/abs/1807.06521

    Channel attention, then spatial attention computed on its result. (N, C, H, W) -> (N, C, H, W).
    Layers start from PyTorch's default initialisation, in every host.

    Args:
        in_channels (int): C.
        reduction (int): r; the MLP's hidden width is max(1, C // r).
        kernel_size (int): Of the spatial convolution, odd.
        bias (bool): Whether the MLP's layers have biases. By their parameter counts they have them
            in the DRTAM paper's tables, and have none in the CAT paper's.
        norm (bool): Whether a batch norm (of momentum 0.01) follows the spatial convolution, as in
            the authors' release.
        norm_weight (float): What the norm's weight starts from. From 0, as in the authors' ImageNet
            networks, the spatial attention is 1/2 everywhere at first.
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'cbam'
    norm: Any  # a batch norm, or an identity

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        bias: bool = True,
        norm: bool = True,
        norm_weight: float = 1,
        impl: str | None = None,
    ) -> None:
        super().__init__(in_channels, impl)
        check_int('reduction', reduction, 1)
        check_odd('kernel_size', kernel_size)
        check_flags(bias=bias, norm=norm)
        check_number('norm_weight', norm_weight)
        if norm_weight != 1 and not norm:
            raise ValueError(f'norm_weight must be 1 without a norm, got {norm_weight!r}')
        self.mlp = mlp(in_channels, max(1, in_channels // reduction), bias)
        self.conv = SpatialConv(2, kernel_size)
        self.norm = nn.BatchNorm2d(1, momentum=0.01) if norm else nn.Identity()
        if norm:
            nn.init.constant_(tensor(self.norm, 'weight'), norm_weight)

    def gate(self, x: Tensor) -> Tensor:
        layers, norm, a = mlp_weights(self.mlp), self._norm(), tensor(self, 'identity_scale')
        if layers and norm is not None and is_plain(self.conv, SpatialConv):
            kernel = tensor(self.conv, 'weight')
            plain = self.conv.bias is None and not listened_to()
            if plain and runs_kernels('cbam', x, self.impl, [*layers, kernel, *norm], a):
                by_batch = len(norm) > 0 and self.norm.training and x.numel() > x.shape[1]
                eps = self.norm.eps if norm else 0.0
                y, _, _, moments = ops.cbam(x, layers, kernel, norm, by_batch, eps, a)
                if by_batch:
                    move(self.norm, moments)
                return y
        avg, peak = ops.channel_pool(x, maximum=True, impl=self.impl)
        c = self.mlp(as_input_of(self.mlp[0], torch.stack((avg, peak), 1))).sum(1).sigmoid()
        avg, peak = ops.spatial_pool(x, c, impl=self.impl)
        s = self.conv(as_input_of(self.conv, torch.stack((peak, avg), 1)), impl=self.impl)
        s = batch_norm(self.norm, s).squeeze(1).sigmoid()
        return ops.product_scale(x, c, s, impl=self.impl, identity_scale=a)

    def _norm(self) -> list[Tensor] | None:
        """Weight, bias, running mean and variance of the norm, nothing of none; or None for a norm
        that an operator may not stand in for."""
        if is_plain(self.norm, nn.Identity):
            return []
        if not is_plain_norm(self.norm, nn.BatchNorm2d):
            return None
        keys = 'weight', 'bias', 'running_mean', 'running_var'
        return [tensor(self.norm, key) for key in keys]
