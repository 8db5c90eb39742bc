"""Deformable and masked convolution against forms built of torch's own functions."""

import pytest
import torch
import torch.nn.functional as F
from operator_cases import deformable, value_and_grads

pytestmark = pytest.mark.usefixtures('stand_in')
CASES = [
    dict(),
    dict(groups=2, offset_groups=4),
    dict(stride=2, padding=2, dilation=2, offset_groups=2),
    dict(padding=0),
]
TOLERANCE = {
    torch.float64: dict(rtol=1e-9, atol=1e-9),
    torch.float32: dict(rtol=1e-3, atol=1e-4),
    torch.float16: dict(rtol=1e-2, atol=0.1),
    torch.bfloat16: dict(rtol=5e-2, atol=0.5),
}


def sampled(input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """Every tap of the kernel is sampled by grid_sample, then weighed by a product of matrices."""
    images, channels, height, width = input.shape
    kernel = weight.shape[2:]
    rows, columns = (torch.arange(side) * stride - padding for side in offset.shape[2:])
    shifts = offset.unflatten(1, (deform_groups, *kernel, 2))
    taps = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y = shifts[:, :, i, j, 0] + (rows + i * dilation)[:, None]
            x = shifts[:, :, i, j, 1] + columns + j * dilation
            grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)
            parts = input.unflatten(1, (deform_groups, -1)).flatten(0, 1)
            tap = F.grid_sample(parts, grid.flatten(0, 1), padding_mode='zeros', align_corners=True)
            tap = tap.unflatten(0, (images, deform_groups))
            if mask is not None:
                tap = tap * mask.unflatten(1, (deform_groups, *kernel))[:, :, i, j, None]
            taps.append(tap.flatten(1, 2))
    taps = torch.stack(taps, dim=2).unflatten(1, (groups, -1))
    out = torch.einsum('ngckhw,gock->ngohw', taps, weight.flatten(2).unflatten(0, (groups, -1)))
    return out.flatten(1, 2) + (0 if bias is None else bias[:, None, None])


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', CASES, ids=str)
def test_deform_conv(case, dtype):
    from mmcv.ops import deform_conv2d

    (input, offset, _, weight, _), options = deformable(**case, dtype=dtype)
    found = value_and_grads(lambda *x: deform_conv2d(*x, *options.values()), input, offset, weight)
    expected = value_and_grads(
        lambda input, offset, weight: sampled(input, offset, None, weight, None, **options),
        *(tensor.double() for tensor in (input, offset, weight)),
    )
    for value, truth in zip(found, expected, strict=True):
        assert value.dtype == dtype and truth.abs().max() > 0.1
        torch.testing.assert_close(value.double(), truth, **TOLERANCE[dtype])


@pytest.mark.parametrize('biased', [False, True])
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', CASES, ids=str)
def test_modulated_deform_conv(case, dtype, biased):
    from mmcv.ops import modulated_deform_conv2d

    tensors, options = deformable(**case, dtype=dtype)
    tensors = tensors if biased else tensors[:-1]
    found = value_and_grads(
        lambda *x: modulated_deform_conv2d(*x, *(() if biased else (None,)), *options.values()),
        *tensors,
    )
    expected = value_and_grads(
        lambda *x: sampled(*x, *(() if biased else (None,)), **options),
        *(tensor.double() for tensor in tensors),
    )
    for value, truth in zip(found, expected, strict=True):
        assert value.dtype == dtype and truth.abs().max() > 0.1
        torch.testing.assert_close(value.double(), truth, **TOLERANCE[dtype])


def test_offsets_larger_than_the_output():
    # mmdet's DyHead gives the offsets of a level to the next coarser one.
    from mmcv.ops import modulated_deform_conv2d

    (input, offset, mask, weight, bias), options = deformable()
    more = [torch.cat((x.flatten(1), torch.rand(2, 3 * x[0].numel())), 1) for x in (offset, mask)]
    more = [x.view(2, -1, 18, 16) for x in more]
    options = options.values()
    expected = value_and_grads(
        lambda *x: modulated_deform_conv2d(input, *x, weight, bias, *options), offset, mask
    )
    found = value_and_grads(
        lambda *x: modulated_deform_conv2d(input, *x, weight, bias, *options), *more
    )
    assert torch.equal(found[0], expected[0])
    for grad, truth in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(grad.flatten(1)[:, : truth[0].numel()], truth.flatten(1))
        assert grad.flatten(1)[:, truth[0].numel() :].eq(0).all()


def test_gradient_of_one_input_alone():
    from mmcv.ops import deform_conv2d

    (input, offset, _, weight, _), options = deformable()
    options = options.values()
    together = value_and_grads(
        lambda *inputs: deform_conv2d(*inputs, *options), input, offset, weight
    )
    alone = value_and_grads(lambda x: deform_conv2d(input, offset, x, *options), weight)
    assert torch.equal(alone[1], together[3])
    alone = value_and_grads(lambda x: deform_conv2d(input, x, weight, *options), offset)
    assert torch.equal(alone[1], together[2])


@pytest.mark.parametrize('kernel, padding', [(1, 0), (3, 1)])
def test_masked_conv(kernel, padding):
    from mmcv.ops import masked_conv2d

    input, mask = torch.randn(1, 4, 6, 5), torch.rand(1, 6, 5).gt(0.5).float()
    weight, bias = torch.randn(3, 4, kernel, kernel), torch.randn(3)
    expected = F.conv2d(input, weight, bias, padding=padding) * mask
    torch.testing.assert_close(masked_conv2d(input, mask, weight, bias, padding), expected)
    assert masked_conv2d(input, mask * 0, weight, bias, padding).eq(0).all()
