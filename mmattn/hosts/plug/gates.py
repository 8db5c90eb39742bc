"""Gates from what a user names them by: a class, a function of the channels, a dict, a name."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmattn import attention

# SplitMix64's, by which one seed gives others far from it.
_STRIDE = 0x9E3779B97F4A7C15

Gate = str | dict[str, Any] | nn.Module | Callable[[int], nn.Module]


def build_gate(gate: Gate, channels: int, number: int = 0) -> tuple[nn.Module, str]:
    """A gate for so many channels, and the name that it has in state dicts.

    Drawing its weights takes one number from PyTorch's generator, whatever the gate: a seed gives
    what is drawn afterwards the same with each of them.

    Args:
        gate: A class or function that is called with the channels; a dict with a `type` or a name,
            as in a config: of the registry where mmengine is installed, else of `mmattn.attention`.
        channels (int): C.
        number (int): Tells it from other gates that are built at the same state.

    Raises:
        ValueError: if there is no such gate, or it refuses its arguments.
    """
    if isinstance(gate, nn.Module):
        return gate, abbreviation(type(gate))
    if isinstance(gate, (str, dict)):
        cfg = dict(type=gate) if isinstance(gate, str) else dict(gate)
        if importlib.util.find_spec('mmengine') is not None:
            return _from_registry(cfg, channels, number)
        gate = _ours(cfg)
    if not callable(gate):
        raise ValueError(f'a gate must be a class, a function, a dict or a name, got {gate!r}')
    with _own_random_numbers(number):
        try:
            made = gate(channels)
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            name = getattr(gate, '__name__', repr(gate))
            raise ValueError(f'gate {name}, {channels} channels: {error}') from error
    if not isinstance(made, nn.Module):
        raise ValueError(f'gate {gate!r} must give a module, got {made!r}')
    return made, abbreviation(type(made))


def _from_registry(cfg: dict[str, Any], channels: int, number: int) -> tuple[nn.Module, str]:
    from mmattn.hosts.slots import Plugin

    plugin = Plugin(dict(cfg=cfg, position='behind'), 'plug', ('behind',), 1)
    plugin.number = number
    holder = nn.Module()
    name = plugin.add_to(holder, channels)
    plugin.init_weights()
    return holder.get_submodule(name), name


def _ours(cfg: dict[str, Any]) -> Callable[[int], nn.Module]:
    type_ = cfg.pop('type', None)
    cls = type_ if isinstance(type_, type) else None
    if cls is None and type_ in attention.__all__:
        cls = getattr(attention, type_)
    if cls is None:
        raise ValueError(f'gate {type_!r}: allowed: a class, {", ".join(attention.__all__)}')
    return lambda channels: cls(channels, **cfg)


def abbreviation(cls: type) -> str:
    """A class's name in state dicts: its `_abbr_`, or its own in snake case."""
    found = getattr(cls, '_abbr_', None)
    return found or re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', cls.__name__).lower()


@contextmanager
def _own_random_numbers(number: int) -> Iterator[None]:
    generator = torch.default_generator
    drawn = int(torch.randint(2**62, (), device='cpu'))
    state = generator.get_state()
    generator.manual_seed((drawn + (number + 1) * _STRIDE) % 2**63)
    try:
        yield
    finally:
        generator.set_state(state)
