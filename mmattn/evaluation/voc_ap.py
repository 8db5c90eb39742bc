from typing import Any

import numpy as np
from mmdet.evaluation import VOCMetric, average_precision, bbox_overlaps
from mmdet.registry import METRICS
from mmengine.logging import MMLogger

from mmattn.registry import register

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100


@register(METRICS)
class VOCAPMetric(VOCMetric):
    """Pascal VOC's AP averaged over IoU 0.50:0.05:0.95, as CAT's tables and Detectron2 print it.

    At each threshold the AP is Pascal VOC's own: boxes include their last pixel, a detection
    belongs to the object it overlaps most and is right if it is the first there with an IoU
    *above* the threshold, a difficult object counts neither way. Results are fractions, like those
    of mmdet's other metrics: `pascal_voc/AP`, `pascal_voc/AP50` and `pascal_voc/AP75`. Classes
    without an object in the ground truth are left out of the mean.

    mmdet's `VOCMetric` rounds to 0.1 %, takes an IoU equal to the threshold for a match, and starts
    a pool of processes at each threshold; its reading of samples and its AP rules serve here too.

    Args:
        eval_mode (str): '11points', the rule of VOC2007, or 'area', the rule from 2010 on.
        **kwargs: `collect_device` and `prefix`, as in mmengine's `BaseMetric`.

    Raises:
        ValueError: for another `eval_mode`.
    """

    def __init__(self, eval_mode: str = '11points', **kwargs: Any) -> None:
        if eval_mode not in ('11points', 'area'):
            raise ValueError(f"eval_mode must be '11points' or 'area', got {eval_mode!r}")
        super().__init__(eval_mode=eval_mode, **kwargs)

    def compute_metrics(self, results: list) -> dict[str, float]:
        aps = {}
        for label, name in enumerate(self.dataset_meta['classes']):
            ap = class_ap(results, label, self.eval_mode)
            if ap is not None:
                aps[name] = ap
        if not aps:
            return {'AP': 0.0, 'AP50': 0.0, 'AP75': 0.0}
        logger = MMLogger.get_current_instance()
        logger.info(
            'AP of each class: ' + ', '.join(f'{name} {ap.mean():.4f}' for name, ap in aps.items())
        )
        mean = np.mean(list(aps.values()), 0)
        return {'AP': float(mean.mean()), 'AP50': float(mean[0]), 'AP75': float(mean[5])}


def class_ap(results: list, label: int, eval_mode: str) -> np.ndarray | None:
    """AP of one class at each of `IOU_THRESHOLDS`.

    Args:
        results (list): (annotation, detections) of each image. The annotation has `bboxes` (G, 4),
            `labels` (G, ), `bboxes_ignore` and `labels_ignore` (the difficult ones); detections
            are one (M, 5) array of boxes and scores for each class.
        label (int): The class.
        eval_mode (str): '11points' or 'area'.

    Returns:
        ndarray: (10, ), or None if no image holds an object of the class that is not difficult.
    """
    scores, overlaps, objects = [], [], []
    num_objects = 0
    for annotation, detections in results:
        boxes = annotation['bboxes'][annotation['labels'] == label]
        difficult = annotation['bboxes_ignore'][annotation['labels_ignore'] == label]
        found = detections[label]
        scores.append(found[:, 4])
        if len(boxes) + len(difficult) and len(found):
            iou = bbox_overlaps(
                found[:, :4], np.vstack([boxes, difficult]), use_legacy_coordinate=True
            )
            best = iou.argmax(1)
            overlaps.append(iou.max(1))
            # objects are numbered over all images, a difficult one is -1
            objects.append(np.where(best < len(boxes), num_objects + best, -1))
        else:
            overlaps.append(np.zeros(len(found)))
            objects.append(np.full(len(found), -1))
        num_objects += len(boxes)
    if num_objects == 0:
        return None
    order = np.argsort(-np.concatenate(scores), kind='stable')
    overlaps, objects = np.concatenate(overlaps)[order], np.concatenate(objects)[order]
    aps = []
    for threshold in IOU_THRESHOLDS.astype(overlaps.dtype):
        matched = overlaps > threshold
        right = np.zeros(len(order), bool)
        candidates = np.flatnonzero(matched & (objects >= 0))
        right[candidates[np.unique(objects[candidates], return_index=True)[1]]] = True
        wrong = ~right & ~(matched & (objects < 0))
        hits, misses = right.cumsum(), wrong.cumsum()
        precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
        aps.append(average_precision(hits / num_objects, precision, eval_mode))
    return np.array(aps, np.float64)
