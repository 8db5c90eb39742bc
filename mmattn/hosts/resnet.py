"""Plugin slots for ResNets, the same in each codebase: mixins that stand before its own classes."""

from collections.abc import Sequence
from typing import Any

import torch.utils.checkpoint as cp
from torch import Tensor, nn

from .host import PluginHost
from .slots import Plugin, PluginSequence, Slots


def _channels(block: nn.Module, position: str) -> int:
    """Channels at a position such as 'after_conv3': the outputs of that convolution."""
    return getattr(block, position.removeprefix('after_')).out_channels


class PluginBlock:
    """Slots in a residual block: after a convolution, its norm and, where one follows, activation.

    Plugins are children of the block under the names that MMDetection gives them.

    Args:
        plugins (Sequence[Plugin]): The plugins of this block.
        args, kwargs: As the upstream block's.
    """

    positions: tuple[str, ...] = ()

    def __init__(self, *args: Any, plugins: Sequence[Plugin] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Stochastic depth, where the codebase has it.
        if not hasattr(self, 'drop_path'):
            self.drop_path = nn.Identity()
        self.plugin_names: dict[str, list[str]] = {position: [] for position in self.positions}
        for plugin in plugins:
            block: Any = self  # a module, by the class that it is mixed into
            name = plugin.add_to(block, _channels(block, plugin.position))
            self.plugin_names[plugin.position].append(name)

    def _plug(self, position: str, x: Tensor) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x

    def _residual(self, x: Tensor) -> Tensor:
        """The branch beside the identity."""
        raise NotImplementedError

    def _sum(self, x: Tensor) -> Tensor:
        out = self.drop_path(self._residual(x))
        # Not in place, as upstream: a plugin may need its output to compute its gradient.
        return out + (x if self.downsample is None else self.downsample(x))

    def forward(self, x: Tensor) -> Tensor:
        """Upstream's block, with gates where the slots are."""
        if self.with_cp and x.requires_grad:
            out = cp.checkpoint(self._sum, x, use_reentrant=False)
        else:
            out = self._sum(x)
        return self.relu(out)


class BasicBlockSlots(PluginBlock):
    """Slots in a block of two convolutions; 'after_conv2' is before the residual sum."""

    positions = ('after_conv1', 'after_conv2')

    def _residual(self, x: Tensor) -> Tensor:
        out = self._plug('after_conv1', self.relu(self.norm1(self.conv1(x))))
        return self._plug('after_conv2', self.norm2(self.conv2(out)))


class BottleneckSlots(PluginBlock):
    """Slots in a block of three convolutions; 'after_conv3' is before the residual sum."""

    positions = ('after_conv1', 'after_conv2', 'after_conv3')

    def _residual(self, x: Tensor) -> Tensor:
        out = self._plug('after_conv1', self.relu(self.norm1(self.conv1(x))))
        out = self._plug('after_conv2', self.relu(self.norm2(self.conv2(out))))
        return self._plug('after_conv3', self.norm3(self.conv3(out)))


class ResNetSlots(PluginHost):
    """Slots in a ResNet: those of its blocks, 'after_stage', 'after_stem' (before the max pool).

    Args:
        plugins (Sequence[dict], optional): See `mmattn.hosts.slots`.
        plugin_defaults (dict, optional): See `mmattn.hosts.slots`.
        args, kwargs: As the upstream host's.

    Raises:
        ValueError: see `mmattn.hosts.slots.Slots`.
    """

    # Upstream's block class -> the same with slots.
    plugin_blocks: dict[type, type] = {}

    def __init__(
        self,
        *args: Any,
        plugins: Sequence[dict[str, Any]] | None = None,
        plugin_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # For `_make_stem_layer`, which upstream's constructor calls when it has checked the depth.
        self._plugins = plugins, plugin_defaults
        super().__init__(*args, **kwargs)
        self._finish_plugins()

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        positions = (*self.plugin_blocks[self.block].positions, 'after_stage', 'after_stem')
        host = f'{type(self).__name__}-{self.depth}'
        plugins, defaults = self._plugins
        self._slots = Slots(plugins, host, positions, self.num_stages, defaults)
        self.after_stem = PluginSequence(self._slots.at('after_stem'), stem_channels, self.with_cp)

    def make_res_layer(self, block: type[nn.Module], **kwargs: Any) -> nn.Sequential:
        stage = len(self.res_layers)
        plugged = self.plugin_blocks[block]
        plugins = [p for position in plugged.positions for p in self._slots.at(position, stage)]
        # Upstream's constructor compares its own block classes to decide on the zero initialisation
        # of residuals, so the class is exchanged no earlier than here.
        if plugins:
            layer = super().make_res_layer(block=plugged, **{**kwargs, 'plugins': plugins})
        else:
            layer = super().make_res_layer(block=block, **kwargs)
        plugins = self._slots.at('after_stage', stage)
        if plugins:
            # A child of the stage, so that upstream's forward and freezing include it.
            channels = _channels(layer[-1], plugged.positions[-1])
            layer.add_module('after_stage', PluginSequence(plugins, channels, self.with_cp))
        return layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Upstream's forward with one slot more: (N, 3, H, W) -> tuple of (N, C, H', W')."""
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(self.after_stem(x))
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)
