"""The convolution of maps to one: the CPU kernels against PyTorch's, and refusals."""

import conv_cases
import on_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_kernels

from mmattn import ops
from mmattn.attention import CAT, CBAM
from mmattn.ops import native


@needs_kernels
@pytest.mark.parametrize('dtype', (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize('shape, k', conv_cases.SIZES, ids=str)
def test_like_torch(shape, k, dtype):
    conv_cases.compare(native, shape, k, dtype)


@needs_kernels
@settings(max_examples=25)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (3, 3, 40, 40))),
    k=st.tuples(st.sampled_from((1, 3, 7, 9)), st.sampled_from((1, 5, 7, 11))),
)
def test_any_shape(shape, k):
    conv_cases.compare(native, shape, k, torch.float64)


@needs_kernels
def test_gradcheck():
    torch.manual_seed(0)
    maps = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: on_kernels.spatial_conv(native, *t), (maps, weight))


@needs_kernels
def test_threads_do_not_change_a_bit():
    torch.manual_seed(0)
    made = torch.randn(4, 2, 70, 60), torch.randn(1, 2, 7, 7), torch.randn(4, 70, 60)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                conv_cases.step(
                    lambda *t: on_kernels.spatial_conv(native, *t), *(t.clone() for t in made)
                )
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_kernels
def test_nan_stays_in_its_sample_and_reach():
    maps = torch.randn(2, 1, 20, 20)
    maps[1, 0, 10, 10] = float('nan')
    out = on_kernels.spatial_conv(native, maps, torch.ones(1, 1, 7, 7))
    expected = torch.zeros(2, 20, 20, dtype=torch.bool)
    expected[1, 7:14, 7:14] = True
    assert torch.equal(out.isnan(), expected)


@needs_kernels
def test_any_layout_of_the_maps():
    maps, weight = torch.randn(2, 2, 6, 5), torch.randn(1, 2, 7, 7)
    for view in (
        maps.contiguous(memory_format=torch.channels_last),
        maps.mT.contiguous().mT,
        torch.cat((maps, maps), 1)[:, ::2],
    ):
        expected = torch.nn.functional.conv2d(view, weight, padding=3)[:, 0]
        torch.testing.assert_close(ops.spatial_conv(view, weight), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('impl', ('fast', 'reference'))
@pytest.mark.parametrize(
    'maps, weight',
    (((2, 3, 4), (1, 2, 7, 7)), ((1, 2, 3, 4), (2, 7, 7)), ((1, 2, 3, 4), (1, 2, 4, 4))),
)
def test_wrong_shapes_are_refused(maps, weight, impl):
    with pytest.raises(ValueError, match='spatial_conv takes'):
        ops.spatial_conv(torch.zeros(maps), torch.zeros(weight), impl=impl)


def test_half_precision_runs_the_reference():
    out = ops.spatial_conv(torch.ones(1, 1, 8, 8).bfloat16(), torch.ones(1, 1, 7, 7).bfloat16())
    assert out.dtype == torch.bfloat16 and out.max() == 49


@pytest.mark.parametrize('gate', (CAT(4), CBAM(4)), ids=('CAT', 'CBAM'))
@pytest.mark.parametrize('impl', ('fast', 'reference'))
def test_a_bias_left_by_fusion_counts(gate, impl):
    maps = torch.randn(2, gate.conv.in_channels, 6, 5)
    before = gate.conv(maps, impl=impl)
    gate.conv.bias = torch.nn.Parameter(torch.tensor([0.25]))
    after = gate.conv(maps, impl=impl)
    gate.conv.bias = None
    torch.testing.assert_close(after, before + 0.25)
