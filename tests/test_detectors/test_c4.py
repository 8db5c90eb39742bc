"""C4FasterRCNN: upstream's C4 without gates; gates in its last stage; one copy of that stage."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from mmattn import papers  # noqa: E402
from mmattn.papers import alternatives  # noqa: E402
from mmattn.runs.pretrained import load_backbone  # noqa: E402

ROW = 'cat/faster-rcnn_r50_fpn_4xb2-18k_voc0712.py'
GATES = [dict(cfg=dict(type='CAT', reduction=16), position='after_conv2')]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def config(plugins=None, **backbone):
    """Table 1's row as C4, but with 18 layers, whose stages have a quarter of the channels."""
    cfg = alternatives.combine(papers.config_root() / ROW, ['c4']).model
    cfg.backbone.update(depth=18, init_cfg=None, plugins=plugins, **backbone)
    cfg.rpn_head.update(in_channels=256, feat_channels=256)
    cfg.roi_head.bbox_roi_extractor.out_channels = 256
    cfg.roi_head.bbox_head.in_channels = 512
    cfg.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    cfg.train_cfg.rcnn.sampler.num = 16
    cfg.test_cfg.rpn.update(nms_pre=50, max_per_img=10)
    cfg.test_cfg.rcnn.score_thr = 0
    return cfg


def upstream(cfg):
    """The same as MMDetection has it: three stages, and the fourth in a shared head of its own."""
    cfg = Config(cfg.to_dict())
    last = ('depth', 'style', 'norm_cfg', 'norm_eval')
    shared = dict(type='ResLayer', **{key: cfg.backbone[key] for key in last})
    cfg.type, cfg.backbone.type = 'FasterRCNN', 'ResNet'
    cfg.backbone = {k: v for k, v in cfg.backbone.items() if not k.startswith('plugin')}
    cfg.backbone.update(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1))
    cfg.roi_head.shared_head = shared
    return cfg


def build(cfg):
    torch.manual_seed(0)
    return MODELS.build(cfg)


def batch():
    image = torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(0))
    sample = DetDataSample(
        metainfo=dict(img_shape=(96, 128), ori_shape=(96, 128), scale_factor=(1, 1))
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 70, 80], [60, 20, 120, 60]]), labels=torch.tensor([3, 5])
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return dict(inputs=[image.byte()], data_samples=[sample])


def losses(model):
    torch.manual_seed(1)  # the samplers draw
    data = model.data_preprocessor(batch(), training=True)
    found = model(**data, mode='loss')
    return {
        name: torch.as_tensor(value if torch.is_tensor(value) else sum(value))
        for name, value in found.items()
    }


def test_without_gates_it_is_upstreams():
    cfg = config()
    ours, theirs = build(cfg), build(upstream(cfg))
    state = ours.state_dict()
    renamed = {
        key.replace('backbone.layer4.', 'roi_head.shared_head.layer4.'): value
        for key, value in state.items()
    }
    assert len(renamed) == len(state)
    theirs.load_state_dict(renamed, strict=True)
    for model in (ours, theirs):
        model.train()
    found, wanted = losses(ours), losses(theirs)
    assert found.keys() == wanted.keys() and found['loss_bbox'] > 0
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    sum(v for k, v in found.items() if 'loss' in k).backward()
    sum(v for k, v in wanted.items() if 'loss' in k).backward()
    learns = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        own = learns[name.replace('roi_head.shared_head.', 'backbone.')]
        assert own.requires_grad is parameter.requires_grad, name
        if parameter.requires_grad:
            torch.testing.assert_close(own.grad, parameter.grad)
    results = []
    for model in (ours, theirs):
        model.eval()
        with torch.no_grad():
            data = model.data_preprocessor(batch())
            results.append(model(**data, mode='predict')[0].pred_instances)
    assert len(results[0]) > 0
    torch.testing.assert_close(results[0].bboxes, results[1].bboxes)
    torch.testing.assert_close(results[0].scores, results[1].scores)


def test_gates_run_on_each_region_and_learn():
    model = build(config(GATES)).train()
    gates = {n: m for n, m in model.named_modules() if type(m).__name__ == 'CAT'}
    assert len(gates) == 8 and sum('layer4' in name for name in gates) == 2
    sizes = {}
    for name, gate in gates.items():
        gate.register_forward_hook(lambda m, args, out, name=name: sizes.update({name: out.shape}))
    total = losses(model)
    sum(v for k, v in total.items() if 'loss' in k).backward()
    assert len(sizes) == 8
    for name, shape in sizes.items():
        # regions of 7 x 7, as many as were drawn, in the last stage; an image of 96 x 128 before
        stage = int(name.split('layer')[1][0])
        width = 7 if stage == 4 else 128 // 2 ** (stage + 1)
        assert (shape[0] > 1 if stage == 4 else shape[0] == 1) and shape[-1] == width, name
    for name, gate in gates.items():
        learns = 'layer1' not in name  # the frozen stage
        assert all((p.grad is not None) is learns for p in gate.parameters()), name


def test_there_is_one_last_stage():
    """In the state dict, in copies, and for what walks through the modules."""
    model = build(config())
    for one in (model, copy.deepcopy(model)):
        assert one.roi_head.shared_head is one.backbone.layer4
        assert not [key for key in one.state_dict() if 'shared_head' in key]
        assert [key for key in one.state_dict() if key.startswith('backbone.layer4.')]
    assert copy.deepcopy(model).backbone.layer4 is not model.backbone.layer4
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(set(norms)) == 20
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    stage = converted.roi_head.shared_head
    assert stage is converted.backbone.layer4
    assert isinstance(stage[0].bn1, nn.SyncBatchNorm)


@pytest.mark.parametrize('how', ['init_cfg', '--pretrained'])
def test_a_checkpoint_of_the_backbone_reaches_all_stages(how, tmp_path):
    cfg = config(GATES)
    torch.manual_seed(1)
    saved = MODELS.build(dict(cfg.backbone, out_indices=(3,))).state_dict()
    path = str(tmp_path / 'backbone.pth')
    torch.save(saved, path)
    if how == 'init_cfg':
        cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    model = build(cfg)
    model.init_weights()
    if how == '--pretrained':
        load_backbone(model, path)
    found = model.backbone.state_dict()
    assert list(found) == list(saved)
    assert all(torch.equal(found[key], saved[key]) for key in saved)


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(backbone=dict(out_indices=(2, 3))), r'out_indices \(2, 3\); allowed: up to 2'),
        (
            dict(roi_head=dict(shared_head=dict(type='ResLayer', depth=18))),
            'roi_head.shared_head must be None',
        ),
        (
            dict(backbone=dict(_delete_=True, type='MobileNetV2', out_indices=(2,))),
            'takes a ResNet as its backbone, got MobileNetV2',
        ),
    ],
)
def test_other_parts_are_refused(change, words):
    cfg = Config(config().to_dict())
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=words):
        MODELS.build(cfg)
