"""CAT's normalised entropies: the CPU kernels against the float64 equation."""

import min_max_cases
import on_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_kernels

from mmattn import ops
from mmattn.ops import native

pytestmark = needs_kernels


@pytest.mark.parametrize('dtype', (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize('values', min_max_cases.VALUES)
@pytest.mark.parametrize('shape', min_max_cases.SHAPES, ids=str)
def test_like_reference(shape, values, dtype):
    min_max_cases.compare(native, values, shape, dtype)


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 200)),
    values=st.sampled_from(tuple(min_max_cases.VALUES)),
)
def test_any_shape(shape, values):
    min_max_cases.compare(native, values, shape, torch.float64)


def test_gradcheck():
    torch.manual_seed(0)
    v = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: on_kernels.min_max(native, t, -1.0, 1.0), v)


def test_by_hand():
    v = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    u = ops.min_max(v, 0, 1, impl='fast')
    assert u.tolist() == [[0, 1, 0.5]]
    # u of the third is (v3 - v1) / (v2 - v1): its slopes are (u - 1) / 2, -u / 2, 1 / 2.
    (dv,) = torch.autograd.grad(u[0, 2], v)
    torch.testing.assert_close(dv, torch.tensor([[-0.25, -0.25, 0.5]]))


@pytest.mark.parametrize('impl', ('fast', 'reference'))
def test_nan_fills_its_sample(impl):
    v = torch.randn(3, 20)
    v[1, 19] = float('nan')
    u = ops.min_max(v, 0, 1, impl=impl)
    assert u[1].isnan().all() and not u[0].isnan().any() and not u[2].isnan().any()
