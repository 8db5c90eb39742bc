"""What each name in a pickle stands for: a function that makes plain data, or an argument of one.

Arguments come from the file. Each function raises `PickleError` for those that nobody has written
by accident, or an error of Python's own, which `load` turns into one.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from .errors import PickleError, UnknownNames

# A tensor may be larger than its memory (`expand`), but not so that a copy of it fills the machine.
MAX_REPEATED = 10**7


class Storage(NamedTuple):
    """Memory and what lies in it."""

    memory: torch.UntypedStorage
    dtype: torch.dtype


class Maker:
    """What a name in a pickle stands for; `make` gets the arguments that the pickle gives."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class Kind(Maker):
    """A name that is only an argument of others."""

    def __init__(self) -> None:
        super().__init__(self.refuse)

    def refuse(self, *_: Any) -> None:
        raise PickleError('a name is called that makes nothing')


class StorageKind(Kind):
    """A class of storages: what lies in one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype


class Unfinished:
    """What a pickle makes first and fills later; `built` is what comes of it then."""

    built: Any = None

    def build(self, state: Any) -> Any:
        """What is made of the contents, which come from the pickle."""
        raise NotImplementedError


def hashable(key: Any, depth: int = 0) -> Any:
    """The same, if it can be a key without taking ages or all of the stack to be hashed."""
    if isinstance(key, tuple):
        if depth > 4 or len(key) > 100:
            raise PickleError('a key that holds too much')
        for item in key:
            hashable(item, depth + 1)
    # Python's integers from there on share their hashes with smaller ones.
    elif type(key) is int and abs(key) >= 2**61 - 1:
        raise PickleError('a key that is a number of more than 60 bits')
    return key


def pairs(items: Iterable) -> Iterable[tuple[Any, Any]]:
    """Keys and values that a dict may be made of; raises PickleError for others."""
    for key, value in items:
        yield hashable(key), value


def _integers(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


# --------------------------------------------------------------------- torch's and Python's


def tensor(
    storage: Storage,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool = False,
    hooks: Any = None,
    more: Any = None,
) -> torch.Tensor:
    """A tensor in a storage; `size` and `stride` count elements, and must lie inside."""
    if not isinstance(storage, Storage) or not (type(size) is type(stride) is tuple):
        raise PickleError('a tensor without a storage')
    if not _integers(offset, *size, *stride) or len(size) != len(stride) or more:
        raise PickleError('a tensor of unknown form')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    room = storage.memory.nbytes() // storage.dtype.itemsize
    if 0 in size:
        offset = 0
    elif last >= room or math.prod(size) > max(room, MAX_REPEATED):
        raise PickleError(f'a tensor larger than its storage, which has {room} elements')
    empty = torch.empty(0, dtype=storage.dtype, device=storage.memory.device)
    return empty.set_(storage.memory, offset, size, stride).requires_grad_(requires_grad is True)


def _typed_tensor(
    storage: Storage,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool,
    hooks: Any,
    dtype: Any,
    more: Any = None,
) -> torch.Tensor:
    """A tensor of the dtypes without a storage class of their own."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise PickleError('a tensor of unknown form')
    storage = Storage(storage.memory, dtype)
    return tensor(storage, offset, size, stride, requires_grad, hooks, more)


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Any) -> torch.nn.Parameter:
    if type(data) is not torch.Tensor:
        raise PickleError('a parameter of what is no tensor')
    return torch.nn.Parameter(data.detach(), requires_grad=requires_grad is True)


def _ordered(items: Iterable = ()) -> OrderedDict:
    return OrderedDict(pairs(items))


def _counter(items: dict | None = None) -> Counter:
    if items is None:
        return Counter()
    if type(items) is not dict:
        raise PickleError('a Counter of what is no dict')
    return Counter(items)


def _set(items: Iterable = ()) -> set:
    return {hashable(item) for item in items}


def _size(items: tuple) -> torch.Size:
    return torch.Size(items)


def _bytes(text: str, encoding: str) -> bytes:
    if encoding not in ('latin1', 'latin-1'):  # the others are for text, and some are programs
        raise PickleError('bytes in another encoding than latin1')
    return text.encode(encoding)


def _no_bytes() -> bytes:
    return b''


# --------------------------------------------------------------------- NumPy's and mmengine's


class Dtype(Unfinished):
    """NumPy's dtypes of numbers and text, in the machine's memory as they are in the pickle."""

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        if type(code) is not str or not re.fullmatch(r'[biufcSU]\d{1,6}|\?', code):
            raise PickleError('an array of other than numbers and text')
        self.dtype = np.dtype(code)

    def build(self, state: tuple) -> 'Dtype':
        # (version, byte order, no sub-array, no names, no fields, size, alignment, flags)
        if state[1] not in ('<', '|', '=') or any(part is not None for part in state[2:5]):
            raise PickleError('an array of another byte order or of records')
        return self


class Array(Unfinished):
    """An array before its contents have come."""

    def __init__(self, kind: Kind, shape: Any, code: Any) -> None:
        if kind is not NDARRAY:
            raise PickleError('an array of another class')

    def build(self, state: tuple) -> np.ndarray:
        version, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or type(shape) is not tuple or not _integers(*shape):
            raise PickleError('an array of unknown form')
        if type(data) is str:  # as Python 2 wrote bytes
            data = data.encode('latin1')
        if type(data) is not bytes:
            raise PickleError('an array without its bytes')
        order: Literal['C', 'F'] = 'F' if fortran else 'C'
        array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy(order)
        _check_text(array)
        return array


def _scalar(dtype: Dtype, data: bytes) -> np.generic:
    if not isinstance(dtype, Dtype) or len(data) != dtype.dtype.itemsize:
        raise PickleError('a number of unknown form')
    array = np.frombuffer(data, dtype.dtype)
    _check_text(array)
    return array[0]


def _check_text(array: np.ndarray) -> None:
    """Raises PickleError for characters that there are not, at which NumPy stops much later."""
    if array.dtype.kind == 'U' and (array.ravel('K').view(np.uint32) > 0x10FFFF).any():
        raise PickleError('text of characters that there are not')


class History(Unfinished):
    """mmengine's HistoryBuffer before its contents have come."""

    def build(self, state: dict) -> HistoryBuffer:
        # Its methods come with it, by name: mmengine's own, which every HistoryBuffer has.
        methods = state.get('statistics_methods', {})
        values, counts, length = (
            state[key] for key in ('_log_history', '_count_history', 'max_length')
        )
        arrays = isinstance(values, np.ndarray) and isinstance(counts, np.ndarray)
        if not arrays or values.shape != counts.shape or not _integers(length):
            raise PickleError('a history of unknown form')
        if any(method is not HISTORY_METHOD for method in methods.values()):
            raise PickleError('a history with methods that are not its own')
        return HistoryBuffer(values, counts, length)


def _attribute(owner: Any, name: str) -> Any:
    found = [full for full, maker in MAKERS.items() if maker is owner]
    full = f'{found[0]}.{str(name)[:40]}' if found else 'builtins.getattr'
    if full not in METHODS:
        raise UnknownNames({full})
    return METHODS[full]


# ------------------------------------------------------------------------------------- the names

NDARRAY, HISTORY_METHOD, HISTORY = Kind(), Kind(), Maker(History)
ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
HISTORY_NAME = 'mmengine.logging.history_buffer.HistoryBuffer'
# Functions that come as attributes of classes: histories bring theirs, schedules their curve.
METHODS = {
    **{f'{HISTORY_NAME}.{name}': HISTORY_METHOD for name in ('min', 'max', 'current', 'mean')},
    f'{ONE_CYCLE}._annealing_cos': OneCycleParamScheduler._annealing_cos,
    f'{ONE_CYCLE}._annealing_linear': OneCycleParamScheduler._annealing_linear,
}
STORAGES = {
    'Double': torch.float64,
    'Float': torch.float32,
    'Half': torch.float16,
    'BFloat16': torch.bfloat16,
    'Long': torch.int64,
    'Int': torch.int32,
    'Short': torch.int16,
    'Char': torch.int8,
    'Byte': torch.uint8,
    'Bool': torch.bool,
    'ComplexDouble': torch.complex128,
    'ComplexFloat': torch.complex64,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
MAKERS = {
    # These alone may stand in the number of a storage.
    **{f'torch.{name}Storage': StorageKind(dtype) for name, dtype in STORAGES.items()},
    'torch.storage.UntypedStorage': StorageKind(torch.uint8),
    **DTYPES,
    'torch._utils._rebuild_tensor': Maker(tensor),
    'torch._utils._rebuild_tensor_v2': Maker(tensor),
    'torch._utils._rebuild_tensor_v3': Maker(_typed_tensor),
    'torch._utils._rebuild_parameter': Maker(_parameter),
    'torch.Size': Maker(_size),
    'collections.OrderedDict': Maker(_ordered),
    'collections.Counter': Maker(_counter),
    '_codecs.encode': Maker(_bytes),
    'builtins.bytes': Maker(_no_bytes),
    'builtins.getattr': Maker(_attribute),
    'builtins.set': Maker(_set),
    'numpy.ndarray': NDARRAY,
    'numpy.dtype': Maker(Dtype),
    HISTORY_NAME: HISTORY,
    ONE_CYCLE: Kind(),
    **METHODS,
}
for core in ('numpy.core', 'numpy._core'):  # NumPy 1 and 2
    MAKERS[f'{core}.multiarray._reconstruct'] = Maker(Array)
    MAKERS[f'{core}.multiarray.scalar'] = Maker(_scalar)
