"""Checks of arguments: each raises a ValueError that names the argument and what is allowed."""

import math
import numbers
from collections.abc import Sequence
from typing import Any


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_int(name: str, value: Any, low: int) -> None:
    """An integer that is not below `low`."""
    if not _is(numbers.Integral, value) or value < low:
        raise ValueError(f'{name} must be an integer >= {low}, got {value!r}')


def check_odd(name: str, value: Any) -> None:
    """An odd integer: a window needs a centre to keep a map's size."""
    if not _is(numbers.Integral, value) or value < 1 or value % 2 == 0:
        raise ValueError(f'{name} must be an odd integer >= 1, got {value!r}')


def check_number(name: str, value: Any, low: float = -math.inf) -> None:
    """A finite number above `low`."""
    if not _is(numbers.Real, value) or not low < value < math.inf:
        bound = '' if low == -math.inf else f' > {low}'
        raise ValueError(f'{name} must be a finite number{bound}, got {value!r}')


def check_range(name: str, value: Any) -> None:
    """Two finite numbers, the lower one first."""
    if (
        not isinstance(value, (tuple, list))
        or len(value) != 2
        or not all(_is(numbers.Real, v) for v in value)
        or not -math.inf < value[0] < value[1] < math.inf
    ):
        raise ValueError(f'{name} must be two finite numbers, low < high, got {value!r}')


def check_flags(**flags: Any) -> None:
    """True or False: the string 'False' is neither."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f'{name} must be True or False, got {value!r}')


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """One of the choices."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {choices}, got {value!r}')


def check_subset(name: str, value: Any, choices: Sequence[Any]) -> None:
    """One or more of the choices."""
    if not isinstance(value, (tuple, list)) or not value or any(v not in choices for v in value):
        raise ValueError(f'{name} must be a tuple of one or more of {choices}, got {value!r}')
