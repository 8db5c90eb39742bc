"""ResNet with plugin slots for MMDetection."""

from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.registry import MODELS

from mmattn.registry import register

from . import msra  # noqa: F401  (registers the checkpoints that Detectron2 starts from)
from .resnet import BasicBlockSlots, BottleneckSlots, ResNetSlots


class PluginBasicBlock(BasicBlockSlots, BasicBlock):
    """MMDetection's BasicBlock with slots, which upstream has not."""


class PluginBottleneck(BottleneckSlots, Bottleneck):
    """MMDetection's Bottleneck with slots.

    Plugins have the names of upstream's own slots: its checkpoints with plugins (GCNet, ...) load.
    """


@register(MODELS)
class PluginResNet(ResNetSlots, ResNet):
    """MMDetection's ResNet with slots; without plugins it is upstream's."""

    plugin_blocks = {BasicBlock: PluginBasicBlock, Bottleneck: PluginBottleneck}
