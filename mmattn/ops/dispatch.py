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
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

IMPLS = ('fast', 'reference')
# Tried: 2.5 cannot, 2.8 can.
_OLD = tuple(map(int, torch.__version__.split('.')[:2])) < (2, 8)
_BACKENDS = dict(cpu='mmattn.ops.native', cuda='mmattn.ops.triton')
# What a tensor must be for a kernel to read its memory: a subclass may keep its values elsewhere.
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def check_impl(impl: str, name: str = 'impl') -> str:
    """Return `impl`; raise ValueError unless it is one of `IMPLS`."""
    if impl not in IMPLS:
        raise ValueError(f'{name} must be one of {IMPLS}, got {impl!r}')
    return impl


_default = check_impl(os.environ.get('MMATTN_IMPL') or 'fast', 'environment variable MMATTN_IMPL')
_borrowed: contextvars.ContextVar[str | None] = contextvars.ContextVar('impl', default=None)


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
def backend(device_type: str) -> Any:
    """The kernel backend module of a device type, or None where there is none."""
    name = _BACKENDS.get(device_type)
    if name is None:
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        warnings.warn(
            f'mmattn runs its reference ops on {device_type}: {name} does not load ({error})',
            stacklevel=2,
        )
        return None


def passes(op: str, x: Tensor) -> bool:
    """Whether an operator's kernels may be trusted where x is: the first call on a GPU checks."""
    check = getattr(backend(x.device.type), 'passes', None)
    return check is None or check(op, x)


def backend_of(x: Tensor, op: str | None = None, impl: str | None = None) -> str:
    """What runs an op on x: 'native' (C++, on the CPU), 'triton' (on a GPU) or 'reference'.

    'reference' are the equations. With the name of an operator, as 'drtam', its self-check on a
    GPU counts, too; it is made now unless there is a verdict.

    Raises:
        ValueError: if `impl` is neither 'fast' nor 'reference', or no operator has that name.
    """
    if impl is not None:
        check_impl(impl)
    if op is not None and not hasattr(torch.ops.mmattn, op):
        raise ValueError(f'op must be the name of an operator of torch.ops.mmattn, got {op!r}')
    if not runs_kernels(x, impl) or not (op is None or passes(op, x)):
        return 'reference'
    return backend(x.device.type).__name__.rpartition('.')[2]


def two_devices(first: object, second: object) -> RuntimeError:
    """The error of PyTorch for tensors of two devices."""
    return RuntimeError(
        'Expected all tensors to be on the same device, but found at least two devices, '
        f'{first} and {second}!'
    )


def forward_level() -> int:
    """The level of `torch.autograd.forward_ad` that is open, or -1: PyTorch has no public word."""
    return getattr(forward_ad, '_current_level', 0)


def watched() -> bool:
    """Whether a mode of PyTorch watches single operations, as to count FLOPs; tracing does not.

    PyTorch has no public word for it either.
    """
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(
        getattr(mode, '_mode_key', None) is None for mode in _get_current_dispatch_mode_stack()
    )


def full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """Autocast switched off. The meta device has none to switch off."""
    if device_type == 'meta':
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def _constant(function):
    """`torch.compiler.assume_constant_result`, which would import the compiler (and Triton): a
    compiler does not look into the function, and keeps what it returned."""
    function._dynamo_marked_constant = True
    return function


@_constant
def _constant_impl():
    return get_impl()


@_constant
def _constant_takes(device_type, dtype):
    kernels = backend(device_type)
    return kernels is not None and kernels.takes(torch.device(device_type), dtype)


# PyTorch before 2.7 does not tell whether code is compiled or exported, and Dynamo of 2.8 takes all
# to be exported: that has the kernels.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: True)


@_constant
def _constant_limit(op, device_type, dtype, **options):
    asked = getattr(backend(device_type), 'left_to_compilers', None)
    return asked(op, dtype, **options) if asked else 0


def _is_below(x, limit):
    """Whether a compiler knows that x takes less than so many bytes. Of sizes that are open it does
    not, and makes less of equations."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(x.numel() * x.element_size() < limit)


def declines(op: str, x: Tensor, **options: bool) -> bool:
    """Whether PyTorch's own operators are quicker than a kernel here, or what a compiler makes of
    them. Exported code keeps the operator, which can be decomposed."""
    if torch.compiler.is_compiling():
        limit = _constant_limit(op, x.device.type, x.dtype, **options)
        return limit > 0 and not _is_exporting() and _is_below(x, limit)
    return backend(x.device.type).declines(op, x, **options)


@_constant
def _constant_knowledge(op, device_type):
    return op in backend(device_type).IDENTITY


def knows_identity(op: str, x: Tensor) -> bool:
    """Whether an operator's kernels, where there are any, know the identity in part."""
    if torch.compiler.is_compiling():
        return _constant_knowledge(op, x.device.type)
    return op in backend(x.device.type).IDENTITY


def keeps_lists(x: Tensor) -> bool:
    """Whether an operator may keep a list of tensors for its backward: compiled training of PyTorch
    before 2.8 cannot hand one on."""
    return not (
        _OLD and torch.compiler.is_compiling() and torch.is_grad_enabled() and x.requires_grad
    )


def by_kernels(op: str, x: Tensor, identity_scale: Tensor | None) -> bool:
    """Whether an operator that was called on x ran its kernels, and not the equations: then there
    are values in what it keeps for its backward."""
    known = identity_scale is None or knows_identity(op, x)
    return known and x.numel() > 0 and passes(op, x)


@functools.cache
def stands_for_plain(kind: type) -> bool:
    """Whether tensors of a class are what their memory says, or stand for such while PyTorch
    traces: FakeTensor and FunctionalTensor, whose modules would import Triton before its time."""
    return kind in PLAIN or kind.__module__ in (
        'torch._subclasses.fake_tensor',
        'torch._subclasses.functional_tensor',
    )


def are_plain(values: Iterable) -> bool:
    """Whether the tensors among values (which may be nested) are of such classes."""
    for value in values:
        if isinstance(value, (tuple, list)):
            if not (PLAIN.issuperset(map(type, value)) or are_plain(value)):
                return False
        elif isinstance(value, Tensor) and not stands_for_plain(type(value)):
            return False
    return True


def runs_kernels(x: Tensor, impl: str | None = None, *args: object) -> bool:
    """Whether an op on `x` and other arguments runs kernels: an operator of the library `mmattn`.

    Else it is written in operators of PyTorch, the equations: for `impl='reference'`; for what no
    kernel takes; for what is traced by `torch.jit` (ONNX export traces too) or watched by a
    dispatch mode; and for tensor subclasses, whose memory may not say what they are. What is
    compiled or exported runs kernels. `impl` and the kernels there are, it keeps.
    """
    if torch.jit.is_tracing():
        return False
    if torch.compiler.is_compiling():
        return (
            (impl or _constant_impl()) != 'reference'
            and not torch.onnx.is_in_onnx_export()
            and 2 < x.dim() < 5  # of sizes, which may be dynamic, the operator sees to all
            and _constant_takes(x.device.type, x.dtype)
        )
    if (impl or get_impl()) == 'reference':
        return False
    kernels = backend(x.device.type)
    return (
        kernels is not None
        and x.layout is torch.strided
        and 2 < x.dim() < 5
        and 0 < x.numel() < 2**31
        and kernels.takes(x.device, x.dtype)
        and are_plain((x, *args))
        and not watched()
    )
