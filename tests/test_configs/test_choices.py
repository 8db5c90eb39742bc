"""What the papers' rows choose where the papers are silent: starts, norms and freezing of gates."""

import math

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmengine.registry import MODELS, TRANSFORMS, init_default_scope  # noqa: E402

from mmattn.attention.gate import Gate  # noqa: E402
from mmattn.papers import config_root  # noqa: E402

ROOT = config_root()
SMALL = dict(base_channels=8, stem_channels=8)


def read(path, *alternatives, folder=None):
    """A row, and alternatives on it one after the other, as configs that inherit."""
    path = ROOT / path
    for name in alternatives:
        child = folder / f'{len(name)}{path.stem[:3]}.py'
        body = (ROOT / 'alternatives' / f'{name}.py').read_text()
        child.write_text(f'_base_ = {str(path)!r}\n{body}')
        path = child
    return Config.fromfile(path, import_custom_modules=False)


def backbone(cfg, **kwargs):
    """The row's backbone at a toy width, in training mode."""
    init_default_scope(cfg.default_scope)
    built = MODELS.build(dict(cfg.model.backbone, init_cfg=None, **kwargs))
    built.train()
    return built


def gates(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, Gate)}


def norms(module):
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


@pytest.mark.parametrize('network', ['resnet50', 'mobilenet-v2', 'shufflenet-v2'])
@pytest.mark.parametrize('gate', ['', '-cbam-r16'])
def test_cifar_networks_start_as_pytorch_draws_them(network, gate):
    """All of it, head and gates too: uniform on +- 1 / sqrt(fan in); every norm at one."""
    cfg = read(f'cat/{network}{gate}_1xb128_cifar100.py')
    init_default_scope('mmpretrain')
    if network == 'resnet50':
        cfg.model.backbone.update(SMALL)
        cfg.model.head.in_channels = 256
    model = MODELS.build(cfg.model)
    model.init_weights()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert model.head.fc in layers
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        unit = layer.weight.detach().flatten() / bound
        assert unit.abs().max() <= 1 + 1e-6
        # Five standard errors of a standard deviation.
        assert abs(unit.std() - 1 / math.sqrt(3)) < 5 / math.sqrt(15 * len(unit)) + 0.5 / len(unit)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms(model))


def test_cifar_warms_up_for_one_epoch():
    cfg = read('cat/resnet50_1xb128_cifar100.py')
    from mmengine.optim import LinearLR, MultiStepLR

    epoch = 391
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.001)
    first, second = (dict(scheduler) for scheduler in cfg.param_scheduler)
    assert (first.pop('type'), second.pop('type')) == ('LinearLR', 'MultiStepLR')
    assert first.pop('convert_to_iter_based')
    warm = LinearLR.build_iter_from_epoch(optimizer, epoch_length=epoch, **first)
    steps = MultiStepLR(optimizer, **second)
    rates = []
    for _ in range(200):
        for _ in range(epoch):
            rates.append(optimizer.param_groups[0]['lr'])
            warm.step()
        steps.step()
    # Linear from nearly nothing, as i / 391 of the collection, to one part in an epoch's steps.
    for i in (0, 1, 100, 200, 390):
        assert abs(rates[i] / 0.001 - i / epoch) <= 1 / 390
    for number in (1, 49, 50, 99, 100, 149, 150, 199):
        expected = 0.001 * 0.1 ** (number // 50)
        assert rates[number * epoch] == pytest.approx(expected, rel=1e-6)


def test_rotation(tmp_path):
    """The alternative turns by up to 15 degrees, differently each time, about the middle."""
    cfg = read('cat/resnet50_1xb128_cifar100.py', 'rotation-15', folder=tmp_path)
    pipeline = cfg.train_dataloader.dataset.pipeline
    kinds = [step.type for step in pipeline]
    init_default_scope('mmpretrain')
    steps = [TRANSFORMS.build(step) for step in pipeline if step.type != 'RandomCrop']
    bar = np.zeros((33, 33, 3), np.uint8)
    bar[:, 16] = 255
    seen = set()
    for _ in range(20):
        results = dict(img=bar.copy(), img_shape=(33, 33), gt_label=0)
        for step in steps:
            results = step(results)
        image = results['inputs']
        assert image.shape == (3, 33, 33) and image.dtype == torch.uint8
        assert image[0, 16, 16] == 255
        at = int(image[0, 2].float().argmax())  # of 14 rows above the middle, tan 15 degrees = 3.75
        assert abs(at - 16) <= 4
        seen.add(at)
    assert len(seen) > 3
    assert kinds.index('RandomFlip') < kinds.index('torchvision/RandomRotation')


@pytest.mark.parametrize(
    'row, zero',
    [
        ('cat/resnet50_8xb32_in1k.py', False),
        ('cat/resnet101-cat-r16_8xb32_in1k.py', False),
        ('cat/resnet50-cat-r16_1xb128_cifar100.py', False),
        ('drtam/resnet50_4xb128_in1k.py', True),
        ('drtam/resnet101-drtam-r16_4xb96_in1k.py', True),
    ],
)
def test_zero_initialised_residuals(row, zero, tmp_path):
    others = ['zero-init-residual', 'no-zero-init-residual']
    cases = [(read(row), zero)]
    if 'in1k' in row:
        cases.append((read(row, others[zero], folder=tmp_path), not zero))
    for cfg, expected in cases:
        init_default_scope('mmpretrain')
        model = MODELS.build(dict(cfg.model.backbone, **SMALL))
        model.init_weights()
        last = [m.norm3.weight for m in model.modules() if hasattr(m, 'conv3')]
        assert last and all((w == (0 if expected else 1)).all() for w in last)


DETECTORS = [
    ('cat/faster-rcnn_r50-cbam_fpn_4xb2-18k_voc0712.py', True),
    ('cat/retinanet_r50-cbam_fpn_4xb2-90k_coco.py', True),
    ('cat/mask-rcnn_r50-cbam_fpn_2xb4-90k_coco.py', True),
    ('drtam/mask-rcnn_r50-ca-r32_fpn_4xb4-1x_coco.py', False),
    ('drtam/mask-rcnn_r50-drtam-r16_fpn_4xb4-1x_coco.py', False),
]


@pytest.mark.parametrize('row, live', DETECTORS)
def test_norms_of_gates_in_detectors(row, live):
    """They live on Detectron2's rows, sleep on MMDetection's; nothing in the first stage lives."""
    cfg = read(row)
    model = backbone(cfg, **SMALL)
    for name, gate in gates(model).items():
        frozen = name.startswith('layer1')
        assert all(norm.training is (live and not frozen) for norm in norms(gate)) and norms(gate)
        assert all(p.requires_grad is not frozen for p in gate.parameters()), name
    others = set(norms(model)) - {norm for gate in gates(model).values() for norm in norms(gate)}
    assert not any(norm.training for norm in others)


def test_every_detector_says_so():
    """The bare rows, from which the gated ones inherit: all of CAT's, and none of DRTAM's."""
    for paper, number, expected in (('cat', 11, False), ('drtam', 2, 'host')):
        found = [*ROOT.glob(f'{paper}/*_r50_fpn_*.py'), *ROOT.glob(f'{paper}/*_r101_fpn_*.py')]
        assert len(found) == number
        for path in found:
            defaults = read(path).model.backbone.plugin_defaults
            assert defaults.to_dict() == dict(norm_eval=expected, freeze=True), path


def test_gates_of_the_frozen_stage_may_learn(tmp_path):
    row = 'cat/faster-rcnn_r50-cat_fpn_4xb2-18k_voc0712.py'
    model = backbone(read(row, 'frozen-gates-learn', folder=tmp_path), **SMALL)
    sum(out.square().mean() for out in model(torch.randn(1, 3, 64, 64))).backward()
    factors = [m.exterior_logits for m in model.layer1.modules() if isinstance(m, Gate)]
    assert len(factors) == 3 and all(f.grad is not None for f in factors)
    assert all(p.grad is None for p in model.layer1[0].conv1.parameters())


@pytest.mark.parametrize('row', ['bott', 'pool'])
def test_norms_of_gates_in_segmentors(row, tmp_path):
    row = f'drtam/fcn_r50-d8-drtam-{row}_4xb4-20k_voc12aug-512x512.py'
    for cfg, kind in (
        (read(row), nn.BatchNorm1d),
        (read(row, 'gates-syncbn', folder=tmp_path), nn.SyncBatchNorm),
    ):
        model = backbone(cfg, **SMALL)
        ours = [norm for gate in gates(model).values() for norm in norms(gate)]
        assert ours and all(type(norm) is kind and norm.training for norm in ours)
        assert isinstance(model.bn1, nn.SyncBatchNorm)
