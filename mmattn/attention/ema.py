import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmattn import ops
from mmattn.registry import register_gate

from .checks import check_int
from .gate import Gate


def _wide(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` in the precision of x, also where a converted model has the layer in 16 bits.

    These layers see the whole map, whose sums overflow in 16 bits.
    """
    if all(p.dtype is x.dtype for p in layer.parameters()):
        return layer(x)
    return functional_call(layer, {n: p.to(x.dtype) for n, p in layer.named_parameters()}, (x,))


@register_gate
class EMA(Gate):
    """Efficient Multi-Scale Attention Module with Cross-Spatial Learning, ICASSP 2023,
    https://arxiv.org/abs/2305.13563

    (N, C, H, W) -> (N, C, H, W). The channels are cut into G groups, which share their layers. In
    each, a branch of strips (as coordinate attention) and one of a 3 x 3 convolution weigh each
    other's maps by their pooled channels; the sigmoid of the sum gates the group. Layers start from
    PyTorch's default initialisation, in every host.

    It has no kernels of its own: `impl` changes nothing.

    Args:
        in_channels (int): C.
        factor (int): G, at most: where it does not divide C, there are as many groups as divide
            both (the authors' release takes no such C).
        impl (str, optional): See above.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'ema'

    def __init__(self, in_channels: int, factor: int = 32, impl: str | None = None) -> None:
        super().__init__(in_channels, impl)
        check_int('factor', factor, 1)
        self.groups = math.gcd(in_channels, factor)
        width = in_channels // self.groups
        self.norm = nn.GroupNorm(width, width)
        self.point_conv = nn.Conv2d(width, width, 1)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def gate(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        share = channels // self.groups
        z = x.to(ops.stats_dtype(x)).reshape(n * self.groups, share, height, width)
        strips = torch.cat((z.mean(3), z.mean(2)), 2).unsqueeze(3)
        h, w = _wide(self.point_conv, strips).sigmoid().split((height, width), 2)
        by_strips = self._normalise(z * h * w.transpose(2, 3))
        by_conv = _wide(self.conv, z)
        weights = _weighed(by_strips, by_conv) + _weighed(by_conv, by_strips)
        factors = weights.sigmoid().reshape(n, self.groups, 1, height, width)
        return (x * factors.expand(-1, -1, share, -1, -1).reshape(x.shape)).to(x.dtype)

    def _normalise(self, z: Tensor) -> Tensor:
        """The group norm, also of one value, which has no variance and PyTorch refuses."""
        if z.numel() == z.shape[1]:
            return self.norm.bias.to(z.dtype).view(1, -1, 1, 1) + 0 * z
        return _wide(self.norm, z)


def _weighed(by: Tensor, maps: Tensor) -> Tensor:
    """The average of maps (N, C, H, W) by the softmax of the channels of another: (N, 1, H, W)."""
    weights = by.mean((2, 3)).softmax(1).unsqueeze(1)
    return torch.bmm(weights, maps.flatten(2)).unflatten(2, maps.shape[2:])
