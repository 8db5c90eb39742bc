import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import METRICS  # noqa: E402

from mmattn.evaluation.voc_ap import VOCAPMetric  # noqa: E402


def sample(objects, found, difficult=()):
    """A data sample of (class, box) objects and (class, score, box) detections."""

    def boxes(items):
        return torch.tensor([item[-1] for item in items], dtype=torch.float32).reshape(-1, 4)

    def labels(items):
        return torch.tensor([item[0] for item in items], dtype=torch.long)

    return dict(
        gt_instances=dict(bboxes=boxes(objects), labels=labels(objects)),
        ignored_instances=dict(bboxes=boxes(difficult), labels=labels(difficult)),
        pred_instances=dict(
            bboxes=boxes(found),
            labels=labels(found),
            scores=torch.tensor([item[1] for item in found], dtype=torch.float32),
        ),
    )


def evaluate(samples, classes=('cat',), **kwargs):
    metric = METRICS.build(dict(type='VOCAPMetric', **kwargs))
    assert isinstance(metric, VOCAPMetric)
    metric.dataset_meta = dict(classes=classes, dataset_type='VOC2007')
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def test_a_case_worked_out_by_hand():
    """Two objects of 10 x 10 pixels; by score: a perfect hit, a miss, a hit of IoU 0.7.

    Boxes include their last pixel, so (0, 0, 9, 9) has 100 pixels and (0, 0, 9, 6) has 70 of them.
    IoU <= 0.65: recall 1/2, 1/2, 1 at precision 1, 1/2, 2/3. Of the 11 recalls, 0 to 0.5 (six) find
    precision 1, the other five 2/3: AP = (6 + 5 * 2 / 3) / 11 = 28/33. Above: the third is wrong
    (an IoU of exactly 0.7 is not above 0.7), AP = 6/11. Four thresholds are below 0.7, six are not.
    """
    objects = [(0, (0, 0, 9, 9)), (0, (100, 100, 109, 109))]
    found = [(0, 0.9, (0, 0, 9, 9)), (0, 0.8, (50, 50, 59, 59)), (0, 0.7, (100, 100, 109, 106))]
    results = evaluate([sample(objects, found)])
    assert results['pascal_voc/AP50'] == pytest.approx(28 / 33)
    assert results['pascal_voc/AP75'] == pytest.approx(6 / 11)
    assert results['pascal_voc/AP'] == pytest.approx((4 * 28 / 33 + 6 * 6 / 11) / 10)


def test_the_area_rule():
    """The same case: precision's envelope is 1 up to recall 1/2, then 2/3: area 1/2 + 1/3 = 5/6."""
    objects = [(0, (0, 0, 9, 9)), (0, (100, 100, 109, 109))]
    found = [(0, 0.9, (0, 0, 9, 9)), (0, 0.8, (50, 50, 59, 59)), (0, 0.7, (100, 100, 109, 106))]
    results = evaluate([sample(objects, found)], eval_mode='area')
    assert results['pascal_voc/AP50'] == pytest.approx(5 / 6)
    assert results['pascal_voc/AP75'] == pytest.approx(1 / 2)


def test_an_iou_equal_to_the_threshold_is_no_match():
    half = sample([(0, (0, 0, 9, 9))], [(0, 0.9, (0, 0, 9, 4))])  # 50 of 100 pixels
    assert evaluate([half])['pascal_voc/AP50'] == 0
    more = sample([(0, (0, 0, 9, 9))], [(0, 0.9, (0, 0, 9, 5))])
    assert evaluate([more])['pascal_voc/AP50'] == 1


def test_the_second_detection_of_an_object_is_wrong_even_if_better():
    objects = [(0, (0, 0, 9, 9)), (0, (50, 50, 59, 59))]
    found = [(0, 0.9, (0, 0, 9, 7)), (0, 0.8, (0, 0, 9, 9)), (0, 0.7, (50, 50, 59, 59))]
    # recall 1/2, 1/2, 1 at precision 1, 1/2, 2/3
    assert evaluate([sample(objects, found)])['pascal_voc/AP50'] == pytest.approx(28 / 33)


def test_a_difficult_object_counts_neither_way():
    objects, difficult = [(0, (0, 0, 9, 9))], [(0, (50, 50, 59, 59))]
    found = [(0, 0.9, (50, 50, 59, 59)), (0, 0.8, (50, 50, 59, 58)), (0, 0.7, (0, 0, 9, 9))]
    # the second overlaps the difficult object by 0.9 and is wrong at a threshold of 0.9 and above
    assert evaluate([sample(objects, found, difficult)])['pascal_voc/AP50'] == 1
    assert evaluate([sample(objects, [], difficult)])['pascal_voc/AP'] == 0


def test_objects_of_other_images_and_classes_are_no_match():
    box = (0, 0, 9, 9)
    samples = [sample([(0, box)], [(1, 0.9, box)]), sample([(1, box)], [(0, 0.9, box)])]
    assert evaluate(samples, classes=('cat', 'dog'))['pascal_voc/AP'] == 0
    samples = [sample([(0, box)], [(0, 0.9, box)]), sample([(1, box)], [(1, 0.9, box)])]
    assert evaluate(samples, classes=('cat', 'dog'))['pascal_voc/AP'] == 1


def test_classes_without_objects_are_left_out():
    box = (0, 0, 9, 9)
    right = sample([(0, box)], [(0, 0.9, box), (1, 0.9, box)])
    assert evaluate([right], classes=('cat', 'dog'))['pascal_voc/AP'] == 1
    nothing = sample([], [(0, 0.9, box)])
    assert evaluate([nothing])['pascal_voc/AP'] == 0


def plain_ap(samples, label, threshold, eleven_points):
    """Pascal VOC's development kit in plain Python: one detection after the other."""
    objects, total = {}, 0
    for i, s in enumerate(samples):
        for group, difficult in (('gt_instances', False), ('ignored_instances', True)):
            for box, other in zip(
                s[group]['bboxes'].tolist(), s[group]['labels'].tolist(), strict=True
            ):
                if other == label:
                    objects.setdefault(i, []).append(dict(box=box, hard=difficult, seen=False))
                    total += not difficult
    if not total:
        return None
    found = []
    for i, s in enumerate(samples):
        p = s['pred_instances']
        for box, other, score in zip(
            p['bboxes'].tolist(), p['labels'].tolist(), p['scores'].tolist(), strict=True
        ):
            if other == label:
                found.append((score, i, box))
    hits = misses = 0
    curve = []
    for _, i, a in sorted(found, key=lambda item: -item[0]):
        best, match = 0, None
        for item in objects.get(i, []):
            b = item['box']
            w = min(a[2], b[2]) - max(a[0], b[0]) + 1
            h = min(a[3], b[3]) - max(a[1], b[1]) + 1
            if w <= 0 or h <= 0:
                continue
            area = sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
            if w * h / (area - w * h) > best:
                best, match = w * h / (area - w * h), item
        if match is None or best <= threshold:
            misses += 1
        elif not match['hard']:
            hits += not match['seen']
            misses += match['seen']
            match['seen'] = True
        curve.append((hits / total, hits / max(hits + misses, 1e-9)))
    if eleven_points:
        # recalls as multiples of 0.1 in floating point, as in the published code
        return (
            sum(max([p for r, p in curve if r >= t], default=0) for t in np.arange(0, 1.1, 0.1))
            / 11
        )
    area, reached = 0, 0
    for k, (recall, _) in enumerate(curve):
        area += (recall - reached) * max(p for _, p in curve[k:])
        reached = recall
    return area


@pytest.mark.parametrize('eval_mode', ['11points', 'area'])
@pytest.mark.parametrize('seed', range(4))
def test_against_an_independent_implementation(eval_mode, seed):
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(0, 60, (n, 2))
        return np.hstack([corner, corner + rng.integers(8, 40, (n, 2))])

    samples = []
    for _ in range(12):
        objects = [(int(rng.integers(3)), tuple(box)) for box in boxes(rng.integers(0, 6))]
        hard = [(int(rng.integers(3)), tuple(box)) for box in boxes(rng.integers(0, 2))]
        found = [(int(rng.integers(3)), tuple(box)) for box in boxes(rng.integers(0, 4))]
        for label, box in objects + hard:  # near what is there, some of it twice
            for _ in range(rng.integers(0, 3)):
                found.append((label, tuple(np.array(box) + rng.integers(-3, 4, 4))))
        found = [(label, float(rng.random()), box) for label, box in found]
        samples.append(sample(objects, found, hard))
    classes = ('a', 'b', 'c', 'absent')
    results = evaluate(samples, classes, eval_mode=eval_mode)
    table = []
    for threshold in range(50, 100, 5):
        aps = [
            plain_ap(samples, label, threshold / 100, eval_mode == '11points') for label in range(4)
        ]
        assert aps[3] is None
        table.append(np.mean(aps[:3]))
    assert 0.05 < np.mean(table) < 0.95
    assert results['pascal_voc/AP'] == pytest.approx(np.mean(table), abs=1e-6)
    assert results['pascal_voc/AP50'] == pytest.approx(table[0], abs=1e-6)
    assert results['pascal_voc/AP75'] == pytest.approx(table[5], abs=1e-6)


def test_agrees_with_mmdet_where_no_iou_equals_the_threshold():
    rng = np.random.default_rng(7)
    samples = []
    for _ in range(6):
        corner = rng.random((4, 2)) * 50
        boxes = np.hstack([corner, corner + 10 + rng.random((4, 2)) * 30])
        objects = [(i % 2, tuple(box)) for i, box in enumerate(boxes)]
        found = [
            (i % 2, float(rng.random()), tuple(box + rng.normal(0, 2, 4)))
            for i, box in enumerate(np.vstack([boxes, boxes[:2]]))
        ]
        samples.append(sample(objects, found))
    theirs = METRICS.build(dict(type='VOCMetric', iou_thrs=[0.5, 0.75]))
    theirs.dataset_meta = dict(classes=('a', 'b'), dataset_type='VOC2007')
    theirs.process({}, samples)
    theirs = theirs.evaluate(len(samples))
    ours = evaluate(samples, ('a', 'b'))
    for name in ('AP50', 'AP75'):
        assert ours[f'pascal_voc/{name}'] == pytest.approx(
            float(theirs[f'pascal_voc/{name}']), abs=0.0006
        )  # they round to 0.001


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="eval_mode must be '11points' or 'area', got '07'"):
        VOCAPMetric(eval_mode='07')
