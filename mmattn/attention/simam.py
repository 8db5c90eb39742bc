from torch import Tensor

from mmattn import ops
from mmattn.registry import register_gate

from .checks import check_number
from .gate import Gate


@register_gate
class SimAM(Gate):
    """SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks,
    https://proceedings.mlr.press/v139/yang21o.html

    (N, C, H, W) -> (N, C, H, W), without parameters. A neuron's weight is the sigmoid of its
    inverse energy, which is high where it differs from its channel's mean (eq. 5 and 6). As in the
    authors' release, the variance is that of a sample: the sum of squares over H W - 1, where the
    paper writes H W. A map of one value has a variance of 0.

    It has no kernels of its own: `impl` changes nothing.

    Args:
        in_channels (int): C.
        e_lambda (float): Lambda, what is added to the variance; > 0.
        impl (str, optional): See above.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'simam'

    def __init__(self, in_channels: int, e_lambda: float = 1e-4, impl: str | None = None) -> None:
        super().__init__(in_channels, impl)
        check_number('e_lambda', e_lambda, 0)
        self.e_lambda = e_lambda

    def gate(self, x: Tensor) -> Tensor:
        z = x.to(ops.stats_dtype(x))
        squares = (z - z.mean((2, 3), keepdim=True)).square()
        others = max(int(x.shape[2]) * int(x.shape[3]) - 1, 1)
        variance = squares.sum((2, 3), keepdim=True) / others
        inverse_energy = squares / (4 * (variance + self.e_lambda)) + 0.5
        return (z * inverse_energy.sigmoid()).to(x.dtype)
