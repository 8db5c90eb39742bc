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

from mmattn import ops

# What `start` may be: as the paper has it, an `a` for each channel, one `a` for the gate.
STARTS = (None, 'identity', 'identity-scalar')
NAME = 'identity_scale'


class Blend:
    """The forward hook of a gate that has an `identity_scale`: x + a (y - x), in x's dtype."""

    def __call__(self, gate: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        return blend(args[0], y, gate.get_parameter(NAME))


def blend(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """x + a (y - x) of (N, C, H, W) and an `a` of (C,) or (1,), in x's dtype.

    As x - (0 + a (x - y)): what is subtracted at a = 0 is +0.0, whatever the sign of x - y, and
    leaves -0.0 as it is.
    """
    a = scale.to(x.dtype).view(1, -1, 1, 1)
    return x - torch.addcmul(x.new_zeros(()), a, x - y.to(x.dtype))


def check_start(start: Any, owner: str) -> None:
    """Raise ValueError unless `start` is one of `STARTS`."""
    if not any(start is choice or (choice is not None and start == choice) for choice in STARTS):
        raise ValueError(f'{owner}: start {start!r}; allowed: {", ".join(map(repr, STARTS))}')


def start_as_identity(gate: nn.Module, channels: int, start: str, owner: str = 'gate') -> None:
    """Give a gate, ours or foreign, its `identity_scale`; its other keys keep their names.

    Our gates take it into their operators, at no pass over the map; others have it in a hook.

    Args:
        gate (nn.Module): Maps (N, C, H, W) to the same.
        channels (int): C.
        start (str): 'identity' for an `a` of each channel, 'identity-scalar' for one.
        owner (str): For messages.

    Raises:
        ValueError: for a gate that changes its input in place, gives another shape, or is the
            identity as it is: x + a (g(x) - x) is then no identity, or stays one for good.
    """
    values = channels if start == 'identity' else 1
    first = next((p for p in gate.parameters() if p.is_floating_point()), None)
    _check_fit(gate, channels, owner)
    zeros = torch.zeros(values) if first is None else first.new_zeros(values)
    gate.register_parameter(NAME, nn.Parameter(zeros))
    tried = _tried(gate, channels)
    if tried is None or not torch.equal(*tried):  # it does not know what the parameter means
        gate.register_forward_hook(Blend())


def _check_fit(gate: nn.Module, channels: int, owner: str) -> None:
    tried = _tried(gate, channels)
    if tried is None:  # what cannot be tried is refused when it runs, by its shapes
        return
    x, y = tried
    if y is x or not torch.equal(x, _input(channels)):
        raise ValueError(
            f"{owner}: changes its input in place, so that start='identity' would be no identity; "
            'allowed: a gate that leaves its input alone (inplace=False)'
        )
    if not isinstance(y, Tensor) or y.shape != x.shape:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f'{owner}: gives {shape} for {tuple(x.shape)}; allowed: a gate that keeps the shape'
        )
    if torch.equal(x, y):
        raise ValueError(
            f'{owner}: starts as the identity by itself (a factor of its own is 0), and would stay '
            'it for good beside another factor of 0; allowed: start=None'
        )


def _input(channels: int) -> Tensor:
    """A map that is random, positive and small: what a gate does to real ones is near that."""
    generator = torch.Generator(device='cpu').manual_seed(0)
    return torch.rand(2, channels, 8, 12, generator=generator, device='cpu')


def _tried(gate: nn.Module, channels: int) -> tuple[Tensor, Any] | None:
    """Input and output of a copy of a gate on the CPU, in eval mode; None if it cannot be run.

    A gate without numbers (on the meta device) has some made up.
    """
    try:
        made = copy.deepcopy(gate)
        if any(t.is_meta for t in (*gate.parameters(), *gate.buffers())):
            made = made.to_empty(device='cpu')
            generator = torch.Generator(device='cpu').manual_seed(0)
            for parameter in made.parameters():
                parameter.data.normal_(0, 0.5, generator=generator)
            for buffer in made.buffers():
                buffer.fill_(1)
            if getattr(gate, NAME, None) is not None:
                getattr(made, NAME).data.zero_()
        made = made.to('cpu', torch.float32).eval()
        if getattr(made, 'impl', None) is not None:
            setattr(made, 'impl', 'reference')  # noqa: B010 (a module takes tensors, say its types)
        x = _input(channels)
        with torch.no_grad(), ops.use_impl('reference'):
            return x, made(x)
    except Exception:
        return None


def identity_scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """The `identity_scale` of every gate of a model by name: by all of it, not by a part."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition('.')[2] == NAME
    }


def signal(gate: nn.Module, channels: int) -> float:
    """The mean of a gate's output over that of its input, as it is now; NaN if it cannot be run."""
    if any(t.is_meta for t in gate.parameters()):
        return math.nan
    tried = _tried(gate, channels)
    return math.nan if tried is None else float(tried[1].mean() / tried[0].mean())


def versions(module: nn.Module) -> list[int]:
    """How often each parameter was written: what a checkpoint has loaded has another number."""
    return [parameter._version for parameter in module.parameters()]
