"""The library of the CPU kernels: found or compiled, and loaded.

A wheel brings it, one for each level of processors (`toolchain.LEVELS`). Else, as in a checkout, it
is compiled once, at first use, from the `.cpp` files beside this one. Then it is kept under
`$XDG_CACHE_HOME/mmattn` (`~/.cache/mmattn`), named by what it was made of and for: another source,
compiler or processor gives another file. One process of a machine compiles, and says so; others
wait for it. `CXX` names the compiler (`c++`, then `g++` where it is not set), `CXXFLAGS` further
options; with either, what a wheel brings is not taken. `MMATTN_NATIVE=0` asks for no kernels.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import toolchain
from .toolchain import compiler as compiler  # noqa: PLC0414  (where others look for it)

# A function with how many arguments it takes between the dtype and the number of threads, and which
# of them are pointers to what, as (place, letter).
Function = tuple[Callable[..., int], int, list[tuple[int, str]]]
_made_of: list[str] = []  # what the library in use is, for `in_use`


@functools.cache
def library() -> dict[str, Function] | None:
    """The kernels by name, or None (with one warning) where there are none."""
    if os.environ.get('MMATTN_NATIVE', '1') == '0':
        return None
    try:
        return _shipped() or _load(_build(toolchain.sources()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(
            'mmattn runs its reference ops on the CPU, several times slower: it has no kernels '
            f'({error}). They need a C++17 compiler; MMATTN_NATIVE=0 or MMATTN_IMPL=reference ends '
            'this warning.',
            stacklevel=2,
        )
        return None


@functools.cache
def added(source: Path) -> bool:
    """Whether there are the kernels of one more file, a gate's of one's own; first it is compiled.

    They are then called as all are. Without kernels of our own there are none, and without a
    compiler there are none, with a warning.

    Raises:
        RuntimeError: if the compiler fails, or a function has the name of another.
    """
    functions = library()
    if functions is None:
        return False
    if compiler() is None:
        warnings.warn(f'{source.name} needs a C++17 compiler: the equations run', stacklevel=2)
        return False
    more = _load(_build([toolchain.FOLDER / 'library.cpp', source]))
    if twice := functions.keys() & more.keys():
        raise RuntimeError(f'{source} has functions of names that are taken: {sorted(twice)}')
    functions.update(more)
    return True


def in_use() -> str | None:
    """What the library in use was compiled for, or None before there is one.

    The same kernels give the same bits on processors of one level, whoever compiled them.
    """
    return _made_of[0] if _made_of else None


def _shipped():
    """The library that a wheel brought for this processor, or None."""
    level = toolchain.level(toolchain.cpuinfo(), platform.machine())
    if level is None or os.environ.get('CXX') or os.environ.get('CXXFLAGS'):
        return None
    path = toolchain.shipped(level)
    if not path.exists():
        return None
    try:
        found = _load(path)
    except OSError:  # it was made for a newer system than this
        return None
    _made_of[:] = [level]
    return found


class _Entry(ctypes.Structure):
    _fields_ = [
        ('name', ctypes.c_char_p),
        ('letters', ctypes.c_char_p),
        ('call', ctypes.c_void_p),
    ]


_SCALARS = dict(i=ctypes.c_int, n=ctypes.c_int64, d=ctypes.c_double)
_POINTERS = 'xskSKDN'


def _load(path: Path) -> dict[str, Function]:
    """The functions of a library by name.

    The library itself says what they take: nothing here can be at odds with it.
    """
    lib = ctypes.CDLL(str(path))
    lib.mmattn_openmp.argtypes = [ctypes.c_void_p] * 3
    lib.mmattn_openmp(*_openmp())
    lib.mmattn_entries.restype = ctypes.POINTER(ctypes.POINTER(_Entry))
    functions: dict[str, Function] = {}
    for entry in _up_to_the_last(lib.mmattn_entries()):
        name, letters = entry.name.decode(), entry.letters.decode()
        if set(letters) - {*_SCALARS, *_POINTERS} or (letters[0], letters[-1]) != ('i', 'i'):
            raise RuntimeError(f'{path} has a function {name}({letters}), which cannot be called')
        types: list[Any] = [_SCALARS.get(letter, ctypes.c_void_p) for letter in letters]
        function = ctypes.CFUNCTYPE(ctypes.c_int64, *types)(entry.call)
        letters = letters[1:-1]
        pointers = [(i, letter) for i, letter in enumerate(letters) if letter in 'xskSK']
        functions[name] = function, len(letters), pointers
    return functions


def _up_to_the_last(tables):
    """The entries of all tables: each ends with one without a name, the tables with a null."""
    i = 0
    while tables[i]:
        k = 0
        while tables[i][k].name:
            yield tables[i][k]
            k += 1
        i += 1


def _openmp() -> Sequence[int | None]:
    """Where the functions of the OpenMP runtime are that torch runs on, or nulls: one thread then.

    Other packages may have loaded theirs, so the linker is asked where torch's own calls go.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name('lib') / 'libtorch_cpu.so'))
        functions = [
            getattr(torch_cpu, name)
            for name in ('GOMP_parallel', 'omp_get_thread_num', 'omp_get_num_threads')
        ]
    except (OSError, AttributeError):
        return None, None, None
    return [ctypes.cast(function, ctypes.c_void_p).value for function in functions]


def _cpu() -> str:
    """What -march=native depends on: a home folder may be shared by different machines."""
    info = toolchain.cpuinfo().splitlines()
    return (
        '\n'.join(
            sorted({line for line in info if line.startswith(('flags', 'Features', 'model name'))})
        )
        or platform.processor()
    )


def _build(files: Sequence[Path]) -> Path:
    """The library of these files, compiled for this processor unless it is there already."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError(f'no compiler called {" or ".join(toolchain.names())}')
    version = subprocess.run([cxx, '--version'], capture_output=True, text=True, timeout=60).stdout
    texts = [path.read_text() for path in (*files, *sorted(toolchain.FOLDER.glob('*.h')))]
    flags = *toolchain.FLAGS, os.environ.get('CXXFLAGS', '')
    made_of = '\0'.join([*texts, *flags, cxx, version, _cpu()])
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn'
    path = cache / f'kernels-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so'
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache):
            if not path.exists():
                _compile(cxx, files, path)
    if files == toolchain.sources():
        level = toolchain.level(toolchain.cpuinfo(), platform.machine()) or platform.machine()
        _made_of[:] = [level]
    return path


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """As the only process of a machine. Where a file system knows no locks, each compiles."""
    folder = os.open(cache, os.O_RDONLY)  # the folder is the lock: nothing is left behind
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say('another process compiles the CPU kernels; waiting for it')
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            _say(f'no locks in {cache}: other processes may compile the same')
        yield
    finally:
        os.close(folder)


def _compile(cxx: str, files: Sequence[Path], path: Path) -> None:
    few = len(files) < len(toolchain.sources())
    what = files[-1].name if few else 'the CPU kernels'
    _say(f'compiling {what} with {cxx}, once on this machine{"" if few else ": about a minute"}')
    started = time.monotonic()
    try:
        toolchain.make(cxx, files, path, ['-march=native'])
    except RuntimeError:
        # A compiler that does not know the processor.
        toolchain.make(cxx, files, path, [])
    _say(f'done in {time.monotonic() - started:.0f} s: {path}')


def _say(text: str) -> None:
    print(f'mmattn: {text}', file=sys.stderr, flush=True)
