"""Which implementation of an op runs: the equations, or the fast kernels.

`MMATTN_IMPL=reference` in the environment, `set_impl('reference')`, `with use_impl('reference'):`
or a gate's own `impl='reference'` choose the plain PyTorch equations. The default, `'fast'`, takes
the kernels of the device where they can be taken and the equations where they cannot.
"""

import contextlib
import contextvars
import functools
import importlib
import os
from collections.abc import Iterable, Iterator
from types import ModuleType

import torch
from torch.autograd import forward_ad

IMPLS = ('fast', 'reference')
_BACKENDS = dict(cpu='mmattn.ops.native', cuda='mmattn.ops.triton')
# What a tensor must be for a kernel to read its memory: a subclass may keep its values elsewhere.
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def check_impl(impl: str, name: str = 'impl') -> str:
    """Return `impl`; raise ValueError unless it is one of `IMPLS`."""
    if impl not in IMPLS:
        raise ValueError(f'{name} must be one of {IMPLS}, got {impl!r}')
    return impl


_default = check_impl(os.environ.get('MMATTN_IMPL') or 'fast', 'environment variable MMATTN_IMPL')
_borrowed = contextvars.ContextVar('impl', default=None)


def get_impl() -> str:
    """The implementation used by ops and gates that name none: 'fast' or 'reference'."""
    return _borrowed.get() or _default


def set_impl(impl: str) -> None:
    """Set the implementation used by ops and gates that name none, in all threads.

    Inside a `with use_impl` block it is set for the rest of that block.

    Raises:
        ValueError: if `impl` is neither 'fast' nor 'reference'.
    """
    global _default
    check_impl(impl)
    if _borrowed.get() is None:
        _default = impl
    else:
        _borrowed.set(impl)


@contextlib.contextmanager
def use_impl(impl: str) -> Iterator[None]:
    """`set_impl` for the length of a `with` block, for its own thread and task.

    Activation checkpointing on a GPU recomputes in threads of PyTorch, which this does not reach:
    there use `set_impl`, or a gate's `impl`.
    """
    token = _borrowed.set(check_impl(impl))
    try:
        yield
    finally:
        _borrowed.reset(token)


def stats_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of descriptors and factors of `x`: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@functools.cache
def backend(device_type: str) -> ModuleType | None:
    """The kernel backend module of a device type, or None where there is none."""
    try:
        return importlib.import_module(_BACKENDS[device_type])
    except (KeyError, ImportError):
        return None


def two_devices(first: object, second: object) -> RuntimeError:
    """The error of PyTorch for tensors of two devices."""
    return RuntimeError(
        'Expected all tensors to be on the same device, but found at least two devices, '
        f'{first} and {second}!'
    )


def are_plain(values: Iterable) -> bool:
    """Whether the tensors among values (which may be nested) are what their memory says."""
    for value in values:
        kind = type(value)
        if kind in PLAIN:
            if value.is_neg():  # the imaginary part of a conjugate: the sign is kept apart
                return False
        elif kind in (tuple, list):
            # Of tensors alone as a rule, and of many: without a loop in Python.
            if PLAIN.issuperset(map(type, value)):
                if any(map(torch.Tensor.is_neg, value)):
                    return False
            elif not are_plain(value):
                return False
        elif isinstance(value, torch.Tensor):
            return False
    return True


def kernels_for(x: torch.Tensor, impl: str | None = None, *args: object) -> ModuleType | None:
    """The kernel backend that an op on `x` and other arguments runs on, or None for the equations.

    Kernels need a real tensor in front of them. What is being compiled, traced (ONNX export traces
    too), vmapped, differentiated forward or watched by a dispatch mode gets the equations, which
    PyTorch can see into.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if (impl or get_impl()) == 'reference':
        return None
    if (
        not are_plain((x, *args))
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    ):
        return None
    kernels = backend(x.device.type)
    return kernels if kernels is not None and kernels.supports(x) else None
