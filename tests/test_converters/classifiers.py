"""Random networks to convert, and the OpenMMLab classifier that a converted one is."""

import torch
from mmengine.registry import DefaultScope
from torch import nn


def randomised(model, seed=0):
    """In float64, with norms of random statistics that keep values near one."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.double().eval()


def image(size=64):
    return torch.randn(2, 3, size, size, dtype=torch.float64)


def classifier(converted, channels, classes):
    """mmpretrain's, with every weight of the converted network."""
    from mmpretrain.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(converted.backbone),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=classes, in_channels=channels),
            )
        )
    model.load_state_dict(converted.state_dict)
    return model.double().eval()


def assert_same(theirs, converted, channels, classes=1000):
    x = image()
    with torch.no_grad():
        expected = theirs(x)
        assert 1e-3 < expected.std() < 1e3
        torch.testing.assert_close(
            classifier(converted, channels, classes)(x), expected, rtol=1e-5, atol=1e-5
        )
