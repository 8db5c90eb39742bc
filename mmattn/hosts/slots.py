"""The one vocabulary of plugin slots, checked before a host builds anything from it.

A host takes `plugins`, a list of dicts with these keys:

- `cfg`: the plugin's type and arguments, as in `dict(type='CAT', reduction=16)`. The host fills in
  `in_channels`, or what the type calls it (`CHANNELS`). A class without a name in a registry has
  its full one, as in `dict(type='mmdet.models.layers.SELayer')`. A `postfix` is appended to the
  plugin's name in the state dict, as in MMDetection. An `init_cfg`, as mmengine's, draws the
  plugin's layers; without one they start as its own constructor leaves them, whatever the host
  draws its layers from.
- `position`: where in the host, as in `'after_conv3'`; each host lists its own.
- `stages` (optional): one bool for each stage of the host, as in `(True, True, True, False)`; None
  is every stage. `'after_stem'` lies in no stage and takes none.
- `norm_eval` (optional): whether the plugin's batch norms keep their running statistics while the
  host trains. `'host'`, the default, is the host's own `norm_eval`.
- `norm_cfg` (optional): `'host'` makes the plugin's batch norms what the host's `norm_cfg` says:
  BN, SyncBN or GN, learnt or not. None, the default, leaves them as the plugin made them.
- `freeze` (optional): whether the plugin is frozen where its stage is; True is the default.
- `start` (optional): `'identity'` lets the host compute at first what it would without the plugin
  (`identity`), by a learnt factor for each channel, `'identity-scalar'` by one. None, the default,
  starts as the plugin's paper does.

A host's `plugin_defaults` holds values of the last four for the entries that give none. Plugins of
one position run in the order of the list.
"""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint as cp
from mmcv.cnn.bricks.plugin import infer_abbr
from mmengine.model import BaseModule, Sequential, initialize
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import Tensor, nn

from mmattn.registry import described

from .identity import STARTS, signal, start_as_identity

# What layers call their channels; the first that a layer has counts. Ours, mmcv's and mmdet's
# plugins have `in_channels`, SELayer of mmdet and mmpretrain and most of timm's `channels`.
CHANNELS = (
    'in_channels',
    'channels',
    'num_channels',
    'channel',
    'dim',
    'in_dim',
    'input_dim',
    'embed_dims',
    'num_features',
    'inplanes',
    'in_planes',
    'gate_channels',
    'inp',
)

# The keys of an entry for which a host has defaults: their own default, and what is allowed.
SWITCHES = {
    'norm_eval': ('host', ('host', True, False)),
    'norm_cfg': (None, ('host', None)),
    'freeze': (True, (True, False)),
    'start': (None, STARTS),
}


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


def find_type(type_: Any) -> type | None:
    """The class registered as `type_` in the current scope or the root; None if there is none."""
    if inspect.isclass(type_):
        return type_
    with MODELS.switch_scope_and_registry(None) as registry:
        try:
            found = registry.get(type_)
        except (RuntimeError, TypeError, ValueError):  # what registries make of odd names
            return None
    return found if inspect.isclass(found) else None


def _check_switches(values: dict[str, Any], owner: str) -> None:
    """Raise ValueError for a value of `SWITCHES` that is not allowed."""
    for key, value in values.items():
        allowed = SWITCHES[key][1]
        # By identity, but for strings: 1 is no True.
        named = isinstance(value, str) and value in allowed
        if not named and not any(value is choice for choice in allowed):
            raise ValueError(
                f'{owner}: {key} {value!r}; {_listed(repr(choice) for choice in allowed)}'
            )


def _check_init_cfg(init_cfg: Any, owner: str) -> None:
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    known = sorted(WEIGHT_INITIALIZERS.module_dict)
    if not cfgs or not all(isinstance(cfg, dict) and cfg.get('type') in known for cfg in cfgs):
        raise ValueError(
            f'{owner}: init_cfg must be a dict, or a list of dicts, with a type, '
            f'got {init_cfg!r}; {_listed(known)}'
        )


@contextmanager
def _own_random_numbers(*place: int) -> Iterator[None]:
    """Draws inside take nothing from the generator outside, which only gives them their seed.

    So a seed gives a host the same weights with any plugins or none, and runs pair by their seeds.

    Args:
        place (int): Numbers that tell this plugin from others that are built at the same state.
    """
    generator = torch.default_generator
    state = generator.get_state()
    # On the CPU, where its value can be read, whatever device the model is built on.
    drawn = int(torch.randint(2**62, (), device='cpu'))
    generator.manual_seed(int(np.random.SeedSequence((drawn, *place)).generate_state(1)[0]))
    try:
        yield
    finally:
        generator.set_state(state)


class Plugin:
    """One checked entry of `plugins`; `add_to` builds its modules and keeps them in `modules`.

    Args:
        entry (dict): The entry as written in the config; it is not modified.
        host (str): The host's name, for messages.
        positions (Sequence[str]): The host's positions.
        num_stages (int): The host's number of stages.
        defaults (dict, optional): Values of `SWITCHES` for an entry that does not give its own.

    Raises:
        ValueError: in one line, with the plugin's type, what is wrong and what is allowed: for a
            missing or unknown key, a type that is not registered, takes no `in_channels` or has the
            name of another, an argument the type does not have, a position the host does not have,
            `stages` of the wrong length or not of bools, another value of a switch than is allowed.
    """

    keys = ('cfg', 'position', 'stages', *SWITCHES)

    start: Any  # one of `SWITCHES`, as the others are

    def __init__(
        self,
        entry: dict[str, Any],
        host: str,
        positions: Sequence[str],
        num_stages: int,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(entry, dict):
            raise ValueError(f'plugin {entry!r}: must be a dict with keys; {_listed(self.keys)}')
        cfg: Any = entry.get('cfg')
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
        own = {key: entry[key] for key in SWITCHES if key in entry}
        _check_switches(own, self.name)
        for key, (default, _) in SWITCHES.items():
            setattr(self, key, own.get(key, (defaults or {}).get(key, default)))
        self.modules: list[nn.Module] = []
        self.widths: list[int] = []
        self.number = 0

    def _read_cfg(self, cfg: dict[str, Any]) -> None:
        self.args = {**cfg}
        type_ = self.args.pop('type')
        self.cls: Any = find_type(type_)
        if self.cls is None:
            raise ValueError(
                f'{self.name}: no such type is registered; {_choices(type_, _known_types())}'
            )
        self._check_whose(type_)
        parameters = inspect.signature(self.cls).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        found = [name for name in CHANNELS if name in parameters]
        if not found and not open_ended:
            raise ValueError(
                f'{self.name}: no plugin, as it takes no in_channels, nor {", ".join(CHANNELS[1:])}'
                f'; {_listed(_known_types())}'
            )
        self.channels_name = found[0] if found else CHANNELS[0]
        self.init_cfg = None
        # One that takes anything passes it on to its base class, if that has a use for it.
        takes = 'init_cfg' in parameters or (open_ended and issubclass(self.cls, BaseModule))
        if not takes and 'init_cfg' in self.args:
            self.init_cfg = self.args.pop('init_cfg')
            _check_init_cfg(self.init_cfg, self.name)
        self.postfix = self.args.pop('postfix', '')
        if not isinstance(self.postfix, (int, str)):
            raise ValueError(f'{self.name}: postfix {self.postfix!r}; allowed: an int or a str')
        allowed = [
            name
            for name, p in parameters.items()
            if name != self.channels_name and p.kind is not p.VAR_KEYWORD
        ]
        for key in self.args:
            if key == self.channels_name:
                raise ValueError(f'{self.name}: {key} is filled in by the host; {_listed(allowed)}')
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
            with _own_random_numbers(self.number, len(self.modules)):
                layer = self.cls(**{self.channels_name: in_channels}, **self.args)
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            reason = str(error) or f'refused by a bare {type(error).__name__}'
            raise ValueError(f'{self.name}, {in_channels} channels: {reason}') from error
        if self.start is not None:
            start_as_identity(layer, in_channels, self.start, self.name)
        module.add_module(name, layer)
        self.modules.append(layer)
        self.widths.append(in_channels)
        return name

    def signal(self) -> float:
        """What the first module's output is of its input, on average; 1 for an identity."""
        return signal(self.modules[0], self.widths[0])

    def init_weights(self) -> None:
        """Draw the modules' layers as the config or the plugin's own class has it, if they do."""
        for number, module in enumerate(self.modules):
            with _own_random_numbers(self.number, number):
                if self.init_cfg is not None:
                    initialize(module, self.init_cfg)
                elif isinstance(module, BaseModule):
                    module.init_weights()


class Slots:
    """The checked plugins of one host.

    Args:
        plugins (Sequence[dict], optional): See the top of this file. None is no plugins.
        host (str): The host's name, for messages.
        positions (Sequence[str]): The host's positions.
        num_stages (int): The host's number of stages.
        defaults (dict, optional): The host's `plugin_defaults`.

    Raises:
        ValueError: if `plugins` is no list, for an entry as in `Plugin`, for `plugin_defaults` that
            are no dict, or have another key or value than is allowed.
    """

    def __init__(
        self,
        plugins: Sequence[dict[str, Any]] | None,
        host: str,
        positions: Sequence[str],
        num_stages: int,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        if plugins is None:
            plugins = ()
        if not isinstance(plugins, (list, tuple)):
            raise ValueError(
                f'plugins must be a list of dicts, got {plugins!r}; keys {_listed(Plugin.keys)}'
            )
        defaults = {} if defaults is None else defaults
        if not isinstance(defaults, dict):
            raise ValueError(
                f'plugin_defaults must be a dict, got {defaults!r}; keys {_listed(SWITCHES)}'
            )
        for key in defaults:
            if key not in SWITCHES:
                raise ValueError(f'plugin_defaults: no key {key!r}; {_choices(key, [*SWITCHES])}')
        _check_switches(defaults, 'plugin_defaults')
        self.positions, self.num_stages = tuple(positions), num_stages
        self.plugins = [Plugin(entry, host, positions, num_stages, defaults) for entry in plugins]
        for number, plugin in enumerate(self.plugins):
            plugin.number = number

    def at(self, position: str, stage: int | None = None) -> list[Plugin]:
        """The plugins of a position, in list order; stages count from 0, None is the stem's."""
        return [
            p for p in self.plugins if p.position == position and (stage is None or p.stages[stage])
        ]

    def check_placed(self) -> None:
        """Raise ValueError if a plugin found no place: a gate is never lost without a word."""
        for plugin in self.plugins:
            if not plugin.modules:
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
