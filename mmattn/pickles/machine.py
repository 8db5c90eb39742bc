"""The stack machine that a pickle is a program for, as far as data needs it."""

import mmap
import os
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from .errors import PickleError, UnknownNames
from .makers import MAKERS, Maker, Storage, Unfinished, hashable, pairs

# What a whole checkpoint stays far below; more is made to keep a reader busy.
MAX_DEPTH, MAX_ITEMS, MAX_OPCODES = 100, 10**7, 2 * 10**6

PickleFile = BinaryIO | mmap.mmap  # at the pickle's begin


def _full_name(module: str, name: str) -> str:
    # The older protocols call things as Python 2 did.
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f'{IMPORT_MAPPING.get(module, module)}.{name}'


def names_in(file: PickleFile) -> set[str]:
    """The full names of all classes and functions that a pickle wants, without reading it.

    Raises:
        PickleError: if it is no whole pickle.
    """
    # A name may also come from the stack: in a pickle that nobody has twisted, these are the last
    # two texts there. What is missed here is refused when it is met.
    names = set()
    before: str | None = None
    last: str | None = None
    memo: dict[int, str | None] = {}
    for op, arg in _opcodes(file):
        if op in ('GLOBAL', 'INST'):
            names.add(_full_name(*arg.split(' ', 1)))
        elif op == 'STACK_GLOBAL' and before is not None and last is not None:
            names.add(_full_name(before, last))
        elif op in _Machine.MEMO:
            memo[len(memo) if arg is None else arg] = last
        elif op in _Machine.GETS:
            before, last = last, memo.get(arg)
        elif op not in ('PROTO', 'FRAME'):
            before, last = last, arg if isinstance(arg, str) else None
    return names


def _opcodes(file: PickleFile) -> Iterator[tuple[str, Any]]:
    try:
        for number, (op, arg, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]  # maps, too
            if number >= MAX_OPCODES:
                raise PickleError(f'more than {MAX_OPCODES} opcodes')
            yield op.name, arg
    except (ValueError, UnicodeError, OverflowError) as error:
        raise PickleError(f'no whole pickle: {error}') from error


def load(file: PickleFile, storage_of: Callable[[Any], Storage] | None = None) -> Any:
    """What a pickle describes, of plain Python types, NumPy arrays, tensors and HistoryBuffers.

    Args:
        file (BinaryIO or mmap): Is left behind the pickle's end.
        storage_of (Callable, optional): Gives the storage of a persistent number; without it there
            are no tensors.

    Raises:
        UnknownNames: if the pickle wants anything that is not in `MAKERS`.
        PickleError: if it is damaged, refers to itself, or is deeper, wider or longer than
            `MAX_DEPTH`, `MAX_ITEMS` and `MAX_OPCODES`.
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


def load_file(path: str | os.PathLike) -> Any:
    """What a file describes that is one pickle, without tensors.

    Raises:
        OSError: if it cannot be read.
        UnknownNames, PickleError: as `load` does.
    """
    with open(path, 'rb') as file:
        if not file.read(1):
            raise PickleError('it is empty')
        # Unlike a file, a map gives no more room to what is read than there is in the file.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return load(mapped)


class _Machine:
    """The pickle's stack machine, as far as data needs it."""

    def __init__(self, file: PickleFile, storage_of: Callable[[Any], Storage] | None) -> None:
        self.file, self.storage_of = file, storage_of
        self.stack: list[Any] = []
        self.marks: list[int] = []  # places in the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for op, arg in _opcodes(self.file):
            if op == 'STOP':
                return self.stack.pop()
            if op in self.VALUES:
                self.stack.append(arg)
            elif op in self.CONSTANTS:
                self.stack.append(self.CONSTANTS[op]())
            elif op in self.MEMO:
                self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]
            elif op in self.GETS:
                found = self.memo[arg]
                built = found.built if isinstance(found, Unfinished) else None
                self.stack.append(found if built is None else built)
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
    CONSTANTS: dict[str, Callable[[], Any]] = {
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

    def _marked(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _pairs(self) -> dict[Any, Any]:
        items = self._marked()
        return dict(pairs(zip(items[::2], items[1::2], strict=True)))

    def _top(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise PickleError('an item for what holds none')
        return self.stack[-1]

    def op_mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def op_tuple(self, _: None) -> None:
        self.stack.append(tuple(self._marked()))

    def op_list(self, _: None) -> None:
        self.stack.append(self._marked())

    def op_dict(self, _: None) -> None:
        self.stack.append(self._pairs())

    def _tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:])
        del self.stack[-length:]
        self.stack.append(items)

    def op_tuple1(self, _: None) -> None:
        self._tuple(1)

    def op_tuple2(self, _: None) -> None:
        self._tuple(2)

    def op_tuple3(self, _: None) -> None:
        self._tuple(3)

    def op_append(self, _: None) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def op_appends(self, _: None) -> None:
        items = self._marked()
        self._top(list).extend(items)

    def op_additems(self, _: None) -> None:
        items = self._marked()
        self._top(set).update(map(hashable, items))

    def op_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict, OrderedDict, Counter)[hashable(key)] = value

    def op_setitems(self, _: None) -> None:
        found = self._pairs()
        self._top(dict, OrderedDict, Counter).update(found)

    def op_pop(self, _: None) -> None:
        self.stack.pop()

    def op_global(self, arg: str) -> None:
        self.stack.append(self._maker(*arg.split(' ', 1)))

    def op_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._maker(module, name))

    @staticmethod
    def _maker(module: Any, name: Any) -> Maker:
        if not (type(module) is type(name) is str):
            raise PickleError('a name that is no text')
        full = _full_name(module, name)
        if full not in MAKERS:
            raise UnknownNames({full})
        return MAKERS[full]

    def op_reduce(self, _: None) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        if not isinstance(maker, Maker) or type(arguments) is not tuple:
            raise PickleError('a call of what is no function')
        self.stack.append(maker.make(*arguments))

    op_newobj = op_reduce

    def op_build(self, _: None) -> None:
        state, thing = self.stack.pop(), self.stack[-1]
        if type(thing) is OrderedDict:
            # The versions of the modules in a state dict.
            if type(state) is not dict or set(state) - {'_metadata'}:
                raise PickleError('a dict with attributes')
            thing.__dict__.update(state)
            return
        if not isinstance(thing, Unfinished):
            raise PickleError('contents for what has none')
        self.stack[-1] = thing.built = thing.build(state)

    def op_binpersid(self, _: None) -> None:
        if self.storage_of is None:
            raise PickleError('a storage where there is none')
        self.stack.append(self.storage_of(self.stack.pop()))


def _children(item: Any) -> Sequence[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values(), *getattr(item, '__dict__', {}).values()]
    if isinstance(item, (Maker, Storage, Unfinished)):
        raise PickleError('something unfinished')
    return list(item) if isinstance(item, (list, tuple, set)) else ()


def _check_extent(root: Any) -> None:
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
