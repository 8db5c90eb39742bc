"""The hosts at toy widths, with the upstream class each stands for, and plugins for every slot."""

import importlib
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import mmattn.hosts  # noqa: F401  (registers the hosts)
from mmattn.attention.gate import Gate

GATES = (
    'SE',
    'ECA',
    'CBAM',
    'CoordAttention',
    'CAT',
    'DRTAM',
    'SimAM',
    'TripletAttention',
    'EMA',
)
BASIC = ('after_conv1', 'after_conv2')
BOTTLENECK = (*BASIC, 'after_conv3')
INVERTED = ('after_expand', 'after_depthwise', 'after_project')
SHUFFLE = ('after_right_branch',)
THIN = dict(base_channels=8, stem_channels=8, out_indices=(0, 1, 2, 3))


@dataclass
class Case:
    """A host of a codebase's registry; `upstream` is the name of the class it extends."""

    scope: str
    host: str
    upstream: str
    blocks: tuple
    kwargs: dict = field(default_factory=dict)

    @property
    def registry(self):
        pytest.importorskip(self.scope)
        return importlib.import_module(f'{self.scope}.registry').MODELS

    @property
    def positions(self):
        return (*self.blocks, 'after_stage', 'after_stem')

    def build(self, plugins=None, **kwargs):
        kwargs = {**self.kwargs, **kwargs}
        return self.registry.build(dict(type=self.host, plugins=plugins, **kwargs))

    def build_upstream(self, **kwargs):
        kwargs = {**self.kwargs, **kwargs}
        if self.upstream in self.registry.module_dict:
            return self.registry.build(dict(type=self.upstream, **kwargs))
        # The CIFAR forms that no codebase has; test_cifar.py holds them to an independent network.
        return getattr(importlib.import_module('mmattn.hosts.mmpretrain'), self.upstream)(**kwargs)


CASES = {
    'mmpretrain-resnet18': Case(
        'mmpretrain', 'PluginResNet', 'ResNet', BASIC, dict(depth=18, **THIN)
    ),
    'mmpretrain-resnet50': Case(
        'mmpretrain', 'PluginResNet', 'ResNet', BOTTLENECK, dict(depth=50, **THIN)
    ),
    'mmpretrain-resnet50d': Case(
        'mmpretrain',
        'PluginResNet',
        'ResNet',
        BOTTLENECK,
        dict(depth=50, deep_stem=True, avg_down=True, drop_path_rate=0.1, **THIN),
    ),
    'mmpretrain-resnet18-cifar': Case(
        'mmpretrain', 'PluginResNet_CIFAR', 'ResNet_CIFAR', BASIC, dict(depth=18, **THIN)
    ),
    'mmpretrain-mobilenet': Case(
        'mmpretrain', 'PluginMobileNetV2', 'MobileNetV2', INVERTED, dict(widen_factor=0.25)
    ),
    'mmpretrain-mobilenet-cifar': Case(
        'mmpretrain',
        'PluginMobileNetV2_CIFAR',
        'MobileNetV2_CIFAR',
        INVERTED,
        dict(widen_factor=0.25),
    ),
    'mmpretrain-shufflenet': Case(
        'mmpretrain', 'PluginShuffleNetV2', 'ShuffleNetV2', SHUFFLE, dict(widen_factor=0.5)
    ),
    'mmpretrain-shufflenet-cifar': Case(
        'mmpretrain',
        'PluginShuffleNetV2_CIFAR',
        'ShuffleNetV2_CIFAR',
        SHUFFLE,
        dict(widen_factor=0.5),
    ),
    'mmdet-resnet18': Case(
        'mmdet', 'PluginResNet', 'ResNet', BASIC, dict(depth=18, norm_eval=False, **THIN)
    ),
    'mmdet-resnet50': Case(
        'mmdet', 'PluginResNet', 'ResNet', BOTTLENECK, dict(depth=50, norm_eval=False, **THIN)
    ),
    'mmseg-resnet18': Case('mmseg', 'PluginResNet', 'ResNet', BASIC, dict(depth=18, **THIN)),
    'mmseg-resnet50': Case(
        'mmseg',
        'PluginResNet',
        'ResNet',
        BOTTLENECK,
        dict(
            depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, **THIN
        ),
    ),
    'mmseg-resnet18-v1c': Case(
        'mmseg', 'PluginResNetV1c', 'ResNetV1c', BASIC, dict(depth=18, **THIN)
    ),
}
each_host = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def entry(type_, position, stages=None, **args):
    made = dict(cfg=dict(type=type_, **args), position=position)
    return made if stages is None else dict(made, stages=stages)


def everywhere(case, types=GATES, each=1):
    """`each` plugins in each of the host's positions, taking turns through `types`."""
    turns = [position for position in case.positions for _ in range(each)]
    return [entry(types[i % len(types)], position) for i, position in enumerate(turns)]


def gates(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, Gate)}


def plugin_keys(model):
    """State-dict keys that belong to gates."""
    names = tuple(f'{name}.' for name in gates(model))
    return {key for key in model.state_dict() if names and key.startswith(names)}


def randomise(model, seed=0):
    """Random norms and factors, so that nothing cancels (zero-initialised residuals, ...)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
        for name, parameter in model.named_parameters():
            if 'factors' in name or 'exterior' in name:  # CAT's, which start at zero
                parameter.normal_(generator=generator)
    return model


def in_mode(model, training=False):
    """The model itself: upstream's `train` and `eval` return None."""
    model.train(training)
    return model


def image(size=64, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def same(ours, theirs, **tolerance):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or dict(rtol=0, atol=0)))
