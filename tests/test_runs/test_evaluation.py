"""An evaluation in several processes counts each sample once, for each metric of the configs."""

import json
import os
import pickle
import traceback
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmpretrain.evaluation import Accuracy
from mmseg.evaluation import IoUMetric

from mmattn.datasets import digits
from mmattn.evaluation.voc_ap import VOCAPMetric
from mmattn.runs import EvaluateBeforeTraining
from mmattn.runs.cli import move_data

QUICKSTART = Path(__file__).parents[2] / 'configs' / 'quickstart'
CLASSES = ('a', 'b', 'c')


def classified(index):
    scores = torch.rand(3, generator=torch.Generator().manual_seed(index))
    return dict(pred_score=scores, gt_label=torch.tensor([index % 3]))


def segmented(index):
    noise = torch.Generator().manual_seed(index)
    draw = [torch.randint(0, 3, (1, 8, 8), generator=noise) for _ in range(2)]
    return dict(pred_sem_seg=dict(data=draw[0]), gt_sem_seg=dict(data=draw[1]))


def box(index):
    return [4.0 * index, 4.0, 4.0 * index + 20, 30.0]


def detected(index):
    """Two boxes, the second of which is right for two images in three."""
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], box(index)])
    labels = torch.tensor([0, (index + (index % 3 == 2)) % 3])
    scores = torch.tensor([0.3, 0.9 - index / 20])
    instances = dict(bboxes=torch.tensor([box(index)]), labels=torch.tensor([index % 3]))
    return dict(
        img_id=index,
        ori_shape=(64, 64),
        pred_instances=dict(bboxes=boxes, scores=scores, labels=labels),
        gt_instances=instances,
        ignored_instances=dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()),
    )


def coco(folder, size):
    path = folder / f'{os.getpid()}_{size}.json'
    boxes = [box(index) for index in range(size)]
    annotations = [
        dict(id=index + 1, image_id=index, category_id=index % 3, iscrowd=0, area=20 * 26,
             bbox=[left, top, right - left, bottom - top])
        for index, (left, top, right, bottom) in enumerate(boxes)
    ]  # fmt: skip
    path.write_text(
        json.dumps(
            dict(
                images=[dict(id=index, width=64, height=64) for index in range(size)],
                annotations=annotations,
                categories=[dict(id=label, name=name) for label, name in enumerate(CLASSES)],
            )
        )
    )
    return CocoMetric(ann_file=str(path), metric='bbox')


METRICS = {
    'accuracy': (lambda folder, size: Accuracy(topk=(1, 2)), classified),
    'IoU': (lambda folder, size: IoUMetric(iou_metrics=['mIoU']), segmented),
    'VOC AP': (lambda folder, size: VOCAPMetric(eval_mode='area'), detected),
    'COCO AP': (coco, detected),
}


def evaluate(folder, size):
    """All metrics, as this process gets them."""
    results = {}
    for name, (build, sample) in METRICS.items():
        metric = build(folder, size)
        metric.dataset_meta = dict(classes=CLASSES)
        for index in DefaultSampler(range(size), shuffle=False):
            metric.process(None, [sample(index)])
        results[name] = metric.evaluate(size)
    return results


def in_processes(folder, count, evaluate):
    """What an evaluation gives to the first of some processes that are in a group."""
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        try:
            os.chdir(folder)  # mmengine collects in a folder there
            os.environ.update(GLOO_SOCKET_IFNAME='lo', LOCAL_RANK=str(rank))
            torch.set_num_threads(1)
            store = torch.distributed.FileStore(str(folder / f'store_{count}'), count)
            torch.distributed.init_process_group('gloo', store=store, rank=rank, world_size=count)
            results = evaluate()
            if rank == 0:
                (folder / 'results').write_bytes(pickle.dumps(results))
            torch.distributed.barrier()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count
    return pickle.loads((folder / 'results').read_bytes())


@pytest.mark.parametrize('size', [7, 2])
def test_each_sample_counts_once(tmp_path, size):
    """Sizes that the processes do not divide, and one that is less than their number."""
    alone = evaluate(tmp_path, size)
    assert alone.keys() == METRICS.keys()
    for count in (2, 3):
        assert in_processes(tmp_path, count, lambda: evaluate(tmp_path, size)) == alone


@pytest.mark.parametrize('name', METRICS)
def test_a_sample_that_counts_twice_would_be_seen(tmp_path, name):
    build, sample = METRICS[name]
    results = []
    for indices in (range(7), [*range(7), 2, 2]):
        metric = build(tmp_path, 7)
        metric.dataset_meta = dict(classes=CLASSES)
        for index in indices:
            metric.process(None, [sample(index)])
        results.append(metric.evaluate(len(indices)))
    assert results[0] != results[1]


@MODELS.register_module('Guesser', force=True)
class Guesser(BaseModel):
    """Knows what is to be found, and gets a part of it wrong, another in each image."""

    def __init__(self, data_preprocessor=None):
        super().__init__()  # and none, as no pixel is looked at
        self.weight = torch.nn.Parameter(torch.zeros(1))  # DDP wants one

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for sample in data_samples:
            noise = torch.Generator().manual_seed(zlib.crc32(Path(sample.img_path).name.encode()))
            if 'gt_instances' in sample:
                sample.pred_instances = self.boxes(sample.gt_instances, noise)
            else:
                labels = sample.gt_sem_seg.data.clone()
                wrong = torch.rand(labels.shape, generator=noise) < 0.3
                labels[wrong] = torch.randint(0, 11, (int(wrong.sum()),), generator=noise)
                sample.pred_sem_seg = PixelData(data=labels)
        return data_samples

    @staticmethod
    def boxes(truth, noise):
        boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
        draw = torch.rand(len(boxes), 6, generator=noise)
        right = draw[:, 5] > 0.3
        return InstanceData(
            bboxes=boxes + 6 * draw[:, :4],
            labels=torch.where(right, truth.labels, (truth.labels + 1) % 10),
            scores=draw[:, 4],
        )


def metrics_of(config, root, folder, distributed):
    """The metrics of a quickstart's config on seven images, with the loader and all it has."""
    cfg = Config.fromfile(config, import_custom_modules=False)
    move_data(cfg, str(root))
    cfg.model = dict(type='Guesser')
    cfg.test_dataloader.batch_size = 2
    cfg.update(
        work_dir=str(folder / 'work'),
        launcher='pytorch' if distributed else 'none',
        log_level='ERROR',
        experiment_name=f'{config.stem}_{next(toy.NUMBERS)}',
        train_dataloader=None, train_cfg=None, optim_wrapper=None, param_scheduler=None,
        val_dataloader=None, val_cfg=None, val_evaluator=None, custom_hooks=None,
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return toy.runner(cfg.to_dict()).test()


@pytest.mark.slow
@pytest.mark.parametrize(
    'data, config, metric',
    [
        ('coco', 'retinanet_r18-cat_fpn_digits-coco.py', 'coco/bbox_mAP'),
        ('voc', 'faster-rcnn_r18-cat_fpn_digits-voc.py', 'pascal_voc/AP50'),
        ('vocseg', 'fcn_r18-d8-drtam-pool_digits-voc.py', 'mIoU'),
    ],
    ids=['COCO', 'VOC', 'segmentation'],
)
def test_a_test_in_processes_is_that_in_one(tmp_path, data, config, metric):
    """Data sets, loaders, samplers and evaluators as in the configs."""
    digits.make(tmp_path / 'digits', data, num=14, num_val=7, size=64)
    results = []
    for count in (1, 2, 3):
        run = partial(metrics_of, QUICKSTART / config, tmp_path, tmp_path / str(count), count > 1)
        results.append(in_processes(tmp_path, count, run))
    assert 0 < results[0][metric] < (100 if metric == 'mIoU' else 1)
    for result in results:
        result.pop('time', None), result.pop('data_time', None)
    assert results[1:] == results[:1] * 2


def test_nothing_is_evaluated_before_a_training_without_validation():
    """The quickstart's configs, with `--no-validate`."""
    EvaluateBeforeTraining().before_train(SimpleNamespace(iter=0, val_loop=None))
