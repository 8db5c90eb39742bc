from torch import Tensor

from mmattn import ops
from mmattn.registry import register_gate

from .checks import check_flags, check_int
from .gate import Gate, as_input_of, listened_to, mlp, mlp_weights, runs_kernels, tensor


@register_gate
class SE(Gate):
    """Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507

    (N, C, H, W) -> (N, C, H, W). Layers start from PyTorch's default initialisation, in every host.

    Args:
        in_channels (int): C.
        reduction (int): r; the MLP's hidden width is max(1, C // r).
        bias (bool): Whether the MLP's two layers have biases.
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'se'

    def __init__(
        self, in_channels: int, reduction: int = 16, bias: bool = False, impl: str | None = None
    ) -> None:
        super().__init__(in_channels, impl)
        check_int('reduction', reduction, 1)
        check_flags(bias=bias)
        self.mlp = mlp(in_channels, max(1, in_channels // reduction), bias)

    def gate(self, x: Tensor) -> Tensor:
        layers = mlp_weights(self.mlp)
        a = tensor(self, 'identity_scale')
        if (
            layers
            and not listened_to()
            and runs_kernels('se', x, self.impl, layers, a)
            and not ops.declines('se', x)
        ):
            return ops.se(x, *layers, a)[0]
        (avg,) = ops.channel_pool(x, impl=self.impl)
        c = self.mlp(as_input_of(self.mlp[0], avg)).sigmoid()
        return ops.channel_scale(x, c, impl=self.impl, identity_scale=a)
