"""ResNet and ResNetV1c with plugin slots for MMSegmentation."""

from mmseg.models.backbones.resnet import BasicBlock, Bottleneck, ResNet, ResNetV1c
from mmseg.registry import MODELS

from mmattn.registry import register

from .resnet import BasicBlockSlots, BottleneckSlots, ResNetSlots


class PluginBasicBlock(BasicBlockSlots, BasicBlock):
    """MMSegmentation's BasicBlock with slots, which upstream has not."""


class PluginBottleneck(BottleneckSlots, Bottleneck):
    """MMSegmentation's Bottleneck with slots.

    Upstream's own slots hand every plugin of a position the same input, so that only the last one
    takes effect; here they run one after the other.
    """


@register(MODELS)
class PluginResNet(ResNetSlots, ResNet):
    """MMSegmentation's ResNet with slots; without plugins it is upstream's."""

    plugin_blocks = {BasicBlock: PluginBasicBlock, Bottleneck: PluginBottleneck}


@register(MODELS)
class PluginResNetV1c(ResNetSlots, ResNetV1c):
    """MMSegmentation's ResNetV1c (a stem of three 3x3 convolutions) with slots."""

    plugin_blocks = PluginResNet.plugin_blocks
