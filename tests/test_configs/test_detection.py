"""The detectors' rows do what their platform does; their alternatives change what they say."""

import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

pytest.importorskip('mmpretrain')
mmdet = pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
coco_mask = pytest.importorskip('pycocotools.mask')

from mmattn import papers  # noqa: E402  (first: it has the operators where mmcv has none)

# isort: split
from mmdet.registry import DATASETS, MODELS, TASK_UTILS  # noqa: E402
from mmdet.structures.mask import mask_target  # noqa: E402

from mmattn.analysis import complexity, counters  # noqa: E402
from mmattn.papers import alternatives  # noqa: E402

ROOT = papers.config_root()
MASKS = sorted({e.config for e in papers.entries() if 'mask-rcnn' in e.config})
CAT_DETECTORS = sorted({e.config for e in papers.entries('cat') if e.table in (1, 2, 5, 6)})
RETINA = 'cat/retinanet_r50-cat_fpn_4xb2-18k_voc0712.py'
FASTER = 'cat/faster-rcnn_r50-cat_fpn_4xb2-18k_voc0712.py'


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@cache
def read(path, *names):
    return alternatives.combine(ROOT / path, names)


def test_a_region_is_of_the_object_that_it_overlaps_most():
    """So in Detectron2's RoI heads; MMDetection's Mask R-CNN lets each object keep its best one."""
    objects = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 100, 90], [0, 10, 100, 100]]), labels=torch.tensor([1, 2])
    )
    # The first region overlaps the first object more; none overlaps the second more than it does.
    regions = InstanceData(priors=torch.tensor([[0.0, 0, 100, 98], [0, 0, 100, 10]]))
    for path in MASKS:
        assigner = read(path).model.train_cfg.rcnn.assigner
        found = TASK_UTILS.build(assigner).assign(regions, objects)
        assert found.gt_inds.tolist() == [1 if path.startswith('cat/') else 2, 0], path


@pytest.fixture
def polygon(tmp_path):
    """COCO with one object, a triangle in an image of 100 x 80 pixels."""
    corners = [20.5, 10.25, 80.75, 30.5, 40.5, 70.5]
    for name in ('train2017', 'annotations'):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / 'train2017' / '1.jpg'), np.zeros((80, 100, 3), np.uint8))
    box = [20.5, 10.25, 60.25, 60.25]
    annotation = dict(id=1, image_id=1, category_id=1, bbox=box, area=900, iscrowd=0)
    content = dict(
        images=[dict(id=1, file_name='1.jpg', width=100, height=80)],
        annotations=[dict(annotation, segmentation=[corners])],
        categories=[dict(id=1, name='person')],
    )
    path = tmp_path / 'annotations' / 'instances_train2017.json'
    path.write_text(json.dumps(content))
    return tmp_path, corners


def test_masks_are_polygons_until_they_are_cut_to_a_region(polygon):
    """Detectron2 scales the polygon to a region's 28 x 28; MMDetection its pixels."""
    root, corners = polygon
    for paper in papers.PAPERS:
        rows = [path for path in MASKS if path.startswith(paper)]
        dataset = read(rows[0]).train_dataloader.dataset.to_dict()
        assert all(read(path).train_dataloader.dataset == dataset for path in rows)
        dataset.update(data_root=f'{root}/')
        for transform in dataset['pipeline']:
            if transform['type'] == 'RandomFlip':
                transform['prob'] = 0.0
        sample = DATASETS.build(dataset)[0]['data_samples']
        scale = sample.img_shape[1] / 100
        region = torch.tensor([[18.0, 5, 70, 66]]) * scale
        (found,) = mask_target(
            [region],
            [torch.tensor([0])],
            [sample.gt_instances.masks],
            Config(dict(mask_size=28)),
        )
        x1, y1, x2, y2 = region[0].tolist()
        cut = np.array(corners).reshape(-1, 2) * scale - [x1, y1]
        cut *= [28 / (x2 - x1), 28 / (y2 - y1)]
        wanted = coco_mask.decode(coco_mask.frPyObjects([cut.reshape(-1).tolist()], 28, 28))[..., 0]
        assert 150 < wanted.sum() < 28 * 28
        assert np.array_equal(found.numpy(), wanted) is (paper == 'cat')


def test_the_batch_of_mask_rcnn():
    for path in MASKS:
        if path.startswith('cat/'):
            assert read(path).train_dataloader.batch_size == 4
            assert read(path).auto_scale_lr.base_batch_size == 8
    cfg = read('cat/mask-rcnn_r50-cat_fpn_2xb4-90k_coco.py', 'mask-rcnn-batch-4')
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 4
    assert cfg.optim_wrapper.optimizer.lr == 0.02


@pytest.mark.parametrize('lr', [0.005, 0.02])
@pytest.mark.parametrize('path', [RETINA, RETINA.replace('18k_voc0712', '90k_coco')])
def test_other_rates_of_retinanet(path, lr):
    name = f'retinanet-lr-{lr}'
    (difference,) = alternatives.changes(path, [name])
    assert str(difference) == f'optim_wrapper.optimizer.lr: 0.01 -> {lr}'


def test_retinanet_as_detectron2_has_it():
    cfg = read(RETINA, 'retinanet-detectron2').model
    torch.manual_seed(0)
    neck = MODELS.build(cfg.neck)
    neck.init_weights()
    features = [torch.randn(1, c, s, s) for c, s in ((256, 16), (512, 8), (1024, 4), (2048, 2))]
    with torch.no_grad():
        *_, p6, p7 = neck(features)
        torch.testing.assert_close(p6, neck.fpn_convs[3](features[-1]))
        torch.testing.assert_close(p7, neck.fpn_convs[4](p6.relu()))
        assert not torch.allclose(p7, neck.fpn_convs[4](p6))
    # Uniform with a variance of 1 / (inputs of an output), as Caffe2's Xavier has it.
    for conv in (neck.lateral_convs[2].conv, neck.fpn_convs[3].conv):
        inputs = conv.weight[0].numel()
        assert conv.weight.abs().max() <= (3 / inputs) ** 0.5
        torch.testing.assert_close(conv.weight.var().item(), 1 / inputs, rtol=0.02, atol=0)
        assert not conv.bias.any()
    assert cfg.bbox_head.type == 'EMARetinaHead'
    # Quadratic below an error of 0.1, linear above.
    loss = MODELS.build(cfg.bbox_head.loss_bbox)
    for error, wanted in ((0.02, 0.02**2 / 0.2), (0.1, 0.05), (0.6, 0.55)):
        found = loss(torch.tensor([[error]]), torch.zeros(1, 1))
        torch.testing.assert_close(found, torch.tensor(wanted))


def test_every_detector_of_cat_can_start_from_msras_weights():
    for path in CAT_DETECTORS:
        model = read(path, 'msra').model
        # Caffe's images: BGR, of which only the mean is taken
        processor = model.data_preprocessor
        assert processor.mean == [103.53, 116.28, 123.675] and processor.std == [1, 1, 1]
        assert processor.bgr_to_rgb is False
        backbone = model.backbone
        assert backbone.style == 'caffe'
        assert backbone.init_cfg.checkpoint == f'msra://data/msra/R-{backbone.depth}.pkl', path


def test_c4_is_the_platforms():
    """As the C4 that MMDetection took from Detectron2, but for the gates and where the fourth
    stage is."""
    folder = Path(mmdet.__file__).parent / '.mim' / 'configs'
    theirs = folder / 'pascal_voc' / 'faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py'
    if not theirs.is_file():
        pytest.skip('mmdet was installed without its configs')
    theirs, ours = Config.fromfile(theirs).model, read(FASTER, 'c4', 'msra').model
    for part in ('rpn_head', 'train_cfg', 'test_cfg', 'data_preprocessor'):
        assert ours[part].to_dict() == theirs[part].to_dict(), part
    for part in ('bbox_roi_extractor', 'bbox_head'):
        assert ours.roi_head[part].to_dict() == theirs.roi_head[part].to_dict(), part
    assert ours.neck is None and 'neck' not in theirs
    for key in ('depth', 'style', 'norm_cfg', 'norm_eval', 'frozen_stages', 'out_indices'):
        assert ours.backbone[key] == theirs.backbone[key], key


@pytest.mark.parametrize('path', [FASTER, FASTER.replace('18k_voc0712', '90k_coco')])
def test_c4_has_gates_in_its_last_stage(path):
    model = complexity.build(read(path, 'c4'))
    last = model.roi_head.shared_head
    assert [type(block.cat).__name__ for block in last] == ['CAT'] * 3
    classes = read(path).model.roi_head.bbox_head.num_classes
    assert model.roi_head.bbox_head.fc_cls.out_features == classes + 1


def test_c4_is_counted():
    """Its last stage runs on 1000 regions of 14 x 14, with stride 2, gates included."""
    counted = [
        complexity.count(complexity.build(read(path, 'c4')), counters.DEFAULTS['mmdet'])
        for path in (FASTER.replace('-cat', ''), FASTER)
    ]
    stage = 14 * 14 * 1024 * 512 + 3 * 49 * 512 * 512 * 9 + 49 * (1024 * 2048 + 5 * 512 * 2048)
    bare, gated = (one.parts['bbox_head'] / 1000 for one in counted)
    assert set(counted[0].parts) == {'backbone', 'rpn_head', 'bbox_head'}
    assert stage < bare < 1.01 * stage  # and norms, activations, the two linear layers
    assert bare + 3 * 49 * 2048 < gated < 1.02 * bare


def test_without_gep_there_may_be_the_average_alone():
    rows = [e.config for e in papers.entries('cat', 6) if e.method.endswith('w/o GEP')]
    assert len(rows) == 4
    for path in rows:
        (plugin,) = read(path, 'nogep-avg').model.backbone.plugins
        (row,) = read(path).model.backbone.plugins
        assert plugin.cfg.to_dict() == {**row.cfg.to_dict(), 'pools': ('avg',)}, path
        assert plugin.position == row.position
    for entry in papers.entries('cat', 6):
        assert ('nogep-avg' in alternatives.of_row(entry.config)) is (entry.config in rows)
