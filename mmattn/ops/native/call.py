"""The call of a kernel: the one place where a tensor becomes a pointer.

A kernel that is given a wrong pointer crashes the process or makes wrong numbers of what lies
there, so every tensor is looked at: that it is one, and of the device, dtype and layout that the
kernel reads. Which these are, each function of the library says itself (`build.library`).
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from ..dispatch import PLAIN, two_devices
from .build import library

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_NO_MEMORY = -1
# By letter (abi.h), what a pointer points to: 'x' the map's dtype, 's' what its values are
# summed in, 'k' indices; in capitals an array of such pointers.
_POINTS_TO = {
    dtype: dict(s=total, k=torch.int32, S=total, K=torch.int32)
    for dtype in DTYPES
    for total in [torch.float64 if dtype is torch.float64 else torch.float32]
}


def run(name: str, x: Tensor, *args: Any) -> int:
    """Call a kernel for the map (or plane) x, and return its result, a number.

    `args` are those between the dtype and the number of threads: numbers, tensors or None, tuples
    of such, and ctypes arrays.

    Raises:
        RuntimeError: if a tensor lies on another device, or has no memory.
        TypeError: if one is no plain tensor, or of another dtype; for a wrong number of arguments.
        ValueError: if one is not contiguous, or a map not laid out as x is.
        MemoryError: if the kernel found no memory to work with.
    """
    function, count, pointers = library()[name]  # type: ignore[index]  # `works` has looked
    if len(args) != count:
        raise TypeError(f'{name} takes {count} arguments, got {len(args)}')
    points_to, values = _POINTS_TO[x.dtype], [*args]
    last = not x.is_contiguous()
    for i, letter in pointers:
        arg = values[i]
        if arg is None:
            continue
        if letter == 'x':
            values[i] = _pointer(arg, x.dtype, last)
        elif letter in 'sk':
            values[i] = _pointer(arg, points_to[letter])
        else:
            dtype, found = points_to[letter], []
            for t in arg:  # as in _pointer: there may be many, of few elements
                if t is None:
                    found.append(None)
                elif (
                    type(t) in PLAIN
                    and t.dtype is dtype
                    and t.is_cpu
                    and t.is_contiguous()
                    and (address := t.data_ptr())
                ):
                    found.append(address)
                else:
                    raise _refusal(t, dtype)
            values[i] = (ctypes.c_void_p * len(found))(*found)
    result = function(DTYPES[x.dtype], *values, torch.get_num_threads())
    if result < 0:
        if result == _NO_MEMORY:
            raise MemoryError(f'not enough memory for {name} of a map {tuple(x.shape)}')
        raise RuntimeError(f'{name} of a map {tuple(x.shape)} failed')
    return result


def _pointer(t, dtype, last=False):
    """The address of a tensor of this dtype that is contiguous, or `last`: channels_last."""
    if (
        type(t) in PLAIN
        and t.dtype is dtype
        and t.is_cpu
        and (t.is_contiguous(memory_format=torch.channels_last) if last else t.is_contiguous())
        and (address := t.data_ptr())
    ):
        return address
    raise _refusal(t, dtype, last)


def _refusal(t, dtype, last=False):
    """Why there is no pointer to t."""
    if type(t) not in PLAIN:
        return TypeError(
            f'a kernel takes plain tensors, got {type(t).__name__}; use impl="reference"'
        )
    if not t.is_cpu:
        return two_devices('cpu', t.device)
    if t.dtype is not dtype:
        return TypeError(f'a kernel takes {dtype} here, got {t.dtype}')
    if t.data_ptr():
        return ValueError(
            f'a kernel takes a {"channels_last" if last else "contiguous"} tensor here, got '
            f'{tuple(t.shape)} of strides {t.stride()}'
        )
    return RuntimeError(f'a tensor {tuple(t.shape)} has no memory: was it freed, as by sharding?')
