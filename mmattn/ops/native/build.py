"""Compiles the kernels, the `.cpp` files beside this one, at first use, and loads them.

The library is kept under `$XDG_CACHE_HOME/mmattn` (`~/.cache/mmattn`), named by what it was made of
and for: another source, compiler, processor or OpenMP runtime gives another file. `CXX` names the
compiler (`c++`, then `g++` where it is not set), `CXXFLAGS` further options; `MMATTN_NATIVE=0` asks
for no kernels at all.
"""

import concurrent.futures
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
# No -ffast-math: a NaN or an infinity must come out as one.
_FLAGS = (
    '-std=c++17',
    '-O3',
    '-fPIC',
    '-fno-math-errno',
    '-fno-trapping-math',
    '-Wno-psabi',
    '-fvisibility=hidden',
)


@functools.cache
def library():
    """The kernels by name, each with what it takes, or None (with one warning) where they cannot be
    built."""
    if os.environ.get('MMATTN_NATIVE', '1') == '0':
        return None
    try:
        return _load(_build())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(
            'mmattn runs its reference ops on the CPU, several times slower: it has no kernels '
            f'({error}). They need a C++17 compiler; MMATTN_NATIVE=0 or MMATTN_IMPL=reference ends '
            'this warning.',
            stacklevel=2,
        )
        return None


class _Entry(ctypes.Structure):
    _fields_ = [
        ('name', ctypes.c_char_p),
        ('letters', ctypes.c_char_p),
        ('call', ctypes.c_void_p),
    ]


_SCALARS = dict(i=ctypes.c_int, n=ctypes.c_int64, d=ctypes.c_double)
_POINTERS = 'xskSKDN'


def _load(path):
    """The functions of a library by name, each with what it takes between the dtype and the number
    of threads: how many arguments, and which of them are pointers to what, as (place, letter).

    The library itself says so: nothing here can be at odds with it.
    """
    lib = ctypes.CDLL(str(path))
    lib.mmattn_entries.restype = ctypes.POINTER(ctypes.POINTER(_Entry))
    functions = {}
    for entry in _up_to_the_last(lib.mmattn_entries()):
        name, letters = entry.name.decode(), entry.letters.decode()
        if set(letters) - {*_SCALARS, *_POINTERS} or (letters[0], letters[-1]) != ('i', 'i'):
            raise RuntimeError(f'{path} has a function {name}({letters}), which cannot be called')
        types = [_SCALARS.get(letter, ctypes.c_void_p) for letter in letters]
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


def _openmp():
    """The OpenMP runtime that torch runs on: a second one would fight it for the cores.

    Other packages may have loaded theirs, so ask the linker where torch's calls go.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name('lib') / 'libtorch_cpu.so'))
        address = ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
        for line in Path('/proc/self/maps').read_text().splitlines():
            area, *_, path = line.split(maxsplit=5)
            first, last = (int(end, 16) for end in area.split('-'))
            if first <= address < last:
                return path
    except (OSError, AttributeError):
        pass
    return None


def _cpu():
    """What -march=native depends on: a home folder may be shared by different machines."""
    try:
        info = Path('/proc/cpuinfo').read_text()
    except OSError:
        return platform.processor()
    return '\n'.join(
        sorted(
            {
                line
                for line in info.splitlines()
                if line.startswith(('flags', 'Features', 'model name'))
            }
        )
    )


def _names():
    return [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++']


def compiler():
    """The path of the C++ compiler, or None."""
    return next((found for name in _names() if (found := shutil.which(name))), None)


def _run(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def _compile(command, sources, folder):
    """Objects of all sources, as many at once as there are processors; and what one said that
    failed, or None."""
    objects = [str(Path(folder, source.stem + '.o')) for source in sources]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [
            pool.submit(_run, [*command, '-c', str(source), '-o', to])
            for source, to in zip(sources, objects, strict=True)
        ]
        failed = [job.result().stderr for job in jobs if job.result().returncode]
    return objects, failed[0] if failed else None


def _build():
    cxx = compiler()
    if cxx is None:
        raise RuntimeError(f'no compiler called {" or ".join(_names())}')
    version = subprocess.run([cxx, '--version'], capture_output=True, text=True, timeout=60).stdout
    openmp = _openmp()
    flags = [*_FLAGS, *os.environ.get('CXXFLAGS', '').split()]
    sources = sorted(_FOLDER.glob('*.cpp'))
    texts = [path.read_text() for path in (*sources, *sorted(_FOLDER.glob('*.h')))]
    made_of = '\0'.join([*texts, *flags, cxx, version, str(openmp), _cpu()])
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn'
    path = cache / f'kernels-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so'
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        lib, link = Path(folder, 'kernels.so'), [openmp] if openmp else ['-fopenmp']
        for extra in (['-march=native', '-fopenmp'], ['-fopenmp'], []):
            objects, error = _compile([cxx, *extra, *flags], sources, folder)
            if error is None:
                link = link if extra else []
                break
        else:
            raise RuntimeError(f'{cxx} failed: {error.strip()[-400:]}')
        done = _run([cxx, '-shared', *objects, *link, '-o', str(lib)])
        if done.returncode:
            raise RuntimeError(f'{cxx} failed to link: {done.stderr.strip()[-400:]}')
        os.replace(lib, path)  # several processes may get here at once: the last one wins, whole
    return path
