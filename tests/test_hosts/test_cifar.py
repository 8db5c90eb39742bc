"""The CIFAR forms against the networks of pytorch-cifar100, written down again here."""

import pytest
import torch
from host_cases import entry, image, in_mode, randomise, same
from torch import nn

pytest.importorskip('mmpretrain')


def conv(width, out, size, *act, **kwargs):
    return [nn.Conv2d(width, out, size, **kwargs), nn.BatchNorm2d(out), *act]


class Inverted(nn.Module):
    def __init__(self, width, out, stride, ratio):
        super().__init__()
        wide = width * ratio
        self.residual = nn.Sequential(
            *conv(width, wide, 1, nn.ReLU6()),
            *conv(wide, wide, 3, nn.ReLU6(), stride=stride, padding=1, groups=wide),
            *conv(wide, out, 1),
        )
        self.add = stride == 1 and width == out

    def forward(self, x):
        return x + self.residual(x) if self.add else self.residual(x)


def mobilenet():
    layers, width = conv(3, 32, 1, nn.ReLU6(), padding=1), 32
    for ratio, out, number, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 1),
        (6, 320, 1, 1),
    ):
        for i in range(number):
            layers.append(Inverted(width, out, 1 if i else stride, ratio))
            width = out
    return nn.Sequential(*layers, *conv(320, 1280, 1, nn.ReLU6()))


class Unit(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.down = width != out
        if self.down:
            self.left = nn.Sequential(
                *conv(width, width, 3, stride=2, padding=1, groups=width),
                *conv(width, out // 2, 1, nn.ReLU()),
            )
        inner = width if self.down else width // 2
        self.right = nn.Sequential(
            *conv(inner, inner, 1, nn.ReLU()),
            *conv(inner, inner, 3, stride=1 + self.down, padding=1, groups=inner),
            *conv(inner, out // 2, 1, nn.ReLU()),
        )

    def forward(self, x):
        left, right = (self.left(x), x) if self.down else x.chunk(2, 1)
        out = torch.stack((left, self.right(right)), 2)  # interleaves the two halves
        return out.flatten(1, 2)


def shufflenet():
    layers, width = conv(3, 24, 3, padding=1), 24
    for out, number in ((116, 4), (232, 8), (464, 4)):
        for _ in range(number):
            layers.append(Unit(width, out))
            width = out
    return nn.Sequential(*layers, *conv(464, 1024, 1, nn.ReLU()))


@pytest.mark.parametrize(
    'host, network, channels, size, total',
    [
        ('PluginMobileNetV2_CIFAR', mobilenet, 1280, 5, 2_369_380),
        ('PluginShuffleNetV2_CIFAR', shufflenet, 1024, 4, 1_360_896),
    ],
)
def test_is_the_public_network(host, network, channels, size, total):
    from mmpretrain.registry import MODELS

    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type=host),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=100, in_channels=channels),
        )
    )
    assert sum(p.numel() for p in model.parameters()) == total

    ours, theirs = in_mode(model.backbone), in_mode(randomise(network()))
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.shape == b.shape
            a.copy_(b)
        buffers = zip(ours.buffers(), theirs.buffers(), strict=True)
        for a, b in buffers:
            a.copy_(b)
        (out,) = ours(image(32))
        assert out.shape == (2, channels, size, size)
        same([out], [theirs(image(32))], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('host', ['PluginMobileNetV2_CIFAR', 'PluginShuffleNetV2_CIFAR'])
def test_starts_as_pytorch_does(host):
    from mmpretrain.registry import MODELS

    model = MODELS.build(dict(type=host, plugins=[entry('CAT', 'after_stage')]))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    same(model.state_dict().values(), before.values())


def test_every_block_expands():
    from mmpretrain.registry import MODELS

    flags = (True, *(False,) * 6)
    model = MODELS.build(
        dict(type='PluginMobileNetV2_CIFAR', plugins=[entry('SE', 'after_expand', flags)])
    )
    assert list(dict(model.layer1[0].conv.named_children())) == ['0', 'se', '1', '2']
