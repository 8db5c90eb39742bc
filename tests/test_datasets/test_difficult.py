"""Difficult objects of Pascal VOC: objects in training, neither right nor wrong in evaluation."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmdet')

from mmdet.registry import DATASETS, TASK_UTILS, TRANSFORMS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from mmattn import papers  # noqa: E402

EASY, DIFFICULT = (10, 10, 40, 40), (60, 60, 90, 90)
VOC_ROWS = sorted({e.config for e in papers.entries('cat') if e.table in (1, 6)})


def read(path):
    return Config.fromfile(papers.config_root() / path, import_custom_modules=False)


@pytest.fixture(scope='module')
def voc(tmp_path_factory):
    """One image of 100 x 100 pixels with two dogs, the second of which is difficult."""
    register_all_modules()
    root = tmp_path_factory.mktemp('voc')
    for year in ('VOC2007', 'VOC2012'):
        for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (root / year / folder).mkdir(parents=True)
        objects = ''.join(
            f'<object><name>dog</name><difficult>{difficult}</difficult><bndbox>'
            + ''.join(
                f'<{key}>{value}</{key}>'
                for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
            )
            + '</bndbox></object>'
            for difficult, box in enumerate((EASY, DIFFICULT))
        )
        size = '<size><width>100</width><height>100</height></size>'
        text = f'<annotation>{size}{objects}</annotation>'
        (root / year / 'Annotations' / '1.xml').write_text(text)
        cv2.imwrite(str(root / year / 'JPEGImages' / '1.jpg'), np.zeros((100, 100, 3), np.uint8))
        for name in ('train', 'val', 'trainval', 'test'):
            (root / year / 'ImageSets' / 'Main' / f'{name}.txt').write_text('1\n')
    return root


def samples(cfg, loader, root):
    """The data samples of a row's training or validation set, read from `root`."""
    dataset = cfg[loader].dataset.to_dict()
    for item in dataset.get('datasets', [dataset]):
        item['data_root'] = f'{root}/'
    dataset = DATASETS.build(dataset)
    assert len(dataset)
    return [dataset[i]['data_samples'] for i in range(len(dataset))]


@pytest.mark.parametrize(
    'row', ['faster-rcnn_*-18k_voc0712', 'retinanet_*-18k_voc0712', 'faster-rcnn_*-18k_voc12']
)
def test_the_rows_train_on_them(row, voc):
    cfg = read(f'cat/{row.replace("*", "r50_fpn_4xb2")}.py')
    for sample in samples(cfg, 'train_dataloader', voc):
        assert sample.gt_instances.labels.tolist() == [11, 11]
        assert len(sample.ignored_instances) == 0
        # A region on the difficult dog is a dog, for the row's own assigner.
        train = cfg.model.train_cfg
        assigner = TASK_UTILS.build(train.rcnn.assigner if 'rcnn' in train else train.assigner)
        truth = sample.gt_instances
        truth.bboxes = truth.bboxes.tensor
        found = assigner.assign(InstanceData(priors=truth.bboxes.clone()), truth)
        assert found.gt_inds.tolist() == [1, 2]
        assert found.labels.tolist() == [11, 11]
    for sample in samples(cfg, 'val_dataloader', voc):
        assert sample.gt_instances.labels.tolist() == [11]
        assert sample.ignored_instances.labels.tolist() == [11]
        expected = torch.tensor([DIFFICULT]) - 1.0
        torch.testing.assert_close(sample.ignored_instances.bboxes.tensor, expected)


def test_every_row_of_voc_clears_the_marks_to_train_and_keeps_them_to_test():
    for path in VOC_ROWS:
        cfg = read(path)
        train = cfg.train_dataloader.dataset
        for dataset in train.get('datasets', [train]):
            types = [transform.type for transform in dataset.pipeline]
            assert types.index('DifficultAsObjects') == types.index('LoadAnnotations') + 1, path
        for loader in (cfg.val_dataloader, cfg.test_dataloader):
            types = [transform.type for transform in loader.dataset.pipeline]
            assert 'DifficultAsObjects' not in types, path


def test_it_must_stand_after_the_annotations():
    with pytest.raises(KeyError, match='must stand after LoadAnnotations'):
        TRANSFORMS.build(dict(type='DifficultAsObjects'))({})
