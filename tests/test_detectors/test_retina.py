"""EMARetinaHead against the formula and against the upstream head whose losses it scales."""

import copy

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import MODELS  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

import mmattn  # noqa: E402, F401  (registers the head)

STRIDES = (8, 16, 32, 64, 128)
SHAPE = (128, 128)


def build(type_='EMARetinaHead', **kwargs):
    torch.manual_seed(0)
    cfg = dict(
        type=type_,
        num_classes=3,
        in_channels=4,
        feat_channels=4,
        stacked_convs=1,
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        **kwargs,
    )
    head = MODELS.build(cfg)
    head.init_weights()
    return head


def losses(head, boxes):
    """The total loss on two images; each has one of `boxes` (x1, y1, x2, y2) or none (None)."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 4, *(s // n for s in SHAPE), generator=generator) for n in STRIDES]
    truth = [
        InstanceData(
            bboxes=torch.tensor([] if box is None else [box], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([] if box is None else [1], dtype=torch.long),
        )
        for box in boxes
    ]
    metas = [dict(img_shape=SHAPE, pad_shape=SHAPE)] * 2
    found = head.loss_by_feat(*head(features), truth, metas)
    return {name: sum(parts) for name, parts in found.items()}


LARGE, SMALL, NONE = ((10, 10, 100, 100),) * 2, ((5, 5, 20, 20),) * 2, (None, None)


def positives(boxes):
    """The number of positive anchors, as upstream's head counts them."""
    head = build('RetinaHead')
    seen = []
    targets = head.get_targets
    head.get_targets = lambda *args, **kwargs: seen.append(targets(*args, **kwargs)) or seen[-1]
    losses(head, boxes)
    labels, *_, count = seen[0]
    assert count == sum(int((level < 3).sum()) for level in labels)
    return count


def test_the_average_follows_the_formula_and_divides_both_losses():
    ours, theirs = build(), build('RetinaHead')
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k != 'loss_normalizer'})
    assert ours.loss_normalizer == 100
    n = 100.0
    for boxes in (LARGE, SMALL, LARGE):
        count = positives(boxes)
        assert count > 1
        n = 0.9 * n + 0.1 * count
        found, upstream = losses(ours, boxes), losses(theirs, boxes)
        torch.testing.assert_close(ours.loss_normalizer, torch.tensor(n))
        assert set(found) == {'loss_cls', 'loss_bbox'}
        for name, loss in found.items():
            assert loss > 0
            torch.testing.assert_close(loss, upstream[name] * count / n)


def test_a_step_without_objects_counts_one():
    head = build()
    losses(head, NONE)
    torch.testing.assert_close(head.loss_normalizer, torch.tensor(0.9 * 100 + 0.1))


def test_the_arguments():
    head = build(momentum=0.5, initial_normalizer=8)
    losses(head, NONE)
    torch.testing.assert_close(head.loss_normalizer, torch.tensor(4.5))
    with pytest.raises(ValueError, match=r'momentum must be in \[0, 1\), got 1'):
        build(momentum=1)
    with pytest.raises(ValueError, match='initial_normalizer must be positive, got 0'):
        build(initial_normalizer=0)


def test_a_checkpoint_holds_the_average():
    head = build()
    losses(head, LARGE)
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(head.state_dict()))
    torch.testing.assert_close(losses(resumed, SMALL), losses(head, SMALL))
    assert resumed.loss_normalizer == head.loss_normalizer != 100


def test_gradients_of_two_steps_together():
    """As in gradient accumulation over a summed loss: the second step must not spoil the first."""
    head = build()
    first, second = losses(head, LARGE), losses(head, SMALL)
    sum([*first.values(), *second.values()]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
