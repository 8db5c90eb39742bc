"""Backbones with plugin slots for MMPreTrain."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmpretrain.models.backbones.mobilenet_v2 import MobileNetV2
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmpretrain.models.backbones.resnet_cifar import ResNet_CIFAR
from mmpretrain.models.backbones.shufflenet_v2 import ShuffleNetV2
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mmattn.registry import register

from .host import PluginHost
from .resnet import BasicBlockSlots, BottleneckSlots, ResNetSlots
from .slots import PluginSequence, Slots


class PluginBasicBlock(BasicBlockSlots, BasicBlock):
    """MMPreTrain's BasicBlock with slots."""


class PluginBottleneck(BottleneckSlots, Bottleneck):
    """MMPreTrain's Bottleneck with slots."""


@register(MODELS)
class PluginResNet(ResNetSlots, ResNet):
    """MMPreTrain's ResNet with slots; without plugins it is upstream's."""

    plugin_blocks = {BasicBlock: PluginBasicBlock, Bottleneck: PluginBottleneck}

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """As upstream, for layer-wise learning rates; a plugin after a stage counts as its end."""
        stage, found, name = param_name.partition('.after_stage.')
        if found:
            last = self.stage_blocks[int(stage[-1]) - 1] - 1
            param_name = f'{stage}.{last}.{name}'
        return super().get_layer_depth(param_name, prefix)


@register(MODELS)
class PluginResNet_CIFAR(PluginResNet, ResNet_CIFAR):
    """MMPreTrain's ResNet_CIFAR (a 3x3 stem of stride 1, no max pool) with slots."""

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        self.maxpool = nn.Identity()


class SequentialSlots(PluginHost):
    """Slots in a backbone of `nn.Sequential` blocks: plugins are named children between theirs.

    Upstream's children keep their numbers, hence their names in the state dict, and upstream's
    forward of the block, with its checkpointing, includes the plugins.

    Args:
        plugins (Sequence[dict], optional): See `mmattn.hosts.slots`.
        plugin_defaults (dict, optional): See `mmattn.hosts.slots`.
        args, kwargs: As the upstream host's.

    Raises:
        ValueError: see `mmattn.hosts.slots.Slots`.
    """

    positions: tuple[str, ...] = ()
    num_stages = 0

    def __init__(
        self,
        *args: Any,
        plugins: Sequence[dict[str, Any]] | None = None,
        plugin_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        positions = (*self.positions, 'after_stage', 'after_stem')
        self._slots = Slots(
            plugins, type(self).__name__, positions, self.num_stages, plugin_defaults
        )
        super().__init__(*args, **kwargs)
        self.after_stem = PluginSequence(
            self._slots.at('after_stem'), self.conv1.out_channels, self.with_cp
        )
        self._finish_plugins()

    def _plug_stage(self, layer: nn.Sequential, stage: int, channels: int) -> nn.Sequential:
        plugins = self._slots.at('after_stage', stage)
        if plugins:
            layer.add_module('after_stage', PluginSequence(plugins, channels, self.with_cp))
        return layer


@register(MODELS)
class PluginMobileNetV2(SequentialSlots, MobileNetV2):
    """MMPreTrain's MobileNetV2 with slots; `stages` has 7 flags. Without plugins it is upstream's.

    Positions: 'after_expand' and 'after_depthwise' (after the activation, on the expanded
    channels), 'after_project' (before the residual sum), 'after_stage', 'after_stem'. The block of
    the first stage does not expand, so that 'after_expand' begins in the second.
    """

    positions = ('after_expand', 'after_depthwise', 'after_project')
    num_stages = 7

    def make_layer(
        self, out_channels: int, num_blocks: int, stride: int, expand_ratio: int
    ) -> nn.Sequential:
        stage = len(self.layers)
        layer = super().make_layer(out_channels, num_blocks, stride, expand_ratio)
        for block in layer:
            conv = nn.Sequential()
            # Counted from the end: a block that does not expand begins with its depthwise part.
            positions = self.positions[-len(block.conv) :]
            children = block.conv.named_children()
            for position, (name, module) in zip(positions, children, strict=True):
                conv.add_module(name, module)
                for plugin in self._slots.at(position, stage):
                    plugin.add_to(conv, module.out_channels)
            block.conv = conv
        return self._plug_stage(layer, stage, out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Upstream's forward with one slot more: (N, 3, H, W) -> tuple of (N, C, H', W')."""
        x = self.after_stem(self.conv1(x))
        outs = []
        for i, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


@register(MODELS)
class PluginShuffleNetV2(SequentialSlots, ShuffleNetV2):
    """MMPreTrain's ShuffleNetV2 with slots; `stages` has 3 flags. Without plugins it is upstream's.

    Positions: 'after_right_branch' (before the concatenation, on half of the block's channels),
    'after_stage', 'after_stem' (before the max pool).
    """

    positions = ('after_right_branch',)
    num_stages = 3

    def _make_layer(self, out_channels: int, num_blocks: int) -> nn.Sequential:
        stage = len(self.layers)
        layer = super()._make_layer(out_channels, num_blocks)
        for block in layer:
            channels = block.branch2[-1].out_channels
            for plugin in self._slots.at('after_right_branch', stage):
                plugin.add_to(block.branch2, channels)
        return self._plug_stage(layer, stage, out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Upstream's forward with one slot more: (N, 3, H, W) -> tuple of (N, C, H', W')."""
        x = self.maxpool(self.after_stem(self.conv1(x)))
        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


class BiasedConv2d(nn.Conv2d):
    """A convolution with a bias, also where MMCV would leave it out because a norm follows.

    It starts as PyTorch draws it: MMCV's ConvModule draws by He's rule what has no `init_weights`.
    """

    def __init__(self, *args: Any, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, bias=True, **kwargs)

    def init_weights(self) -> None:
        """For ConvModule, which leaves it alone."""


class MobileNetV2_CIFAR(MobileNetV2):
    """MobileNetV2 for 32 x 32 images, of https://github.com/weiaicunzai/pytorch-cifar100.

    Every convolution has a bias; the stem is a 1x1 convolution of stride 1 and padding 1 (34 x 34
    out of 32 x 32); the stages' strides are 1, 2, 2, 2, 1, 1, 1; the block of the first stage has
    the expanding convolution too, though it does not expand. With global average pooling and a
    linear head of 100 classes (there a 1x1 convolution, which is the same) it has 2,369,380
    parameters. They start as PyTorch's layers do, unless `init_cfg` says otherwise.

    Args:
        init_cfg (dict | list[dict], optional): As upstream's.
        kwargs: As upstream's, except `conv_cfg`.
    """

    arch_settings = [
        [1, 16, 1, 1],
        [6, 24, 2, 2],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 1],
        [6, 320, 1, 1],
    ]

    def __init__(self, init_cfg: Any = None, **kwargs: Any) -> None:
        super().__init__(conv_cfg=dict(type=BiasedConv2d), init_cfg=init_cfg, **kwargs)
        self.conv1 = self._conv(3, self.conv1.out_channels, 1, padding=1)

    def _conv(self, *args: Any, **kwargs: Any) -> nn.Module:
        return ConvModule(
            *args, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg, **kwargs
        )

    def make_layer(
        self, out_channels: int, num_blocks: int, stride: int, expand_ratio: int
    ) -> nn.Sequential:
        layer = super().make_layer(out_channels, num_blocks, stride, expand_ratio)
        if expand_ratio == 1:
            for block in layer:
                channels = block.conv[0].in_channels
                block.conv = nn.Sequential(self._conv(channels, channels, 1), *block.conv)
        return layer


class ShuffleNetV2_CIFAR(ShuffleNetV2):
    """ShuffleNetV2 for 32 x 32 images, of https://github.com/weiaicunzai/pytorch-cifar100.

    Every convolution has a bias; the stem is a 3x3 convolution of stride 1 and a norm, without
    activation or max pool; the right branch of a stage's first block changes its width in the last
    convolution, not in the first. With global average pooling and a linear head of 100 classes it
    has 1,360,896 parameters. They start as PyTorch's layers do, unless `init_cfg` says otherwise.

    Args:
        kwargs: As upstream's, except `conv_cfg`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(conv_cfg=dict(type=BiasedConv2d), **kwargs)
        self.conv1 = self._conv(3, self.conv1.out_channels, 3, padding=1, act_cfg=None)
        self.maxpool = nn.Identity()

    def _conv(self, *args: Any, **kwargs: Any) -> nn.Module:
        kwargs.setdefault('act_cfg', self.act_cfg)
        return ConvModule(*args, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, **kwargs)

    def _make_layer(self, out_channels: int, num_blocks: int) -> nn.Sequential:
        width = self.in_channels
        layer = super()._make_layer(out_channels, num_blocks)
        layer[0].branch2 = nn.Sequential(
            self._conv(width, width, 1),
            self._conv(width, width, 3, stride=2, padding=1, groups=width, act_cfg=None),
            self._conv(width, out_channels // 2, 1),
        )
        return layer

    def init_weights(self) -> None:
        BaseModule.init_weights(self)  # not upstream's, which draws all convolutions


@register(MODELS)
class PluginMobileNetV2_CIFAR(PluginMobileNetV2, MobileNetV2_CIFAR):
    """The CIFAR form of MobileNetV2 with the slots of PluginMobileNetV2."""


@register(MODELS)
class PluginShuffleNetV2_CIFAR(PluginShuffleNetV2, ShuffleNetV2_CIFAR):
    """The CIFAR form of ShuffleNetV2 with the slots of PluginShuffleNetV2."""
