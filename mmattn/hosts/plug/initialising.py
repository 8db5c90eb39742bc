"""What a plugged model's `init_weights` (mmengine's) draws does not reach the gates.

As in the hosts with slots: a gate starts as its own constructor leaves it. A checkpoint of the
model (`Pretrained`) comes last and is loaded into the gates, too.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .modules import placed

_NAME = 'init_weights'


def guard_init(model: nn.Module) -> None:
    """Let `model.init_weights()` spare the gates of `plug`, if the model has such a method."""
    if callable(getattr(type(model), _NAME, None)) and _NAME not in model.__dict__:
        model.__dict__[_NAME] = functools.partial(_init_weights, model)


def unguard_init(model: nn.Module) -> None:
    if isinstance(model.__dict__.get(_NAME), functools.partial):
        del model.__dict__[_NAME]


def _init_weights(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    with gates_apart(model):
        getattr(type(model), _NAME)(model, *args, **kwargs)
    for module in model.modules():
        for cfg in _pretrained(module):
            from mmengine.model import initialize

            initialize(module, cfg)


def _pretrained(module: nn.Module) -> list[dict[str, Any]]:
    """The `Pretrained` of a module's `init_cfg`, if there is a gate in it."""
    cfgs = getattr(module, 'init_cfg', None)
    cfgs = cfgs if isinstance(cfgs, (list, tuple)) else [cfgs]
    found = [c for c in cfgs if isinstance(c, dict) and c.get('type') == 'Pretrained']
    return found if found and any(True for _ in placed(module)) else []


@contextmanager
def gates_apart(model: nn.Module) -> Iterator[None]:
    """Inside, the model has no gates of `plug` among its modules, and the names of all others."""
    taken = []
    for _, owner, place in placed(model):
        for spot in place.spots:
            taken.append((owner, spot.name, owner._modules[spot.name]))
    for owner, name, _ in taken:
        owner._modules[name] = nn.Identity()  # in its place: the order of names stays
    try:
        yield
    finally:
        for owner, name, gate in taken:
            owner._modules[name] = gate
