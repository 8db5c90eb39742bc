"""The parameter totals of the papers' tables, to the last printed digit, through the hosts."""

import functools
import importlib

import pytest
import torch
from host_cases import entry


@functools.lru_cache(None)
def bare(scope, host, **kwargs):
    return count(scope, host, (), **kwargs)


def count(scope, host, plugins, **kwargs):
    """Parameters of the backbone in 10^6."""
    pytest.importorskip(scope)
    models = importlib.import_module(f'{scope}.registry').MODELS
    # MMPreTrain's ResNet computes with values while it is built, which the meta device has not.
    with torch.device('cpu' if scope == 'mmpretrain' else 'meta'):
        model = models.build(dict(type=host, plugins=list(plugins), **kwargs))
    return sum(p.numel() for p in model.parameters()) / 1e6


RESNETS = [
    # position, gate, its arguments, added to ResNet-50 and -101
    ('after_conv3', 'DRTAM', dict(reduction=32), 1.2746, 2.4083),
    ('after_conv3', 'DRTAM', dict(reduction=16), 2.5325, 4.7809),
    ('after_conv3', 'CBAM', dict(reduction=16), 2.5326, 4.7810),
    ('after_conv3', 'CoordAttention', dict(reduction=32), 1.9178, 3.6254),
    ('after_conv3', 'CoordAttention', dict(reduction=16), 3.8055, 7.1859),
    ('after_stage', 'DRTAM', dict(reduction=32), 0.3525, 0.3525),
    ('after_stage', 'DRTAM', dict(reduction=16), 0.7008, 0.7008),
    ('after_stage', 'CBAM', dict(reduction=16), 0.7008, 0.7008),
    ('after_stage', 'CoordAttention', dict(reduction=32), 0.5303, 0.5303),
]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('position, gate, args, r50, r101', RESNETS)
def test_resnet(scope, position, gate, args, r50, r101):
    for depth, expected in ((50, r50), (101, r101)):
        total = count(scope, 'PluginResNet', [entry(gate, position, **args)], depth=depth)
        assert round(total - bare(scope, 'PluginResNet', depth=depth), 4) == expected


def test_resnet_of_mmpretrain():
    """ResNet-50 with a head for 1000 classes has 25,557,032 parameters."""
    head = 2048 * 1000 + 1000
    plugged = count('mmpretrain', 'PluginResNet', [entry('DRTAM', 'after_conv3')], depth=50)
    assert round(1e6 * plugged) + head == 25_557_032 + 1_274_584


def test_gate_on_the_stem_is_next_to_nothing():
    stages, stem = entry('DRTAM', 'after_stage'), entry('DRTAM', 'after_stem')
    added = [
        count('mmdet', 'PluginResNet', plugins, depth=50) for plugins in ([stages], [stages, stem])
    ]
    assert 0 < added[1] - added[0] < 0.0015


@pytest.mark.parametrize(
    'gate, args, expected',
    [
        (None, {}, 3.50),
        ('DRTAM', dict(reduction=32), 3.80),
        ('DRTAM', dict(reduction=16), 4.08),
        ('CBAM', dict(reduction=16), 4.08),
        ('CoordAttention', dict(reduction=32), 3.95),
    ],
)
def test_mobilenet(gate, args, expected):
    plugins = [entry(gate, 'after_depthwise', **args)] if gate else []
    total = count('mmpretrain', 'PluginMobileNetV2', plugins) + 1.281
    assert round(total, 2) == expected


def test_thinner_mobilenet():
    plugins = [entry('DRTAM', 'after_depthwise', reduction=32)]
    total = count('mmpretrain', 'PluginMobileNetV2', plugins, widen_factor=0.75) + 1.281
    assert round(total, 2) == 2.81


@pytest.mark.parametrize(
    'host, position, channels, without, with_cat',
    [
        ('PluginMobileNetV2_CIFAR', 'after_project', 1280, 2.37, 2.40),
        ('PluginShuffleNetV2_CIFAR', 'after_right_branch', 1024, 1.36, 1.40),
    ],
)
def test_cifar(host, position, channels, without, with_cat):
    head = (channels + 1) * 100 / 1e6
    assert round(bare('mmpretrain', host) + head, 2) == without
    total = count('mmpretrain', host, [entry('CAT', position, reduction=16)])
    assert round(total + head, 2) == with_cat


def test_cifar_resnet():
    plugins = [entry('CBAM', 'after_conv3', reduction=16, bias=False)]
    total = count('mmpretrain', 'PluginResNet_CIFAR', plugins, depth=50)
    assert round(total + 0.2049, 2) == 26.22
