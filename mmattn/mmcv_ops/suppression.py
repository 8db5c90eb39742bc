"""Non-maximum suppression."""

import numpy as np
import torch
from torch import Tensor

from .common import tv, wide


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (N, 4) that stay, by falling score."""
    dtype = torch.promote_types(wide(boxes).dtype, scores.dtype)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        # Corners are pixels, the last one counts: its far edge is one further.
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares in float32: an IoU of exactly 0.6 is not above a threshold of 0.6.
    return tv.nms(boxes, scores, float(np.float32(iou_threshold)))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices of the boxes (N, 4) that stay; their boxes and lowered scores go to dets (N, 5).

    `method` is 0 for hard, 1 for linear, 2 for Gaussian lowering. On the CPU, as mmcv's.
    """
    corners, lowered = wide(boxes).T.numpy().copy(), wide(scores).numpy().copy()
    index = np.arange(len(lowered))
    stay, best = len(lowered), 0
    while best < stay:
        rest = slice(best + 1, stay)
        # Equal scores stand where mmcv's swaps put them, so that they come in its order.
        swap = [best, best + int(lowered[best:stay].argmax())]
        for array in (corners, lowered, index):
            array[..., swap] = array[..., swap[::-1]]
        iou = _iou(corners[:, best], corners[:, rest], offset)
        if method == 2:
            lowered[rest] *= np.exp(-iou * iou / sigma)
        else:
            lowered[rest] *= np.where(iou >= iou_threshold, 1 - iou if method == 1 else 0, 1)
        keep = ~(lowered[rest] < min_score)
        kept = np.count_nonzero(keep)
        if kept < len(keep):
            holes = best + 1 + np.flatnonzero(~keep[:kept])
            fillers = best + 1 + kept + np.flatnonzero(keep[kept:])[::-1]
            for array in (corners, lowered, index):
                array[..., holes] = array[..., fillers]
        best += 1
        stay = best + kept
    dets[:stay, :4] = torch.from_numpy(corners[:, :stay].T)
    dets[:stay, 4] = torch.from_numpy(lowered[:stay])
    return torch.from_numpy(index[:stay])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of dets (N, 5), each one that stays followed by those that it suppresses."""
    falling = dets[:, 4].argsort(descending=True, stable=True)
    boxes, order = wide(dets[falling, :4]).T.numpy(), falling.numpy()
    groups = []
    while len(order):
        hit = _iou(boxes[:, 0], boxes, 0) >= np.float32(iou_threshold)
        hit[0] = True  # be it without area
        groups.append(order[hit].tolist())
        boxes, order = boxes[:, ~hit], order[~hit]
    return groups


def _iou(box: np.ndarray, boxes: np.ndarray, offset: int) -> np.ndarray:
    """IoU of a box (4,) with boxes (4, N)."""
    width = np.minimum(box[2], boxes[2]) - np.maximum(box[0], boxes[0]) + offset
    height = np.minimum(box[3], boxes[3]) - np.maximum(box[1], boxes[1]) + offset
    overlap = width.clip(min=0) * height.clip(min=0)
    area = (box[2] - box[0] + offset) * (box[3] - box[1] + offset)
    areas = (boxes[2] - boxes[0] + offset) * (boxes[3] - boxes[1] + offset)
    with np.errstate(invalid='ignore', divide='ignore'):  # boxes without area
        return overlap / (area + areas - overlap)
