"""Gates that nobody has trained: warned of on pretrained weights, and where they are frozen.

What is frozen by hand is seen when a training begins, as by then all is decided.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from mmattn.registry import register

from .host import PluginHost
from .identity import NAME, identity_scales, signal, versions
from .plug.modules import placed

SHOWN = 3


def gates_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, int, bool]]:
    """Every gate in a slot or put there by `plug`: its name, itself, its channels, and whether the
    model has said already that it is frozen."""
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, PluginHost):
            for plugin in module._slots.plugins:
                said = plugin in module._frozen_plugins
                for gate, width in zip(plugin.modules, plugin.widths, strict=True):
                    yield names.get(gate, plugin.name), gate, width, said
    for _, owner, place in placed(model):
        for spot in place.spots:
            gate = getattr(owner, spot.name)
            yield names[gate], gate, spot.channels, place.frozen


def followers(model: nn.Module) -> tuple[str, ...]:
    """What does not learn as it follows what does, as prefixes of names: averages of weights, and
    parts that have a twin which learns (the teacher beside a student)."""
    found = [name for name, m in model.named_modules() if name and hasattr(m, 'update_parameters')]
    parts = {
        name: (any(p.requires_grad for p in part.parameters()), _shapes(part))
        for name, part in model.named_children()
    }
    learning = [shapes for learns, shapes in parts.values() if learns]
    found += [n for n, (learns, shapes) in parts.items() if not learns and shapes in learning]
    return tuple(f'{name}.' for name in found)


def _shapes(part: nn.Module) -> dict[str, Any]:
    return {name: parameter.shape for name, parameter in part.named_parameters()}


@dataclass(frozen=True)
class Before:
    """A gate as it is before weights are loaded: `written` is how often each parameter was
    (`versions`), `said` whether the model has said already that it is frozen."""

    name: str
    channels: int
    said: bool
    written: list[int]


def gates_before(model: nn.Module) -> dict[nn.Module, Before]:
    """Every gate of a model, to be asked after weights are loaded which ones had any."""
    return {
        gate: Before(name, channels, said, versions(gate))
        for name, gate, channels, said in gates_of(model)
    }


def _fresh(before: dict[nn.Module, Before]) -> Iterator[tuple[nn.Module, Before]]:
    """The gates that have learnt nothing, which nobody was told of and that are no identity."""
    for gate, was in before.items():
        begins = getattr(gate, NAME, None) is not None
        if was.written and was.written == versions(gate) and not (was.said or begins):
            yield gate, was


def _described(gate: nn.Module, was: Before) -> str:
    share = signal(gate, was.channels)
    return f'{type(gate).__name__} at {was.name} (output over input {share:.2f})'


def warn_of_fresh(before: dict[nn.Module, Before]) -> None:
    """Warn of gates that a checkpoint, which has just been loaded, has not changed."""
    changing = [
        (gate, was)
        for gate, was in _fresh(before)
        if not abs(signal(gate, was.channels) - 1) < 0.02
    ]
    if changing:
        number = f' and {len(changing) - 1} more gates' if len(changing) > 1 else ''
        warnings.warn(
            f'{_described(*changing[0])}{number}: fresh on pretrained weights, as the checkpoint '
            "has no such gates; start='identity' in their entry begins with what the pretrained "
            'layers know',
            stacklevel=3,
        )


def check_frozen(model: nn.Module, before: dict[nn.Module, Before]) -> None:
    """Refuse a gate that would stay the identity for good, warn of those that stay as drawn.

    Args:
        model (nn.Module): As it will train.
        before (dict): Of `gates_before`, before weights were loaded.

    Raises:
        ValueError: for an `identity_scale` that is 0 and does not learn.
    """
    spared = followers(model)
    still = [
        name
        for name, scale in identity_scales(model).items()
        if not (name.startswith(spared) or scale.requires_grad or scale.any())
    ]
    if still:
        raise ValueError(
            f'{_some(still)}: frozen at 0, where a gate stays the identity for good; allowed: '
            f'requires_grad_(True) for {NAME}, or gates in what learns alone'
        )
    fresh = [
        _described(gate, was)
        for gate, was in _fresh(before)
        if not was.name.startswith(spared) and not any(p.requires_grad for p in gate.parameters())
    ]
    if fresh:
        warnings.warn(
            f'{_some(fresh)}: frozen, so that they stay as they were drawn; requires_grad_(True) '
            'lets them learn, a checkpoint of theirs makes them what they have learnt',
            stacklevel=2,
        )


def _some(found: list[str]) -> str:
    more = f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
    return ', '.join(found[:SHOWN]) + more


@register(HOOKS)
class FreshGatesHook(Hook):
    """Calls `check_frozen` when a training begins, after all weights are loaded.

    Our runner has it, and others have it by `PlugHook`. There it calls `warn_of_fresh` as well,
    which our runner does by itself.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.before: dict[nn.Module, Before] | None = None

    def before_run(self, runner: Any) -> None:
        if self.before is None:
            self.before = gates_before(_inner(runner))

    def before_train(self, runner: Any) -> None:
        """Raises ValueError as `check_frozen` does."""
        if runner._load_from is not None and not getattr(runner, 'warns_of_fresh', False):
            warn_of_fresh(self.before or {})
        check_frozen(_inner(runner), self.before or {})


def _inner(runner: Any) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
