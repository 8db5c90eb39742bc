"""Checks of what an op is given: each raises a ValueError in words."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .dispatch import stats_dtype


def check_map(x: Tensor) -> None:
    """Raise ValueError unless x is a floating-point (N, C, H, W)."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f'the ops take a floating-point map (N, C, H, W), got {x.dtype} of {tuple(x.shape)}'
        )


def check_shapes(shape: Sequence[int], axes: str, tensors: Iterable[Tensor]) -> None:
    """Raise ValueError unless each has its axes of the (N, C, H, W) `shape`: 'nc' is (N, C)."""
    if torch.jit.is_tracing():
        return
    for names, tensor in zip(axes.split(), tensors, strict=True):
        allowed = tuple(shape['nchw'.index(axis)] for axis in names)
        if tuple(tensor.shape) != allowed:
            raise ValueError(
                f'a factor of an input {tuple(shape)} must be ({names.upper()}) = '
                f'{allowed}, got {tuple(tensor.shape)}'
            )


def factors_of(x: Tensor, axes: str, *factors: Tensor) -> list[Tensor]:
    """The factors in `stats_dtype`, their shapes checked."""
    check_map(x)
    check_shapes(x.shape, axes, factors)
    dtype = stats_dtype(x)
    return [f if f.dtype is dtype else _real(f).to(dtype) for f in factors]


def _real(factor):
    if factor.is_complex():
        raise ValueError(f'a factor must be real, got {factor.dtype}')
    return factor
