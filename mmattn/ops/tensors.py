"""What operators ask of tensors: a memory format, an accumulator type, nothing at all."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .dispatch import stats_dtype


def is_last(x: Tensor) -> bool:
    """Whether x is channels_last, and not contiguous as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def layout(last: bool) -> torch.memory_format:
    return torch.channels_last if last else torch.contiguous_format


def dense(x: Tensor, last: bool | None = None) -> Tensor:
    """x in a memory format that kernels read: channels_last or contiguous; its own if that is one.

    A map of other strides is copied.
    """
    return x.contiguous(memory_format=layout(is_last(x) if last is None else last))


def dense_pair(x: Tensor, dy: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
    """x and the gradient dy of a map like it, zeros for None, in one memory format."""
    x = dense(x, last)
    return x, torch.zeros_like(x) if dy is None else dense(dy, last)


def flat(v: Tensor | None) -> Tensor | None:
    return None if v is None else v.contiguous()


def acc(x: Tensor, *shape: int) -> Tensor:
    """A new tensor for descriptors of x, on its device whatever the default is."""
    return x.new_empty(shape, dtype=stats_dtype(x))


def ints(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.int32)


def some(t: Tensor | None, x: Tensor) -> Tensor:
    """t, or a tensor without elements for None, which no operator returns."""
    return x.new_empty(0) if t is None else t


def of_given(given: Iterable[Tensor | None], values: Iterator[Tensor]) -> list[Tensor | None]:
    """The next of the values for each that is given, None for None."""
    return [None if t is None else next(values) for t in given]


def unless_empty(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """The other way round."""
    return [t if t.numel() else None for t in tensors]
