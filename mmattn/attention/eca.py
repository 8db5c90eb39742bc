import math

from torch import Tensor, nn

from mmattn import ops
from mmattn.registry import register_gate

from .checks import check_number, check_odd
from .gate import Gate, as_input_of, is_plain, listened_to, runs_kernels, tensor


class ChannelConv(nn.Conv1d):
    """A convolution along the channels of a descriptor, (N, C) -> (N, C), by `ops.spatial_conv`."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, avg: Tensor, impl: str | None = None) -> Tensor:
        # A descriptor is a map one position high.
        out = ops.spatial_conv(avg[:, None, None], self.weight.unsqueeze(2), impl=impl)
        return out.squeeze(1) if self.bias is None else out.squeeze(1) + self.bias


@register_gate
class ECA(Gate):
    """ECA-Net: Efficient Channel Attention, https://arxiv.org/abs/1910.03151

    (N, C, H, W) -> (N, C, H, W). The convolution starts from PyTorch's default initialisation,
    in every host.

    Args:
        in_channels (int): C.
        kernel_size (int, optional): How many neighbouring channels see each other, odd. None takes
            int(|(log2(C) + b) / gamma|), or the next integer where that is even.
        gamma (float): See `kernel_size`; > 0.
        b (float): See `kernel_size`.
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'eca'

    def __init__(
        self,
        in_channels: int,
        kernel_size: int | None = None,
        gamma: float = 2,
        b: float = 1,
        impl: str | None = None,
    ) -> None:
        super().__init__(in_channels, impl)
        check_number('gamma', gamma, 0)
        check_number('b', b)
        if kernel_size is None:
            kernel_size = int(abs((math.log2(in_channels) + b) / gamma)) // 2 * 2 + 1
        check_odd('kernel_size', kernel_size)
        self.conv = ChannelConv(kernel_size)

    def gate(self, x: Tensor) -> Tensor:
        a = tensor(self, 'identity_scale')
        if is_plain(self.conv, ChannelConv) and self.conv.bias is None and not listened_to():
            kernel = tensor(self.conv, 'weight')
            if runs_kernels('eca', x, self.impl, [kernel], a):
                return ops.eca(x, kernel, a)[0]
        (avg,) = ops.channel_pool(x, impl=self.impl)
        c = self.conv(as_input_of(self.conv, avg), impl=self.impl).sigmoid()
        return ops.channel_scale(x, c, impl=self.impl, identity_scale=a)
