"""A batch norm as the ops take it."""

from typing import NamedTuple

import torch


class Norm(NamedTuple):
    """The state of a batch norm of one channel; its tensors are (1,).

    With a momentum it normalises by the batch, and mean and var move by that towards the batch's;
    without (None) it normalises by mean and var.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    momentum: float | None
    eps: float
