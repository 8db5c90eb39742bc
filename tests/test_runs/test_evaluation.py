"""An evaluation in several processes counts each sample once, for each metric of the configs."""

import json
import os
import pickle
import traceback

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.dataset import DefaultSampler
from mmpretrain.evaluation import Accuracy
from mmseg.evaluation import IoUMetric

from mmattn.evaluation.voc_ap import VOCAPMetric

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


def in_processes(folder, count, size):
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        try:
            os.chdir(folder)  # mmengine collects in a folder there
            os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
            torch.set_num_threads(1)
            store = torch.distributed.FileStore(str(folder / f'store_{count}_{size}'), count)
            torch.distributed.init_process_group('gloo', store=store, rank=rank, world_size=count)
            results = evaluate(folder, size)
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
        assert in_processes(tmp_path, count, size) == alone


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
