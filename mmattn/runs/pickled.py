"""Reads a pickle as data: what it names is not imported, and nothing is called but what is here.

`torch.load(weights_only=True)` is not enough: it was got round in torch up to 2.5 (CVE-2025-32434)
and up to 2.9 (CVE-2026-24747, sizes that are not the file's), which are in use here, and the types
that mmengine's own checkpoints need are no data as they stand: NumPy's dtypes can be told that an
object lies where there are bytes, and OneDL's list holds `getattr`. So each name that a checkpoint
may hold stands for a small function of `MAKERS` here, which takes what it needs and no more; sizes
are held against the file. The rest is refused by its name, in any version of torch.
"""

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

# What a whole checkpoint stays far below; more is made to keep a reader busy.
MAX_DEPTH, MAX_ITEMS = 100, 10**7


class PickleError(ValueError):
    """The pickle is damaged or not in the form that PyTorch writes."""


class UnknownNames(ValueError):
    """The pickle wants more than data; `names` says what."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(', '.join(sorted(names)))
        self.names = names


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

    def __init__(self, value: Any = None) -> None:
        super().__init__(self.refuse)
        self.value = value

    def refuse(self, *_: Any) -> None:
        raise PickleError('a name is called that makes nothing')


def _integers(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


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
    if 0 not in size and last >= room:
        raise PickleError(f'a tensor of {size} in a storage of {room} elements')
    if 0 in size:
        offset = 0
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
    return torch.nn.Parameter(data.detach(), requires_grad=requires_grad is True)


def _ordered(items: Any = ()) -> OrderedDict:
    return OrderedDict(items)


def _counter(items: Any = ()) -> Counter:
    return Counter(items)


def _size(items: tuple) -> torch.Size:
    return torch.Size(items)


def _bytes(text: str, encoding: str) -> bytes:
    if encoding not in ('latin1', 'latin-1'):  # the others are for text, and some are programs
        raise PickleError(f'bytes as {encoding!r}')
    return text.encode(encoding)


def _no_bytes() -> bytes:
    return b''


class Dtype:
    """NumPy's dtypes of numbers and text, in the machine's memory as they are in the pickle."""

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        if type(code) is not str or not re.fullmatch(r'[biufcSU]\d{1,9}|\?', code):
            raise PickleError(f'an array of dtype {code!r}')
        self.dtype = np.dtype(code)

    def build(self, state: tuple) -> 'Dtype':
        # (version, byte order, no sub-array, no names, no fields, size, alignment, flags)
        if state[1] not in ('<', '|', '=') or any(part is not None for part in state[2:5]):
            raise PickleError('an array of another byte order or of records')
        return self


class Array:
    """An array before its contents have come."""

    def __init__(self, kind: Kind, shape: Any, code: Any) -> None:
        if kind is not NDARRAY:
            raise PickleError('an array of another class')

    def build(self, state: tuple) -> np.ndarray:
        version, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or type(shape) is not tuple or not _integers(*shape):
            raise PickleError('an array of unknown form')
        if type(data) is not bytes:
            raise PickleError('an array without its bytes')
        order = 'F' if fortran else 'C'
        return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy(order)


def _scalar(dtype: Dtype, data: bytes) -> np.generic:
    if not isinstance(dtype, Dtype) or len(data) != dtype.dtype.itemsize:
        raise PickleError('a number of unknown form')
    return np.frombuffer(data, dtype.dtype)[0]


class History:
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
    full = f'{found[0] if found else "?"}.{str(name)[:40]}'
    if full not in METHODS:
        raise UnknownNames({full})
    return METHODS[full]


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
# A class of its own: these alone may stand in the number of a storage.
STORAGE_KINDS = {f'torch.{name}Storage': Kind(dtype) for name, dtype in STORAGES.items()}
STORAGE_KINDS['torch.storage.UntypedStorage'] = Kind(torch.uint8)
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
MAKERS = {
    **STORAGE_KINDS,
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
    'builtins.set': Maker(set),
    'numpy.ndarray': NDARRAY,
    'numpy.dtype': Maker(Dtype),
    HISTORY_NAME: HISTORY,
    ONE_CYCLE: Kind(),
    **METHODS,
}
for core in ('numpy.core', 'numpy._core'):  # NumPy 1 and 2
    MAKERS[f'{core}.multiarray._reconstruct'] = Maker(Array)
    MAKERS[f'{core}.multiarray.scalar'] = Maker(_scalar)


def _full_name(module: str, name: str) -> str:
    # The older protocols call things as Python 2 did.
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f'{IMPORT_MAPPING.get(module, module)}.{name}'


def names_in(file: BinaryIO) -> set[str]:
    """The full names of all classes and functions that a pickle wants, without reading it.

    Raises:
        PickleError: if it is no whole pickle.
    """
    # A name may also come from the stack: in a pickle that nobody has twisted, these are the last
    # two texts there. What is missed here is refused when it is met.
    names, pushed, memo = set(), [None, None], {}
    for op, arg, _ in _opcodes(file):
        if op in ('GLOBAL', 'INST'):
            names.add(_full_name(*arg.split(' ', 1)))
        elif op == 'STACK_GLOBAL' and None not in pushed:
            names.add(_full_name(*pushed))
        elif op in _Machine.MEMO:
            memo[len(memo) if arg is None else arg] = pushed[-1]
        elif op in _Machine.GETS:
            pushed = [pushed[-1], memo.get(arg)]
        elif op not in ('PROTO', 'FRAME'):
            pushed = [pushed[-1], arg if isinstance(arg, str) else None]
    return names


def _opcodes(file):
    try:
        for op, arg, position in pickletools.genops(file):
            yield op.name, arg, position
    except (ValueError, UnicodeError, OverflowError) as error:
        raise PickleError(f'no whole pickle: {error}') from error


def load(file: BinaryIO, storage_of: Callable[[Any], Storage] | None = None) -> Any:
    """What a pickle describes, of plain Python types, NumPy arrays, tensors and HistoryBuffers.

    Args:
        file (BinaryIO): Is left behind the pickle's end.
        storage_of (Callable, optional): Gives the storage of a persistent number; without it there
            are no tensors.

    Raises:
        UnknownNames: if the pickle wants anything that is not in `MAKERS`.
        PickleError: if it is damaged, refers to itself, or is deeper or wider than `MAX_DEPTH` and
            `MAX_ITEMS`.
    """
    start = file.tell()
    unknown = names_in(file) - set(MAKERS)
    if unknown:
        raise UnknownNames(unknown)
    file.seek(start)
    try:
        result = _Machine(file, storage_of).run()
        _check_extent(result)
    except (UnknownNames, PickleError):
        raise
    # What the makers and the stack make of arguments that nobody has written by accident.
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise PickleError(f'{type(error).__name__}: {error}') from error
    return result


class _Machine:
    """The pickle's stack machine, as far as data needs it."""

    def __init__(self, file, storage_of):
        self.file, self.storage_of = file, storage_of
        self.stack, self.marks, self.memo = [], [], {}

    def run(self):
        for op, arg, _ in _opcodes(self.file):
            if op == 'STOP':
                return self.stack.pop()
            if op in self.VALUES:
                self.stack.append(arg)
            elif op in self.CONSTANTS:
                self.stack.append(self.CONSTANTS[op]())
            elif op in self.MEMO:
                self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]
            elif op in self.GETS:
                self.stack.append(self.memo[arg])
            elif op not in ('PROTO', 'FRAME'):
                method = getattr(self, f'op_{op.lower()}', None)
                if method is None:
                    raise PickleError(f'{op}, which no checkpoint needs')
                method(arg)
        raise PickleError('no end')

    VALUES = frozenset(
        ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT')
        + ('STRING', 'BINSTRING', 'SHORT_BINSTRING')
        + ('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8')
        + ('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8')
    )
    CONSTANTS = {
        'NONE': lambda: None,
        'NEWTRUE': lambda: True,
        'NEWFALSE': lambda: False,
        'EMPTY_TUPLE': tuple,
        'EMPTY_LIST': list,
        'EMPTY_DICT': dict,
        'EMPTY_SET': set,
    }
    MEMO = frozenset(('BINPUT', 'LONG_BINPUT', 'PUT', 'MEMOIZE'))
    GETS = frozenset(('BINGET', 'LONG_BINGET', 'GET'))

    def _marked(self):
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _top(self, *kinds):
        if type(self.stack[-1]) not in kinds:
            raise PickleError('an item for what holds none')
        return self.stack[-1]

    def op_mark(self, _):
        self.marks.append(len(self.stack))

    def op_tuple(self, _):
        self.stack.append(tuple(self._marked()))

    def op_list(self, _):
        self.stack.append(self._marked())

    def op_dict(self, _):
        items = self._marked()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _tuple(self, length):
        items = tuple(self.stack[-length:])
        del self.stack[-length:]
        self.stack.append(items)

    def op_tuple1(self, _):
        self._tuple(1)

    def op_tuple2(self, _):
        self._tuple(2)

    def op_tuple3(self, _):
        self._tuple(3)

    def op_append(self, _):
        item = self.stack.pop()
        self._top(list).append(item)

    def op_appends(self, _):
        items = self._marked()
        self._top(list).extend(items)

    def op_additems(self, _):
        items = self._marked()
        self._top(set).update(items)

    def op_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict, OrderedDict, Counter)[key] = value

    def op_setitems(self, _):
        items = self._marked()
        self._top(dict, OrderedDict, Counter).update(zip(items[::2], items[1::2], strict=True))

    def op_pop(self, _):
        self.stack.pop()

    def op_global(self, arg):
        self.stack.append(self._maker(*arg.split(' ', 1)))

    def op_stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._maker(module, name))

    @staticmethod
    def _maker(module, name):
        if not (type(module) is type(name) is str):
            raise PickleError('a name that is no text')
        full = _full_name(module, name)
        if full not in MAKERS:
            raise UnknownNames({full})
        return MAKERS[full]

    def op_reduce(self, _):
        arguments, maker = self.stack.pop(), self.stack.pop()
        if not isinstance(maker, Maker) or type(arguments) is not tuple:
            raise PickleError('a call of what is no function')
        self.stack.append(maker.make(*arguments))

    op_newobj = op_reduce

    def op_build(self, _):
        state, thing = self.stack.pop(), self.stack[-1]
        if type(thing) is OrderedDict:
            # The versions of the modules in a state dict.
            if set(state) - {'_metadata'}:
                raise PickleError('a dict with attributes')
            thing.__dict__.update(state)
            return
        if not isinstance(thing, (Dtype, Array, History)):
            raise PickleError('contents for what has none')
        built = thing.build(state)
        self.stack[-1] = built
        for number, other in reversed(self.memo.items()):
            if other is thing:
                self.memo[number] = built
                break

    def op_binpersid(self, _):
        if self.storage_of is None:
            raise PickleError('a storage where there is none')
        self.stack.append(self.storage_of(self.stack.pop()))


def _children(item):
    if isinstance(item, dict):
        return [*item.keys(), *item.values(), *getattr(item, '__dict__', {}).values()]
    if isinstance(item, (Maker, Storage, Dtype, Array, History)):
        raise PickleError('something unfinished')
    return list(item) if isinstance(item, (list, tuple, set)) else ()


def _check_extent(root):
    """Raises PickleError if what is read refers to itself, or would take ages to walk through."""
    # Depth first; `counts` holds the number of items below, -1 while they are being counted.
    counts, path = {}, [(root, iter(_children(root)))]
    counts[id(root)] = -1
    while path:
        if len(path) > MAX_DEPTH:
            raise PickleError(f'more than {MAX_DEPTH} levels')
        item, rest = path[-1]
        for child in rest:
            children = _children(child)
            if not children or counts.get(id(child), 0) > 0:
                continue
            if counts.get(id(child)) == -1:
                raise PickleError('something that holds itself')
            counts[id(child)] = -1
            path.append((child, iter(children)))
            break
        else:
            path.pop()
            counts[id(item)] = 1 + sum(counts.get(id(child), 1) for child in _children(item))
            if counts[id(item)] > MAX_ITEMS:
                raise PickleError(f'more than {MAX_ITEMS} items')
