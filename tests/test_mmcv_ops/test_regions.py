"""RoIAlign and RoIPool against their definitions, a sample and a bin at a time."""

import math

import pytest
import torch
from operator_cases import regions, value_and_grads

pytestmark = pytest.mark.usefixtures('stand_in')
TOLERANCE = {
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.float32: dict(rtol=1e-5, atol=1e-5),
    torch.float16: dict(rtol=1e-3, atol=2e-3),
    torch.bfloat16: dict(rtol=8e-3, atol=2e-2),
}


def sample(plane, y, x):
    """Bilinear value of (C, H, W) at a point; the edge counts for up to a pixel outside."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.size(0))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[:, top, left] * (1 - dx) + plane[:, top, right] * dx
    lower = plane[:, bottom, left] * (1 - dx) + plane[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def aligned_regions(input, rois, size, scale, ratio, aligned):
    out = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (side * scale - 0.5 * aligned for side in box)
        sides = [y2 - y1, x2 - x1]
        if not aligned:
            sides = [max(side, 1) for side in sides]
        steps = [side / number for side, number in zip(sides, size, strict=True)]
        grid = [ratio or math.ceil(step) for step in steps]
        for ph in range(size[0]):
            for pw in range(size[1]):
                samples = [
                    sample(
                        input[int(image)],
                        y1 + (ph + (iy + 0.5) / grid[0]) * steps[0],
                        x1 + (pw + (ix + 0.5) / grid[1]) * steps[1],
                    )
                    for iy in range(grid[0])
                    for ix in range(grid[1])
                ]
                out.append(torch.stack(samples).mean(0))
    return torch.stack(out).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def pooled_regions(input, rois, size, scale):
    out = []
    for image, x1, y1, x2, y2 in rois.tolist():
        start = (y1 * scale, x1 * scale)
        sides = ((y2 + 1) * scale - start[0], (x2 + 1) * scale - start[1])
        for ph in range(size[0]):
            for pw in range(size[1]):
                window = []
                for at, first, side, number, limit in zip(
                    (ph, pw), start, sides, size, input.shape[2:], strict=True
                ):
                    low = math.floor(at * side / number + first)
                    high = math.ceil((at + 1) * side / number + first)
                    window.append(slice(min(max(low, 0), limit), min(max(high, 0), limit)))
                part = input[int(image), :, window[0], window[1]].flatten(1)
                empty = min(sides) <= 0 or not part.numel()
                out.append(input.new_zeros(input.size(1)) if empty else part.amax(1))
    return torch.stack(out).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align(aligned, ratio, dtype):
    from mmcv.ops import roi_align

    input, rois = torch.randn(2, 3, 16, 15).to(dtype), regions(6).to(dtype)
    found = value_and_grads(
        lambda input: roi_align(input, rois, (3, 2), 0.25, ratio, 'avg', aligned), input
    )
    expected = value_and_grads(
        lambda input: aligned_regions(input, rois.double(), (3, 2), 0.25, ratio, aligned),
        input.double(),
    )
    for value, truth in zip(found, expected, strict=True):
        assert value.dtype == dtype and truth.abs().max() > 0.1
        torch.testing.assert_close(value.double(), truth, **TOLERANCE[dtype])


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('scale', [1, 0.3])
def test_roi_pool(scale, dtype):
    from mmcv.ops import roi_pool

    # Every value once, so that it is known which element of a bin is its maximum.
    input = torch.randperm(2 * 2 * 10 * 11).view(2, 2, 10, 11).to(dtype) / 8
    rois = regions(7, size=10 / scale).to(dtype)
    rois[0, 3] = rois[0, 1] - 3  # no width
    if dtype in (torch.float16, torch.bfloat16):
        input = torch.randn(2, 2, 10, 11).to(dtype)
    found = value_and_grads(lambda input: roi_pool(input, rois, (3, 2), scale), input)
    exact = rois.float() if dtype != torch.float64 else rois
    expected = value_and_grads(
        lambda input: pooled_regions(input, exact.double(), (3, 2), scale), input.double()
    )
    assert torch.equal(found[0].double(), expected[0]) and (found[0] == 0).any()
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(found[1].double(), expected[1], **TOLERANCE[dtype])


@pytest.mark.parametrize('name', ['roi_align', 'roi_pool'])
def test_no_regions(name):
    import mmcv.ops

    input = torch.randn(1, 2, 8, 8)
    value, grad = value_and_grads(
        lambda input: getattr(mmcv.ops, name)(input, torch.empty(0, 5), (2, 2), 1.0), input
    )
    assert value.shape == (0, 2, 2, 2) and torch.equal(grad, torch.zeros_like(input))


@pytest.mark.parametrize('name', ['roi_align', 'roi_pool'])
def test_any_memory_format(name):
    # mmcv's own RoIAlign reads the memory of such a tensor as if it were contiguous.
    import mmcv.ops

    function = getattr(mmcv.ops, name)
    input, rois = torch.randn(2, 3, 16, 15), regions(6, dtype=torch.float32)
    expected = function(input, rois, (3, 2), 0.25)
    strided = input.to(memory_format=torch.channels_last)
    assert torch.equal(function(strided, rois, (3, 2), 0.25), expected)
    strided = input.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(function(strided, rois, (3, 2), 0.25), expected)


def test_gradients_are_added():
    from mmattn.mmcv_ops import operators

    rois, grad = regions(4, dtype=torch.float32), torch.rand(4, 3, 2, 2)
    size = dict(aligned_height=2, aligned_width=2, spatial_scale=0.25)
    options = dict(sampling_ratio=2, pool_mode=1, aligned=True)
    once, twice = torch.zeros(2, 3, 16, 15), torch.zeros(2, 3, 16, 15)
    none = torch.empty(0)
    for buffer in (once, twice, twice):
        operators.roi_align_backward(grad, rois, none, none, buffer, **size, **options)
    torch.testing.assert_close(twice, 2 * once)


def test_maximum_is_refused():
    from mmcv.ops import roi_align

    with pytest.raises(NotImplementedError, match="pool_mode='max'.*MMCV_WITH_OPS"):
        roi_align(torch.randn(1, 2, 8, 8), regions(1).float(), (2, 2), 1.0, 2, 'max')
