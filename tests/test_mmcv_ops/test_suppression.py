"""Non-maximum suppression against the definition, a box at a time."""

import numpy as np
import pytest
import torch
from operator_cases import boxes

pytestmark = pytest.mark.usefixtures('stand_in')


def iou(a, b, offset):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area, other = ((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
    return width * height / (area + other - width * height)


def kept(boxes, scores, threshold, offset):
    boxes, keep = boxes.double().tolist(), []
    for index in scores.argsort(descending=True).tolist():
        if all(iou(boxes[index], boxes[other], offset) <= threshold for other in keep):
            keep.append(index)
    return keep


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms(offset, dtype):
    from mmcv.ops import nms

    candidates, scores = boxes(200, dtype=dtype), torch.randperm(200).to(dtype)
    dets, keep = nms(candidates, scores, 0.4, offset)
    assert keep.tolist() == kept(candidates, scores, 0.4, offset) and 10 < len(keep) < 190
    assert dets.dtype == dtype and torch.equal(dets[:, :4], candidates[keep])


def test_nms_at_the_threshold():
    # The IoU is 0.6 exactly, but as a float32 it lies above 0.6 as a double.
    from mmcv.ops import nms

    pair = torch.tensor([[0.0, 0, 8, 1], [2, 0, 10, 1]])
    for iou_threshold, number in (0.6, 2), (0.59, 1):
        assert len(nms(pair, torch.tensor([0.9, 0.8]), iou_threshold)[1]) == number


def test_nms_options():
    from mmcv.ops import batched_nms, nms

    candidates, scores = boxes(50).float(), torch.rand(50)
    _, keep = nms(candidates, scores, 0.5, score_threshold=0.3, max_num=5)
    high = (scores > 0.3).nonzero()[:, 0]
    assert keep.tolist() == high[kept(candidates[high], scores[high], 0.5, 0)][:5].tolist()
    dets, inds = nms(candidates.cpu().numpy(), scores.cpu().numpy(), 0.5)
    assert isinstance(dets, np.ndarray) and inds.tolist() == kept(candidates, scores, 0.5, 0)
    classes = torch.arange(50) % 3
    _, keep = batched_nms(candidates, scores, classes, dict(type='nms', iou_threshold=0.5))
    own = [classes.eq(index).nonzero()[:, 0] for index in range(3)]
    expected = sum((i[kept(candidates[i], scores[i], 0.5, 0)].tolist() for i in own), [])
    assert sorted(keep.tolist()) == sorted(expected)


def test_nothing_to_suppress():
    from mmcv.ops import nms, nms_match, soft_nms

    none = torch.empty(0, 4), torch.empty(0)
    for function in (nms, soft_nms):
        dets, keep = function(*none, 0.5)
        assert dets.shape == (0, 5) and keep.shape == (0,) and keep.dtype == torch.long
    assert nms_match(torch.empty(0, 5), 0.5) == []


def lowered(boxes, scores, threshold, sigma, least, method, offset):
    boxes, scores, chosen = boxes.tolist(), dict(enumerate(scores.tolist())), []
    while scores:
        best = max(scores, key=scores.get)
        chosen.append((best, scores.pop(best)))
        for index in list(scores):
            overlap = iou(boxes[best], boxes[index], offset)
            if method == 'gaussian':
                scores[index] *= np.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                scores[index] *= 1 - overlap if method == 'linear' else 0
            if scores[index] < least:
                del scores[index]
    return chosen


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms(method, offset):
    from mmcv.ops import soft_nms

    candidates, scores = boxes(100), torch.rand(100).double()
    dets, keep = soft_nms(candidates, scores, 0.3, 0.5, 0.05, method, offset)
    expected = lowered(candidates, scores, 0.3, 0.5, 0.05, method, offset)
    assert keep.tolist() == [index for index, _ in expected] and 10 < len(keep) < 100
    assert torch.equal(dets[:, :4], candidates[keep])
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]).double())


def test_nms_match():
    from mmcv.ops import nms_match

    candidates, scores = boxes(80), torch.rand(80).double()
    groups = nms_match(torch.cat((candidates, scores[:, None]), dim=1), 0.3)
    assert [group[0].item() for group in groups] == kept(candidates, scores, 0.3, 0)
    assert sorted(torch.cat(groups).tolist()) == list(range(80)) and len(groups) < 80
    for index, group in enumerate(groups):
        best, *others = group.tolist()
        assert scores[group].tolist() == sorted(scores[group].tolist(), reverse=True)
        for other in others:
            assert iou(candidates[best].tolist(), candidates[other].tolist(), 0) >= 0.3
            earlier = [groups[i][0] for i in range(index)]
            assert all(
                iou(candidates[i].tolist(), candidates[other].tolist(), 0) < 0.3 for i in earlier
            )
