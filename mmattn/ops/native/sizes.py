"""What kernels are told of a map, and tensors like others to write to."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def meta(x: Tensor) -> tuple[int, int, int, int, bool]:
    """The sizes of x and its layout, as the kernels take them."""
    n, c, h, w = x.shape
    # A map of one position is both; as rows of channels it has rows worth the name.
    return n, c, h, w, h * w == 1 or not x.is_contiguous()


def like(tensors: Iterable[Tensor | None]) -> list[Any]:
    return [None if t is None else torch.empty_like(t) for t in tensors]
