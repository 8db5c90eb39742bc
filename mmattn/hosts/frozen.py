"""Gates in what is frozen by hand: seen when a training begins, as by then all is decided."""

import warnings
from collections.abc import Iterator
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


def check_frozen(model: nn.Module, before: dict[nn.Module, list[int]]) -> None:
    """Refuse a gate that would stay the identity for good, warn of those that stay as drawn.

    Args:
        model (nn.Module): As it will train.
        before (dict): How often each gate's parameters had been written (`versions`) before
            weights were loaded: such gates as have been loaded are not warned of.

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
    fresh = {
        name: f'{type(gate).__name__} at {name} (output over input {signal(gate, channels):.2f})'
        for name, gate, channels, said in gates_of(model)
        if not said
        and not name.startswith(spared)
        and getattr(gate, NAME, None) is None
        and (flags := [p.requires_grad for p in gate.parameters()])
        and not any(flags)
        and before.get(gate) == versions(gate)
    }
    if fresh:
        warnings.warn(
            f'{_some([*fresh.values()])}: frozen, so that they stay as they were drawn; '
            'requires_grad_(True) lets them learn, a checkpoint of theirs makes them what they '
            'have learnt',
            stacklevel=2,
        )


def _some(found: list[str]) -> str:
    more = f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
    return ', '.join(found[:SHOWN]) + more


@register(HOOKS)
class FrozenGatesHook(Hook):
    """Calls `check_frozen` when a training begins, after all weights are loaded.

    Our runner has it, and so have others by `PlugHook`.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.before: dict[nn.Module, list[int]] | None = None

    def before_run(self, runner: Any) -> None:
        if self.before is None:
            self.before = {gate: versions(gate) for _, gate, _, _ in gates_of(_inner(runner))}

    def before_train(self, runner: Any) -> None:
        """Raises ValueError as `check_frozen` does."""
        check_frozen(_inner(runner), self.before or {})


def _inner(runner: Any) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
