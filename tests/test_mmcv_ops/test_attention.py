import pytest
import torch
from operator_cases import value_and_grads

pytestmark = pytest.mark.usefixtures('stand_in')


def test_deformable_attention():
    # On a GPU mmcv calls the operator, on a CPU its own form in torch.
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    shapes = torch.tensor([[6, 5], [3, 2]])
    starts = torch.tensor([0, 30])
    value = torch.randn(2, 36, 4, 8).double()
    places = torch.rand(2, 7, 4, 2, 3, 2).double() * 1.2 - 0.1
    weights = torch.rand(2, 7, 4, 2, 3).double()
    found = value_and_grads(
        lambda v, p, w: MultiScaleDeformableAttnFunction.apply(v, shapes, starts, p, w, 64),
        value,
        places,
        weights,
    )
    expected = value_and_grads(
        lambda v, p, w: multi_scale_deformable_attn_pytorch(v, shapes, p, w),
        value,
        places,
        weights,
    )
    assert found[0].shape == (2, 7, 32)
    for result, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(result, truth)
