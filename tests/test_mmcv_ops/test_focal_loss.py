"""Focal losses against the paper's formula, with autograd's gradients."""

import pytest
import torch
import torch.nn.functional as F
from operator_cases import value_and_grads

pytestmark = pytest.mark.usefixtures('stand_in')
TOLERANCE = {
    torch.float64: dict(rtol=1e-9, atol=1e-12),
    torch.float32: dict(rtol=1e-4, atol=1e-6),
    torch.float16: dict(rtol=3e-3, atol=1e-3),
    torch.bfloat16: dict(rtol=2e-2, atol=1e-2),
}


def sigmoid_loss(input, target, gamma, alpha, weight):
    hit = F.one_hot(target, input.size(1) + 1)[:, :-1].double()
    right = torch.where(hit > 0, input.sigmoid(), 1 - input.sigmoid())
    loss = -(alpha * hit + (1 - alpha) * (1 - hit)) * (1 - right) ** gamma * right.log()
    return loss if weight is None else loss * torch.cat((weight, weight.new_ones(1)))[target, None]


def softmax_loss(input, target, gamma, alpha, weight):
    right = input.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = -alpha * (1 - right) ** gamma * right.log() * (target >= 0)
    return loss if weight is None else loss * weight[target]


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma, alpha', [(2, 0.25), (1.5, 0.6), (0, 0.5)])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_sigmoid(reduction, gamma, alpha, weighted, dtype):
    from mmcv.ops import sigmoid_focal_loss

    input, target = (torch.randn(40, 7) * 3).to(dtype), torch.arange(40) % 8  # 7: background
    weight = torch.rand(7).to(dtype) if weighted else None
    found = value_and_grads(
        lambda input: sigmoid_focal_loss(input, target, gamma, alpha, weight, reduction), input
    )
    reduce = {'none': lambda x: x, 'mean': lambda x: x.sum() / 40, 'sum': torch.sum}[reduction]
    exact = weight.double() if weighted else None
    expected = value_and_grads(
        lambda input: reduce(sigmoid_loss(input, target, gamma, alpha, exact)), input.double()
    )
    for value, truth in zip(found, expected, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), truth, **TOLERANCE[dtype])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma, alpha', [(2, 0.25), (1.5, 0.6), (0, 0.5)])
def test_softmax(gamma, alpha, weighted, dtype):
    from mmcv.ops import softmax_focal_loss

    input, target = (torch.randn(40, 7) * 3).to(dtype), torch.arange(40) % 8 - 1  # -1: ignored
    weight = torch.rand(7).to(dtype) if weighted else None
    found = value_and_grads(
        lambda input: softmax_focal_loss(input, target, gamma, alpha, weight, 'sum'), input
    )
    exact = weight.double() if weighted else None
    expected = value_and_grads(
        lambda input: softmax_loss(input, target, gamma, alpha, exact).sum(), input.double()
    )
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), truth, **TOLERANCE[dtype])


def test_sure_predictions():
    # Where a sigmoid or a softmax is 0 or 1 in float32, losses and gradients stay finite.
    from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

    input = torch.tensor([[60.0, -60.0], [-200.0, 200.0], [1e4, -1e4]])
    for function in (sigmoid_focal_loss, softmax_focal_loss):
        for target in (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)):
            results = value_and_grads(lambda x, f=function, t=target: f(x, t, 2, 0.25), input)
            assert all(result.isfinite().all() for result in results)


def test_no_rows():
    from mmcv.ops import sigmoid_focal_loss

    input = torch.empty(0, 5)
    value, grad = value_and_grads(
        lambda input: sigmoid_focal_loss(
            input, torch.empty(0, dtype=torch.long), 2, 0.25, None, 'sum'
        ),
        input,
    )
    assert value == 0 and grad.shape == (0, 5)
