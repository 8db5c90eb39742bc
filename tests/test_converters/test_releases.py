"""The papers' released networks: key maps and outputs, on definitions with the releases' names.

Written anew from reading github.com/Jongchan/attention-module (MODELS/cbam.py, model_resnet.py),
github.com/BangguWu/ECANet (models/eca_module.py, eca_resnet.py) and
github.com/houqb/CoordAttention (mbv2_ca.py, coordatt.py).
"""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from classifiers import assert_same, randomised
from torch import nn
from torchvision.models import resnet

from mmattn.converters import from_release
from mmattn.runs import checkpoint

pytest.importorskip('mmpretrain')
TOOL = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'release_to_mmattn.py'


class ChannelGate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        hidden = channels // 16
        layers = nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        self.mlp = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, x):
        pooled = x.mean((2, 3)), x.amax((2, 3))
        return x * sum(map(self.mlp, pooled)).sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial = nn.Sequential()
        self.spatial.add_module('conv', nn.Conv2d(2, 1, 7, padding=3, bias=False))
        self.spatial.add_module('bn', nn.BatchNorm2d(1, momentum=0.01))

    def forward(self, x):
        return x * self.spatial(torch.cat((x.amax(1, True), x.mean(1, True)), 1)).sigmoid()


class ReleasedCBAM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(channels), SpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class ReleasedECA(nn.Module):
    def __init__(self, channels):
        super().__init__()
        size = {64: 3, 128: 3, 256: 5, 512: 5, 1024: 5, 2048: 7}[channels]
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x):
        return x * self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()[:, :, None, None]


def gated(block, child, gate):
    """torchvision's block, whose names the releases have, with a gate before the sum."""
    last = 'bn2' if block is resnet.BasicBlock else 'bn3'

    class Block(block):
        def __init__(self, inplanes, planes, *args, **kwargs):
            super().__init__(inplanes, planes, *args, **kwargs)
            setattr(self, child, gate(planes * self.expansion))
            # The sum comes behind the last norm, and so behind this.
            norm = getattr(self, last)
            norm.register_forward_hook(lambda module, inputs, y: getattr(self, child)(y))

    return Block


RESNETS = {18: (resnet.BasicBlock, [2, 2, 2, 2]), 50: (resnet.Bottleneck, [3, 4, 6, 3])}
GATES = {'cbam': ('cbam', ReleasedCBAM), 'eca': ('eca', ReleasedECA)}


def release(name, depth):
    block, layers = RESNETS[depth]
    torch.manual_seed(0)
    return resnet.ResNet(gated(block, *GATES[name]), layers, num_classes=10)


@pytest.mark.parametrize('depth', RESNETS)
@pytest.mark.parametrize('name', GATES)
def test_resnets(name, depth):
    model = randomised(release(name, depth))
    weights = {f'module.{key}': value for key, value in model.state_dict().items()}
    converted = from_release(name, weights)
    assert_same(model, converted, model.fc.in_features, 10)
    assert from_release(name, weights, 'mmdet').state_dict.keys() == converted.state_dict.keys()
    wanted = {
        'cbam': [dict(type='CBAM', reduction=16, kernel_size=7)],
        'eca': {
            18: [dict(type='ECA', kernel_size=3), dict(type='ECA', kernel_size=5)],
            50: [dict(type='ECA', kernel_size=5), dict(type='ECA', kernel_size=7)],
        }.get(depth),
    }[name]
    assert [entry['cfg'] for entry in converted.backbone['plugins']] == wanted


class HardSwish(nn.Module):
    def forward(self, x):
        return x * nn.functional.relu6(x + 3) / 6


class ReleasedCA(nn.Module):
    """`height` and `width`: what a file of the release calls the last two convolutions."""

    def __init__(self, channels, height, width):
        super().__init__()
        hidden = max(8, channels // 32)
        self.conv1, self.bn1 = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.act, self.ends = HardSwish(), (height, width)
        for end in self.ends:
            self.add_module(end, nn.Conv2d(hidden, channels, 1))

    def forward(self, x):
        rows, columns = x.mean(3, True), x.mean(2, True).transpose(2, 3)
        strips = self.act(self.bn1(self.conv1(torch.cat((rows, columns), 2))))
        rows, columns = strips.split(x.shape[2:], 2)
        height, width = (getattr(self, end) for end in self.ends)
        return x * width(columns.transpose(2, 3)).sigmoid() * height(rows).sigmoid()


def layers(inner, outer, size=1, stride=1, groups=1, act=True):
    conv = nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outer), *([nn.ReLU6()] if act else [])]


class InvertedResidual(nn.Module):
    def __init__(self, inner, outer, stride, ratio, ends):
        super().__init__()
        wide = inner * ratio
        self.adds = stride == 1 and inner == outer
        deep = layers(wide, wide, 3, stride, wide)
        parts = deep if ratio == 1 else [*layers(inner, wide), *deep, ReleasedCA(wide, *ends)]
        self.conv = nn.Sequential(*parts, *layers(wide, outer, act=False))

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class ReleasedMobileNet(nn.Module):
    SETTING = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    SETTING += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, ends, classes=10):
        super().__init__()
        parts, width = [nn.Sequential(*layers(3, 32, 3, 2))], 32
        for ratio, outer, count, stride in self.SETTING:
            for i in range(count):
                parts.append(InvertedResidual(width, outer, 1 if i else stride, ratio, ends))
                width = outer
        self.features = nn.Sequential(*parts)
        self.conv = nn.Sequential(*layers(width, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.conv(self.features(x)).mean((2, 3)))


@pytest.mark.parametrize('ends', (('conv2', 'conv3'), ('conv_h', 'conv_w')))
def test_mobilenet(ends):
    model = randomised(ReleasedMobileNet(ends))
    converted = from_release('ca', model.state_dict())
    assert converted.backbone['plugins'] == [
        dict(
            cfg=dict(type='CoordAttention', reduction=32),
            position='after_depthwise',
            stages=(False, *[True] * 6),
        )
    ]
    assert_same(model, converted, 1280, 10)


def test_what_is_refused():
    with pytest.raises(ValueError, match='the release must be one of cbam, eca, ca'):
        from_release('bam', {})
    with pytest.raises(ValueError, match='there is no CBAM in these weights'):
        from_release('cbam', release('eca', 18).state_dict())
    with pytest.raises(ValueError, match='MobileNetV2 has a host in mmpretrain alone'):
        from_release('ca', {}, 'mmdet')
    weights = ReleasedMobileNet(('conv2', 'conv3')).state_dict()
    with pytest.raises(ValueError, match='coordinate attention has no such layer'):
        from_release('ca', {k.replace('conv3', 'conv4'): v for k, v in weights.items()})
    with pytest.raises(ValueError, match="is none of MobileNetV2's"):
        from_release('ca', {'features.19.conv.0.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='codebase must be one of'):
        from_release('eca', release('eca', 18).state_dict(), 'mmpose')
    # BAM's networks have modules between the stages.
    weights = {**release('cbam', 18).state_dict(), 'bam1.channel_att.x': torch.zeros(1)}
    with pytest.raises(ValueError, match='unexpected: backbone.bam1'):
        from_release('cbam', weights)


def test_the_tool(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = release('cbam', 18)
    # As the release's own training saves it.
    torch.save(dict(epoch=1, arch='resnet', state_dict=model.state_dict()), 'RESNET18.pth.tar')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['release_to_mmattn.py', *args])
        runpy.run_path(str(TOOL), run_name='__main__')

    run('cbam', 'RESNET18.pth.tar')
    assert "'type': 'CBAM', 'reduction': 16" in capsys.readouterr().out
    found = checkpoint.load('RESNET18_mmattn.pth')
    assert torch.equal(found['state_dict']['head.fc.weight'], model.fc.weight)
    for args, message in (
        (('eca', 'RESNET18.pth.tar', '--out', 'x.pth'), 'there is no ECA'),
        (('cbam', 'RESNET18.pth.tar'), 'RESNET18_mmattn.pth exists'),
        (('cbam', 'none.pth'), 'none.pth'),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*args)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count('\n') == 1 and message in said
