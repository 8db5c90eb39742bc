"""What every host does with its plugins: starts them, freezes them, trains their norms."""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.model import PretrainedInit, initialize
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .identity import NAME, versions
from .slots import Plugin, find_type


def _described(plugins: Iterable[Plugin]) -> str:
    """Plugins with what they do to the signal as they are, for warnings."""
    return '; '.join(
        sorted(f'{plugin.name} (output over input {plugin.signal():.2f})' for plugin in plugins)
    )


def _as_in_host(norm: _BatchNorm, cfg: dict[str, Any], owner: str) -> nn.Module:
    """A batch norm as the norm of the host's `norm_cfg`, with its own values and momentum.

    It stays a batch norm of its own dimension where the host has batch norms. A group norm has as
    many of the `num_groups` as divide its channels.

    Raises:
        ValueError: for another type of norm than `BN`, `SyncBN` and `GN`.
    """
    kind = find_type(cfg['type']) or object
    channels, made = norm.num_features, norm  # type: int, nn.Module
    if issubclass(kind, nn.SyncBatchNorm):
        made = nn.SyncBatchNorm(
            channels, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
    elif issubclass(kind, nn.GroupNorm):
        groups = math.gcd(cfg['num_groups'], channels)
        made = nn.GroupNorm(groups, channels, cfg.get('eps', norm.eps), norm.affine)
    elif not issubclass(kind, _BatchNorm):
        raise ValueError(
            f"{owner}: its batch norms cannot follow norm_cfg {cfg!r}, as norm_cfg='host' asks; "
            'allowed in the host: BN, SyncBN, GN'
        )
    if made is not norm:
        made.load_state_dict(norm.state_dict(), strict=False)  # a group norm has no statistics
        made.train(norm.training)
        for ours, theirs in zip(made.parameters(), norm.parameters(), strict=True):
            ours.requires_grad_(theirs.requires_grad)
    if not cfg.get('requires_grad', True):
        made.requires_grad_(False)
    return made


class PluginHost:
    """Mixin that stands before a codebase's backbone, which has `norm_cfg` and `norm_eval`.

    The host's plugins are in `self._slots`; its child `after_stem` is the slot after the stem.
    Those that its own `frozen_stages` freezes, which it has warned of, are in `_frozen_plugins`.
    """

    def _finish_plugins(self) -> None:
        """When all is built: no plugin is without a place, norms that follow the host's do, none
        that starts as the identity is frozen."""
        self._slots.check_placed()
        for plugin, module in self._plugin_modules():
            if plugin.norm_cfg != 'host':
                continue
            for parent in [*module.modules()]:
                for name, norm in [*parent.named_children()]:
                    if isinstance(norm, _BatchNorm):
                        parent.add_module(name, _as_in_host(norm, self.norm_cfg, plugin.name))

        self._check_frozen()

    def _check_frozen(self) -> None:
        """Raise ValueError for an identity that would never be left, warn of a gate that stays as
        it was drawn."""
        learns = [(p, p.requires_grad) for p in self.parameters()]
        trains = [(m, m.training) for m in self.modules()]
        self._freeze_stages()  # some hosts do so only when they are set to train
        frozen = {
            plugin
            for plugin, module in self._plugin_modules()
            if (flags := [p.requires_grad for p in module.parameters()]) and not any(flags)
        }
        for parameter, flag in learns:
            parameter.requires_grad_(flag)
        for module, flag in trains:
            module.training = flag
        self._frozen_plugins = frozen
        for plugin in frozen:
            if plugin.start is not None:
                raise ValueError(
                    f'{plugin.name}: start={plugin.start!r} in a frozen stage, where its {NAME} '
                    'would stay 0 for good; allowed: stages that learn, freeze=False, or '
                    f'frozen_stages below {self.frozen_stages}'
                )
        if frozen:
            warnings.warn(
                f'{_described(frozen)}: in a frozen stage, where they stay as they were drawn '
                'unless a checkpoint has them; stages, freeze=False or frozen_stages change that',
                stacklevel=4,
            )

    def _warn_of_fresh(self, before: dict[nn.Module, list[int]]) -> None:
        """Warn of plugins that a checkpoint, which has just been loaded, has not changed."""
        fresh = {
            plugin
            for plugin, module in self._plugin_modules()
            if plugin.start is None and before[module] and before[module] == versions(module)
        }
        changing = {plugin for plugin in fresh if not abs(plugin.signal() - 1) < 0.02}
        if changing:
            warnings.warn(
                f'{_described(changing)}: fresh on pretrained weights, as the checkpoint has no '
                "such plugin; start='identity' in the entry or in plugin_defaults begins with what "
                'the pretrained layers know',
                stacklevel=4,
            )

    def _plugin_modules(self) -> Iterator[tuple[Plugin, nn.Module]]:
        return ((p, module) for p in self._slots.plugins for module in p.modules)

    def init_weights(self) -> None:
        """As upstream, but what it draws (Kaiming's, ...) does not reach the plugins.

        A plugin keeps what its constructor gave it, or has what its own `init_cfg` says. A
        checkpoint of the host (`Pretrained`) comes last and is loaded into plugins, too.
        """
        if not self.is_init:
            for plugin in self._slots.plugins:
                plugin.init_weights()
        cfgs = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg]
        pretrained = [c for c in cfgs if c and c['type'] in ('Pretrained', PretrainedInit)]
        before = {module: versions(module) for _, module in self._plugin_modules()}
        if not self._slots.plugins or (pretrained and len(pretrained) == len(cfgs)):
            loads = pretrained and not self.is_init
            super().init_weights()  # draws nothing in plugins
            if loads:
                self._warn_of_fresh(before)
            return
        given = self.init_cfg
        if pretrained:
            self.init_cfg = [c for c in cfgs if c not in pretrained]
        with self._without_plugins():
            super().init_weights()
        self.init_cfg = given
        for plugin, module in self._plugin_modules():
            # For mmengine's log of what was drawn how, while it is being written.
            info = getattr(module, '_params_init_info', {})
            for parameter in module.parameters():
                if parameter in info:
                    info[parameter]['init_info'] = f'As {plugin.name} starts by itself'
        if pretrained:
            initialize(self, pretrained)
            self._warn_of_fresh(before)

    @contextmanager
    def _without_plugins(self) -> Iterator[None]:
        """What draws all layers inside draws none of the plugins', nor numbers for them."""
        ours = {id(module) for _, module in self._plugin_modules()}
        places = [
            (parent, name, child)
            for parent in self.modules()
            for name, child in parent.named_children()
            if id(child) in ours
        ]
        for parent, name, _ in places:
            setattr(parent, name, nn.Identity())  # in its place: the order of names stays
        try:
            yield
        finally:
            for parent, name, child in places:
                setattr(parent, name, child)

    def _freeze_stages(self) -> None:
        """As upstream, with the slot after the stem, and without plugins that `freeze` excepts."""
        spared = [module for plugin, module in self._plugin_modules() if not plugin.freeze]
        learns = [(p, p.requires_grad) for module in spared for p in module.parameters()]
        trains = [(m, m.training) for module in spared for m in module.modules()]
        super()._freeze_stages()
        if self.frozen_stages >= 0:
            self.after_stem.eval().requires_grad_(False)
        for parameter, flag in learns:
            parameter.requires_grad_(flag)
        for module, flag in trains:
            module.training = flag

    def train(self, mode: bool = True) -> None:
        """As upstream; `norm_eval` reaches the norms of plugins as their entries say."""
        norm_eval, self.norm_eval = self.norm_eval, False
        try:
            super().train(mode)  # freezes stages; without norm_eval, which comes now
        finally:
            self.norm_eval = norm_eval
        if not mode:
            return
        own = {
            norm: plugin.norm_eval
            for plugin, module in self._plugin_modules()
            for norm in module.modules()
            if plugin.norm_eval != 'host'
        }
        for module in self.modules():
            if isinstance(module, _BatchNorm) and own.get(module, norm_eval):
                module.eval()
