"""What mmcv's operators are asked in the comparison of the compiled ones with the stand-ins.

A case is a function without arguments that returns values and gradients. The compiled operators
take no bfloat16 on the CPU, and boxes in float32 alone.
"""

from functools import partial
from itertools import product

import torch
from operator_cases import boxes, deformable, regions, value_and_grads

# Of the difference's norm. The compiled operators compute halves in halves, the stand-ins in
# float32; a sample that halves place in another pixel has another gradient.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-2}


def suppressed(name, num, ties, **options):
    import mmcv.ops

    scores = torch.rand(num)
    if ties:
        scores = scores.mul(5).round().div(5).clamp(min=0.1)
    candidates = boxes(num, dtype=torch.float32)
    if name == 'nms_match':
        dets = torch.cat((candidates, scores[:, None]), dim=1)
        groups = mmcv.ops.nms_match(dets, **options)
        return [torch.cat(groups), torch.tensor([len(group) for group in groups])]
    if name == 'batched_nms':
        options = dict(idxs=torch.arange(num) % 3, nms_cfg=dict(type='nms', **options))
    return list(getattr(mmcv.ops, name)(candidates, scores, **options))


def aligned(num, ratio, is_aligned, size, dtype):
    from mmcv.ops import roi_align

    input, rois = torch.randn(2, 3, 16, 15).to(dtype), regions(num).to(dtype)
    return value_and_grads(
        lambda input: roi_align(input, rois, size, 0.25, ratio, 'avg', is_aligned), input
    )


def deformed(modulated, larger, dtype, **options):
    import mmcv.ops

    (input, offset, mask, weight, bias), options = deformable(**options, dtype=dtype)
    options = options.values()
    if not modulated:
        return value_and_grads(
            lambda *x: mmcv.ops.deform_conv2d(*x, *options), input, offset, weight
        )
    if larger:
        offset, mask = (x.repeat(1, 1, 2, 2) for x in (offset, mask))
    return value_and_grads(
        lambda *x: mmcv.ops.modulated_deform_conv2d(*x, *options), input, offset, mask, weight, bias
    )


def cases():
    """(operator, the rest of its name, dtype, function) of each."""
    float32 = torch.float32
    for name, options in (
        *(('nms', dict(iou_threshold=t, offset=o)) for t, o in product((0.3, 0.6), (0, 1))),
        ('batched_nms', dict(iou_threshold=0.5)),
        *(
            ('soft_nms', dict(iou_threshold=0.3, min_score=0.05, method=method, offset=offset))
            for method, offset in product(('naive', 'linear', 'gaussian'), (0, 1))
        ),
        ('nms_match', dict(iou_threshold=0.4)),
    ):
        # Of equal scores, which come first is left open by mmcv, except in soft_nms.
        for num, ties in ((1, False), (200, False), (200, True)):
            if ties and name != 'soft_nms':
                continue
            function = partial(suppressed, name, num, ties, **options)
            yield name, dict(num=num, ties=ties, **options), float32, function
    for name in ('nms', 'soft_nms'):
        yield name, dict(num=0), float32, partial(suppressed, name, 0, False, iou_threshold=0.5)
    for num, ratio, is_aligned, size, dtype in product(
        (0, 20), (0, 2), (False, True), ((7, 7), (3, 2)), TOLERANCE
    ):
        text = dict(num=num, sampling_ratio=ratio, aligned=is_aligned, size=size)
        yield 'roi_align', text, dtype, partial(aligned, num, ratio, is_aligned, size, dtype)
    geometries = (
        dict(),
        dict(groups=2, offset_groups=4),
        dict(stride=2, padding=2, dilation=2, offset_groups=2),
        dict(padding=0),
    )
    for options, dtype in product(geometries, TOLERANCE):
        yield 'deform_conv', options, dtype, partial(deformed, False, False, dtype, **options)
        for larger in (False, True):
            function = partial(deformed, True, larger, dtype, **options)
            yield 'modulated_deform_conv', dict(larger=larger, **options), dtype, function
