from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmattn import ops
from mmattn.registry import register_gate

from .checks import check_int
from .gate import (
    Gate,
    as_input_of,
    batch_norm,
    is_plain,
    is_plain_norm,
    listened_to,
    move,
    runs_kernels,
    tensor,
)


class PointConv(nn.Conv1d):
    """A 1-D convolution of kernel 1. Small ones are quicker on CPUs as the products they are."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.numel() > 2**14:
            return super().forward(x)
        weight = self.weight.squeeze(2).expand(x.shape[0], -1, -1)
        out = torch.bmm(weight, x)
        return out if self.bias is None else out + self.bias[:, None]


@register_gate
class CoordAttention(Gate):
    """Coordinate Attention for Efficient Mobile Network Design, https://arxiv.org/abs/2103.02907

    (N, C, H, W) -> (N, C, H, W). Layers start from PyTorch's default initialisation, in every host.

    Args:
        in_channels (int): C.
        reduction (int): r; the hidden width is max(8, C // r).
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'coord'

    def __init__(self, in_channels: int, reduction: int = 32, impl: str | None = None) -> None:
        super().__init__(in_channels, impl)
        check_int('reduction', reduction, 1)
        hidden = max(8, in_channels // reduction)
        self.conv = PointConv(in_channels, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.act = nn.Hardswish()
        self.height_conv = PointConv(hidden, in_channels)
        self.width_conv = PointConv(hidden, in_channels)

    def gate(self, x: Tensor) -> Tensor:
        plain, a = self._plain(), tensor(self, 'identity_scale')
        if plain and runs_kernels('coord', x, self.impl, [t for group in plain for t in group], a):
            by_batch = self.norm.training
            y, _, _, moments = ops.coord(x, *plain, by_batch, self.norm.eps, a)
            if by_batch:
                move(self.norm, moments)
            return y
        ch, cw = ops.strip_pool(x, impl=self.impl)
        strips = as_input_of(self.conv, torch.cat((ch, cw), 2))
        strips = self.act(batch_norm(self.norm, self.conv(strips)))
        h, w = strips.split((ch.shape[2], cw.shape[2]), 2)
        h, w = self.height_conv(h).sigmoid(), self.width_conv(w).sigmoid()
        return ops.coord_scale(x, h, w, impl=self.impl, identity_scale=a)

    def _plain(self) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]] | None:
        """The tensors of the layers as `ops.coord` takes them; None where it may not stand in for
        these."""
        convs = self.conv, self.height_conv, self.width_conv
        if (
            listened_to()
            or not is_plain_norm(self.norm)
            or not is_plain(self.act, nn.Hardswish)
            or not all(is_plain(conv, PointConv) and conv.bias is not None for conv in convs)
        ):
            return None
        keys = 'weight', 'bias', 'running_mean', 'running_var'
        first, *second = (
            (tensor(conv, 'weight').squeeze(2), tensor(conv, 'bias')) for conv in convs
        )
        return first, [tensor(self.norm, key) for key in keys], [*second[0], *second[1]]
