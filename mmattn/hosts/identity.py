"""A gate that starts as the identity: y = x + a (g(x) - x) with a learnt `a` that starts from 0.

At the first step the model computes what it would without the gate, bit for bit; `a` has a gradient
at once, the gate from the second step (before, its gradients are zeros, not None). There is no
shortcut at a = 0, so that nothing changes when `a` leaves it.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

# What `start` may be: as the paper has it, an `a` for each channel, one `a` for the gate.
STARTS = (None, 'identity', 'identity-scalar')
NAME = 'identity_scale'


class Blend:
    """The forward hook of a gate that has an `identity_scale`: x + a (y - x), in x's dtype."""

    def __call__(self, gate: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        return blend(args[0], y, gate.identity_scale)


def blend(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """x + a (y - x) of (N, C, H, W) and an `a` of (C,) or (1,), in x's dtype."""
    return x + scale.to(x.dtype).view(1, -1, 1, 1) * (y.to(x.dtype) - x)


def check_start(start: Any, owner: str) -> None:
    """Raise ValueError unless `start` is one of `STARTS`."""
    if not any(start is choice or (choice is not None and start == choice) for choice in STARTS):
        raise ValueError(f'{owner}: start {start!r}; allowed: {", ".join(map(repr, STARTS))}')


def start_as_identity(gate: nn.Module, channels: int, start: str, owner: str = 'gate') -> None:
    """Give a gate, ours or foreign, its `identity_scale`; its other keys keep their names.

    Args:
        gate (nn.Module): Maps (N, C, H, W) to the same.
        channels (int): C.
        start (str): 'identity' for an `a` of each channel, 'identity-scalar' for one.
        owner (str): For messages.

    Raises:
        ValueError: for a gate that changes its input in place, or gives another shape:
            x + a (y - x) is then no identity.
    """
    values = channels if start == 'identity' else 1
    first = next((p for p in gate.parameters() if p.is_floating_point()), None)
    like = {} if first is None else dict(device=first.device, dtype=first.dtype)
    _check_pure(gate, channels, owner)
    gate.register_parameter(NAME, nn.Parameter(torch.zeros(values, **like)))
    gate.register_forward_hook(Blend())


def _check_pure(gate: nn.Module, channels: int, owner: str) -> None:
    """Refuse what writes into its input or returns another shape, on the meta device."""
    try:
        made = copy.deepcopy(gate).to('meta').eval()
        x = torch.empty(2, channels, 8, 12, device='meta')
        version = x._version
        with torch.no_grad():
            y = made(x)
    except Exception:  # what has no meta form is refused when it runs, by its shapes
        return
    if x._version != version or y is x:
        raise ValueError(
            f"{owner}: changes its input in place, so that start='identity' would be no identity; "
            'allowed: a gate that leaves its input alone (inplace=False)'
        )
    if not isinstance(y, Tensor) or y.shape != x.shape:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f'{owner}: gives {shape} for {tuple(x.shape)}; allowed: a gate that keeps the shape'
        )


def identity_scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """The `identity_scale` of every gate of a model by name: by all of it, not by a part."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition('.')[2] == NAME
    }


def signal(gate: nn.Module, channels: int) -> float:
    """The mean of a gate's output over that of its input, as it is now; NaN if it cannot be run.

    The input is random, positive and small: what a gate does to real maps is near that.
    """
    first = next((p for p in gate.parameters() if p.is_floating_point()), None)
    device = torch.device('cpu') if first is None else first.device
    if device.type == 'meta':
        return math.nan
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, channels, 8, 12, generator=generator)
    x = x.to(device) if first is None else x.to(first)
    modes = [(module, module.training) for module in gate.modules()]
    try:
        gate.eval()
        with torch.no_grad():
            return float(gate(x).float().mean() / x.float().mean())
    except Exception:  # it is only for words
        return math.nan
    finally:
        for module, training in modes:
            module.training = training


def versions(module: nn.Module) -> list[int]:
    """How often each parameter was written: what a checkpoint has loaded has another number."""
    return [parameter._version for parameter in module.parameters()]
