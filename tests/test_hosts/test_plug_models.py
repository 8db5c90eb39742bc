"""Models of seven libraries, those that are installed: plugged, trained for two steps, exported."""

import copy
import importlib
import inspect

import pytest
import torch
from torch import nn

from mmattn import CAT, DRTAM, SE, plug, unplug
from mmattn.hosts.identity import identity_scales


def _timm(name, **kwargs):
    return lambda: pytest.importorskip('timm').create_model(name, num_classes=4, **kwargs)


def _torchvision(name, **kwargs):
    return lambda: getattr(pytest.importorskip('torchvision').models, name)(num_classes=4, **kwargs)


def _of(scope, **cfg):
    """A model of one of OpenMMLab's codebases."""

    def build():
        pytest.importorskip(scope)
        from mmengine.registry import DefaultScope

        registry = importlib.import_module(f'{scope}.registry').MODELS
        with DefaultScope.overwrite_default_scope(scope):
            return registry.build(copy.deepcopy(cfg))

    return build


FPN = dict(type='FPN', in_channels=[32, 64, 128], out_channels=8, num_outs=3)


def _branches(count):
    """A stage of an HRNet with so many branches, from 4 channels on."""
    channels = tuple(4 * 2**i for i in range(count))
    block = 'BOTTLENECK' if count == 1 else 'BASIC'
    return dict(
        num_modules=1,
        num_branches=count,
        block=block,
        num_blocks=(1,) * count,
        num_channels=channels,
    )


# Library and model: how it is built, where gates go, how many.
MODELS = {
    'timm-convnext': (
        _timm('convnext_atto', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
        'stages.*',
        4,
    ),
    'timm-vit': (
        _timm('vit_tiny_patch16_224', img_size=64, depth=2, embed_dim=24),
        'blocks.*',
        2,
    ),
    'torchvision-resnet': (_torchvision('resnet18'), 'layer[34].*.bn2', 4),
    'torchvision-mobilenet': (_torchvision('mobilenet_v2', width_mult=0.25), 'features.*', 19),
    'mmpretrain-convnext': (
        _of('mmpretrain', type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
        'stages.*',
        4,
    ),
    'mmpretrain-swin': (
        _of(
            'mmpretrain',
            type='SwinTransformer',
            arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
            img_size=64,
            window_size=2,
        ),
        'stages.*',
        4,
    ),
    'mmdet-cspdarknet': (
        _of(
            'mmdet',
            type='RetinaNet',
            backbone=dict(
                type='CSPDarknet', deepen_factor=0.17, widen_factor=0.125, out_indices=(2, 3, 4)
            ),
            neck=FPN,
            bbox_head=dict(
                type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1
            ),
        ),
        ['backbone.stage*', 'neck', 'bbox_head.*_convs.*'],
        4 + 3 + 2,
    ),
    'mmdet-swin': (
        _of(
            'mmdet',
            type='SwinTransformer',
            embed_dims=8,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 2, 2),
            window_size=2,
        ),
        'stages.*.blocks.*',
        4,
    ),
    'mmseg-mit': (
        _of(
            'mmseg',
            type='MixVisionTransformer',
            embed_dims=8,
            num_layers=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
        ),
        'layers.*.1.0',
        4,
    ),
    'mmseg-unet': (
        _of(
            'mmseg',
            type='UNet',
            base_channels=4,
            num_stages=3,
            strides=(1, 1, 1),
            enc_num_convs=(1, 1, 1),
            dec_num_convs=(1, 1),
            downsamples=(True, True),
            enc_dilations=(1, 1, 1),
            dec_dilations=(1, 1),
        ),
        'decoder.*',
        2,
    ),
    'mmpose-hrnet': (
        _of(
            'mmpose',
            type='TopdownPoseEstimator',
            backbone=dict(
                type='HRNet',
                extra={f'stage{i}': _branches(i) for i in (1, 2, 3, 4)},
            ),
            head=dict(
                type='HeatmapHead',
                in_channels=4,
                out_channels=3,
                deconv_out_channels=None,
                loss=dict(type='KeypointMSELoss'),
            ),
        ),
        ['backbone.stage*', 'head.final_layer'],
        2 + 3 + 1 + 1,
    ),
    'mmrotate-retinanet': (
        _of(
            'mmrotate',
            type='mmdet.RetinaNet',
            backbone=dict(
                type='mmdet.CSPDarknet', deepen_factor=0.17, widen_factor=0.125, out_indices=(3, 4)
            ),
            neck=dict(type='mmdet.FPN', in_channels=[64, 128], out_channels=8, num_outs=2),
            bbox_head=dict(
                type='mmdet.RetinaHead',
                num_classes=2,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                anchor_generator=dict(
                    type='FakeRotatedAnchorGenerator',
                    angle_version='le90',
                    ratios=[1.0],
                    octave_base_scale=4,
                    scales_per_octave=1,
                    strides=[16, 32],
                ),
                bbox_coder=dict(type='DeltaXYWHTRBBoxCoder', angle_version='le90'),
                loss_cls=dict(type='mmdet.FocalLoss'),
                loss_bbox=dict(type='mmdet.L1Loss'),
            ),
        ),
        ['backbone.stage*', 'neck', 'bbox_head.*_convs.*'],
        4 + 2 + 2,
    ),
}
each_model = pytest.mark.parametrize('name', MODELS)


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return (
        [t for item in output for t in tensors(item)] if isinstance(output, (tuple, list)) else []
    )


def run(model, x):
    torch.manual_seed(0)  # stochastic depth
    # mmpose's models must be given samples, which they need for a loss alone.
    samples = inspect.signature(model.forward).parameters.get('data_samples')
    return tensors(model(x, None) if samples else model(x))


class Flat(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return tuple(run(self.model, x))


@each_model
def test_plugged_trained_exported(name):
    build, at, number = MODELS[name]
    torch.manual_seed(0)
    model = build()
    bare = copy.deepcopy(model)
    gate = (SE, CAT, DRTAM)[len(name) % 3]
    found = plug(model, gate, at, start='identity')
    scales = identity_scales(model)
    assert len(scales) == sum(len(place.spots) for place in found) == number
    assert [key for key in model.state_dict() if key in bare.state_dict()] == list(
        bare.state_dict()
    )

    for training in (False, True):
        model.train(training), bare.train(training)
        with torch.no_grad():
            for ours, theirs in zip(run(model, images()), run(bare, images()), strict=True):
                assert torch.equal(ours, theirs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in run(model, images())).backward()
        for key, scale in scales.items():
            assert scale.grad is not None, key
        optimizer.step()
    assert sum(bool(scale.any()) for scale in scales.values()) >= number // 2

    model.eval()
    program = torch.export.export(Flat(model), (images(),), strict=False)
    with torch.no_grad():
        for ours, theirs in zip(program.module()(images()), run(model, images()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    unplug(model)
    assert model.state_dict().keys() == bare.state_dict().keys()


def test_a_detector_whose_whole_cannot_be_tried():
    """Torchvision's Faster R-CNN resizes images by their numbers: its backbone is tried alone."""
    detection = pytest.importorskip('torchvision').models.detection
    with torch.device('meta'):
        model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    found = plug(model, SE, ['backbone.body.6', 'backbone.fpn'])
    assert [place.channels for place in found] == [(40,), (256, 256, 256)]
    with pytest.raises(ValueError, match='not reached: .* channels= and layout='):
        plug(model, SE, 'roi_heads.box_head.fc6')
    (place,) = plug(model, SE, 'rpn.head.conv', channels=256)
    assert place.channels == (256,)
