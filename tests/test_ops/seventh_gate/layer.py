from torch import Tensor

from mmattn import ops
from mmattn.attention.gate import Gate
from mmattn.registry import register_gate

from .operator import energy_gate, equations


@register_gate
class EnergyGate(Gate):
    """SimAM's equation, https://proceedings.mlr.press/v139/yang21o.html, with a kernel of its own.

    Args:
        in_channels (int): C.
        strength (float): lambda, what is added to a channel's variance.
        impl (str, optional): 'reference', 'fast', or None for the global default.
    """

    _abbr_ = 'energy'

    def __init__(self, in_channels: int, strength: float = 1e-4, impl: str | None = None) -> None:
        super().__init__(in_channels, impl)
        self.strength = strength

    def gate(self, x: Tensor) -> Tensor:
        fast = ops.runs_kernels(x, self.impl)
        return (energy_gate if fast else equations)(x, self.strength)
