"""What the operators share: torchvision's library, and a precision that it computes in."""

import torch
import torchvision  # noqa: F401  (it fills torch.ops.torchvision)
from torch import Tensor

# Forward and backward functions alike: the gradients have no name in torchvision's Python.
tv = torch.ops.torchvision


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if that is what it is.

    Not every kernel takes halves, and those that do place a region no better than to a whole pixel
    from 1024 pixels on.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
