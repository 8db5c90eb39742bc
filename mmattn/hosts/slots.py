"""The one vocabulary of plugin slots, checked before a host builds anything from it.

A host takes `plugins`, a list of dicts with these keys:

- `cfg`: the plugin's type and arguments, as in `dict(type='CAT', reduction=16)`. The host fills in
  `in_channels`. A `postfix` is appended to the plugin's name in the state dict, as in MMDetection.
- `position`: where in the host, as in `'after_conv3'`; each host lists its own.
- `stages` (optional): one bool for each stage of the host, as in `(True, True, True, False)`; None
  is every stage. `'after_stem'` lies in no stage and takes none.

Plugins of one position run in the order of the list.
"""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch.utils.checkpoint as cp
from mmcv.cnn.bricks.plugin import infer_abbr
from mmengine.model import Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmattn.registry import described


def _listed(allowed: Iterable[str]) -> str:
    return f'allowed: {", ".join(allowed)}'


def _choices(wrong: Any, allowed: Sequence[str]) -> str:
    """'allowed: a, b, c', after a guess at what `wrong` was meant to be."""
    close = difflib.get_close_matches(str(wrong), allowed, n=1)
    return (f'did you mean {close[0]!r}? ' if close else '') + _listed(allowed)


def _known_types() -> list[str]:
    """The registered classes that name themselves as plugins do and need no other channel count."""
    found = []
    for name, cls in MODELS.module_dict.items():
        if hasattr(cls, '_abbr_'):
            parameters = inspect.signature(cls).parameters
            if 'in_channels' in parameters and 'out_channels' not in parameters:
                found.append(name)
    return sorted(found)


def _find_type(type_: Any) -> type | None:
    """The class registered as `type_` in the current scope or the root; None if there is none."""
    if inspect.isclass(type_):
        return type_
    with MODELS.switch_scope_and_registry(None) as registry:
        try:
            found = registry.get(type_)
        except (RuntimeError, TypeError, ValueError):  # what registries make of odd names
            return None
    return found if inspect.isclass(found) else None


class Plugin:
    """One checked entry of `plugins`; `add_to` builds its module.

    Args:
        entry (dict): The entry as written in the config; it is not modified.
        host (str): The host's name, for messages.
        positions (Sequence[str]): The host's positions.
        num_stages (int): The host's number of stages.

    Raises:
        ValueError: in one line, with the plugin's type, what is wrong and what is allowed: for a
            missing or unknown key, a type that is not registered, takes no `in_channels` or has the
            name of another, an
            argument the type does not have, a position the host does not have, `stages` of the
            wrong length or not of bools.
    """

    keys = ('cfg', 'position', 'stages')

    def __init__(
        self, entry: dict[str, Any], host: str, positions: Sequence[str], num_stages: int
    ) -> None:
        if not isinstance(entry, dict):
            raise ValueError(f'plugin {entry!r}: must be a dict with keys; {_listed(self.keys)}')
        cfg = entry.get('cfg')
        typed = isinstance(cfg, dict) and 'type' in cfg
        type_ = cfg['type'] if typed else None
        self.name = f'plugin {getattr(type_, "__name__", type_)!r}' if typed else 'plugin'
        for key in entry:
            if key not in self.keys:
                raise ValueError(f'{self.name}: unknown key {key!r}; {_choices(key, self.keys)}')
        if not typed:
            raise ValueError(
                f'plugin: cfg must be a dict with a type, got {cfg!r}; {_listed(_known_types())}'
            )
        self._read_cfg(cfg)
        self._read_position(entry.get('position'), host, positions)
        self._read_stages(entry.get('stages'), host, num_stages)
        self.placed = False

    def _read_cfg(self, cfg: dict[str, Any]) -> None:
        self.args = {**cfg}
        type_ = self.args.pop('type')
        self.cls = _find_type(type_)
        if self.cls is None:
            raise ValueError(
                f'{self.name}: no such type is registered; {_choices(type_, _known_types())}'
            )
        self._check_whose(type_)
        parameters = inspect.signature(self.cls).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if 'in_channels' not in parameters and not open_ended:
            raise ValueError(
                f'{self.name}: no plugin, as it takes no in_channels; {_listed(_known_types())}'
            )
        self.postfix = self.args.pop('postfix', '')
        if not isinstance(self.postfix, (int, str)):
            raise ValueError(f'{self.name}: postfix {self.postfix!r}; allowed: an int or a str')
        allowed = [
            name
            for name, p in parameters.items()
            if name != 'in_channels' and p.kind is not p.VAR_KEYWORD
        ]
        for key in self.args:
            if key == 'in_channels':
                raise ValueError(
                    f'{self.name}: in_channels is filled in by the host; {_listed(allowed)}'
                )
            if key not in allowed and not open_ended:
                raise ValueError(f'{self.name}: unknown argument {key!r}; {_choices(key, allowed)}')

    def _check_whose(self, type_: Any) -> None:
        """A codebase's registry is asked before the root, where our gates are: it may hide one."""
        ours = MODELS.module_dict.get(type_) if isinstance(type_, str) else None
        if ours is not None and ours is not self.cls and ours.__module__.startswith('mmattn.'):
            with MODELS.switch_scope_and_registry(None) as registry:
                scope = registry.scope
            raise ValueError(
                f"{self.name}: mmattn's class and {described(self.cls)} have that name; "
                f'allowed: {MODELS.scope}.{type_} for the first, {scope}.{type_} for the second'
            )

    def _read_position(self, position: Any, host: str, positions: Sequence[str]) -> None:
        if position is None:
            raise ValueError(f'{self.name}: has no position; {_listed(positions)}')
        if position not in positions:
            raise ValueError(
                f'{self.name}: {host} has no position {position!r}; {_choices(position, positions)}'
            )
        self.position = position
        self.name += f' at {position}'

    def _read_stages(self, stages: Any, host: str, num_stages: int) -> None:
        allowed = f'allowed: None or {num_stages} of True and False'
        if self.position == 'after_stem':
            if stages is not None:
                raise ValueError(
                    f'{self.name}: takes no stages, the stem lies before the first; '
                    f'allowed: None, got {stages!r}'
                )
        elif stages is None:
            stages = (True,) * num_stages
        elif not isinstance(stages, Sequence) or not all(isinstance(s, bool) for s in stages):
            raise ValueError(f'{self.name}: stages must hold bools, got {stages!r}; {allowed}')
        elif len(stages) != num_stages:
            raise ValueError(
                f'{self.name}: stages has {len(stages)} flags, but {host} has '
                f'{num_stages} stages; {allowed}'
            )
        self.stages = stages

    def add_to(self, module: nn.Module, in_channels: int) -> str:
        """Build the plugin for `in_channels` channels as a child of `module`; return its name.

        The name is the plugin's abbreviation and postfix, as in MMDetection: 'cat', 'cat1'. Another
        plugin of the same abbreviation in `module` is numbered, from 2, unless it has a postfix.

        Raises:
            ValueError: if the type refuses the arguments, or `module` has a child of that postfix.
        """
        abbr = infer_abbr(self.cls)
        name, number = f'{abbr}{self.postfix}', 2
        while hasattr(module, name):
            if self.postfix != '':
                raise ValueError(
                    f'{self.name}: the name {name!r} is taken; '
                    f'allowed: any postfix but {self.postfix!r}'
                )
            name, number = f'{abbr}{number}', number + 1
        try:
            layer = self.cls(in_channels=in_channels, **self.args)
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            reason = str(error) or f'refused by a bare {type(error).__name__}'
            raise ValueError(f'{self.name}, {in_channels} channels: {reason}') from error
        module.add_module(name, layer)
        self.placed = True
        return name


class Slots:
    """The checked plugins of one host.

    Args:
        plugins (Sequence[dict], optional): See the top of this file. None is no plugins.
        host (str): The host's name, for messages.
        positions (Sequence[str]): The host's positions.
        num_stages (int): The host's number of stages.

    Raises:
        ValueError: if `plugins` is no list, or for an entry as in `Plugin`.
    """

    def __init__(
        self,
        plugins: Sequence[dict[str, Any]] | None,
        host: str,
        positions: Sequence[str],
        num_stages: int,
    ) -> None:
        if plugins is None:
            plugins = ()
        if not isinstance(plugins, (list, tuple)):
            raise ValueError(
                f'plugins must be a list of dicts, got {plugins!r}; keys {_listed(Plugin.keys)}'
            )
        self.plugins = [Plugin(entry, host, positions, num_stages) for entry in plugins]

    def at(self, position: str, stage: int | None = None) -> list[Plugin]:
        """The plugins of a position, in list order; stages count from 0, None is the stem's."""
        return [
            p for p in self.plugins if p.position == position and (stage is None or p.stages[stage])
        ]

    def check_placed(self) -> None:
        """Raise ValueError if a plugin found no place: a gate is never lost without a word."""
        for plugin in self.plugins:
            if not plugin.placed:
                raise ValueError(
                    f'{plugin.name}: no block of stages {plugin.stages} has this '
                    'position; allowed: at least one stage that has, or no such entry'
                )


class PluginSequence(Sequential):
    """The plugins after the stem or a stage, one after the other. (N, C, H, W) -> (N, C, H, W).

    Args:
        plugins (Sequence[Plugin]): What runs, in this order; none leaves the input as it is.
        in_channels (int): C.
        with_cp (bool): Whether to save activation memory by a second forward, as the blocks do.
    """

    def __init__(self, plugins: Sequence[Plugin], in_channels: int, with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp = with_cp
        # MMPreTrain's ResNet reads a stage's width from its last child, which this may be.
        self.out_channels = in_channels
        for plugin in plugins:
            plugin.add_to(self, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(super().forward, x, use_reentrant=False)
        return super().forward(x)


class StemSlot:
    """The slot after a backbone's stem, its child `after_stem`, frozen with the stem."""

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if self.frozen_stages >= 0:
            self.after_stem.eval().requires_grad_(False)
