"""Focal losses: -alpha (1 - p)^gamma log p, p being the probability of what is right."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import wide


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Logits (N, C) and classes (N,), C being none of them -> output (N, C)."""
    logit, factor, _ = _right(input, target, weight, alpha)
    loss = F.logsigmoid(logit)
    loss *= logit.neg_().sigmoid_().pow_(gamma)
    loss *= factor
    output.copy_(loss.neg_())


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the gradient of the logits."""
    logit, factor, hit = _right(input, target, weight, alpha)
    slope = F.logsigmoid(logit)
    slope *= torch.sigmoid(logit)
    slope *= gamma
    wrong = logit.neg_().sigmoid_()
    slope -= wrong
    slope *= wrong.pow_(gamma)
    slope *= factor
    grad_input.copy_(torch.where(hit, slope, -slope))


def _right(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of being right, the factors of the loss, and where the class is the target's.

    The first two are new tensors, for the caller to write over: one more costs as much memory as
    the logits of all anchors.
    """
    input = wide(input)
    hit = target[:, None] == torch.arange(input.size(1), device=target.device)
    factor = torch.full_like(input, 1 - alpha).masked_fill_(hit, alpha)
    if weight.numel():
        factor *= _class_weight(weight, target)[:, None]
    return torch.where(hit, input, -input), factor, hit


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Probabilities (N, C) and classes (N,), those below 0 ignored -> output (N,)."""
    right, log, factor = _right_class(input, target, weight, alpha)
    output.copy_(-((1 - right) ** gamma) * log * factor)


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """The gradient with respect to the logits, of which `input` are the probabilities."""
    right, log, factor = _right_class(input, target, weight, alpha)
    wrong = 1 - right
    buff.copy_((gamma * wrong ** (gamma - 1) * right * log - wrong**gamma) * factor)
    hit = target[:, None] == torch.arange(input.size(1), device=target.device)
    grad_input.copy_((hit.to(input.dtype) - input) * buff[:, None])


def _right_class(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The probability of the right class, its logarithm, and the factor of the loss: (N,)."""
    right = wide(input).gather(1, target.clamp(min=0)[:, None])[:, 0]
    factor = alpha * (target >= 0).to(right.dtype)
    if weight.numel():
        factor *= _class_weight(weight, target)
    return right, right.clamp(min=torch.finfo(torch.float32).tiny).log(), factor


def _class_weight(weight: Tensor, target: Tensor) -> Tensor:
    """The weight of each target's class, 1 for no class (there mmcv reads past the weights)."""
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, wide(weight)[target.clamp(0, len(weight) - 1)], 1)
