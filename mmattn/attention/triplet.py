import torch
from torch import Tensor, nn

from mmattn import ops
from mmattn.registry import register_gate

from .checks import check_flags, check_odd
from .gate import Gate, SpatialConv, as_input_of, batch_norm


class Branch(nn.Module):
    """Attention over two of a map's three axes, from the third's maximum and average (Z-pool).

    Args:
        kernel_size (int): Of the convolution, odd.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = SpatialConv(2, kernel_size)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor, dim: int, impl: str | None = None) -> Tensor:
        """(N, C, H, W) -> factors of the same four axes, of which `dim` has length 1."""
        pooled = torch.stack((x.max(dim).values, x.mean(dim)), 1)
        factors = batch_norm(self.norm, self.conv(as_input_of(self.conv, pooled), impl=impl))
        return factors.sigmoid().squeeze(1).unsqueeze(dim)


@register_gate
class TripletAttention(Gate):
    """Rotate to Attend: Convolutional Triplet Attention Module, https://arxiv.org/abs/2010.03045

    (N, C, H, W) -> (N, C, H, W). Three branches look along height, width and channels; the output
    is the average of the map times the factors of each (section 3.2). Each has a batch norm of
    momentum 0.01, as in the authors' release. Layers start from PyTorch's default initialisation,
    in every host. Only the convolutions run on kernels.

    Args:
        in_channels (int): C; the parameters do not depend on it.
        kernel_size (int): Of the convolutions, odd.
        spatial (bool): Whether the branch that looks along the channels is there.
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'triplet'

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 7,
        spatial: bool = True,
        impl: str | None = None,
    ) -> None:
        super().__init__(in_channels, impl)
        check_odd('kernel_size', kernel_size)
        check_flags(spatial=spatial)
        self.channel_width = Branch(kernel_size)
        self.height_channel = Branch(kernel_size)
        self.height_width = Branch(kernel_size) if spatial else None

    def gate(self, x: Tensor) -> Tensor:
        z = x.to(ops.stats_dtype(x))
        factors = [
            self.channel_width(z, 2, self.impl),
            # Transposed, so that its kernel's rows are heights and its columns channels.
            self.height_channel(z.transpose(1, 2), 3, self.impl).transpose(1, 2),
        ]
        if self.height_width is not None:
            factors.append(self.height_width(z, 1, self.impl))
        total = sum(f.to(z.dtype) for f in factors)
        return (z * (total / len(factors))).to(x.dtype)
