"""The C++ compiler, and the processors that the kernels are compiled for.

Plain Python, which `setup.py` runs as well: where there is no torch yet. As a command it compiles
the libraries that a wheel brings, for another kind of machine where `CXX` is a cross compiler:

    CXX=aarch64-linux-gnu-g++ python mmattn/ops/native/toolchain.py FOLDER
"""

import argparse
import concurrent.futures
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
# No -ffast-math: a NaN or an infinity must come out as one.
FLAGS = (
    '-std=c++17',
    '-O3',
    '-fPIC',
    '-fno-math-errno',
    '-fno-trapping-math',
    '-Wno-psabi',
    '-fvisibility=hidden',
)
# Of a machine, the levels that a wheel brings a library for, best first, with what /proc/cpuinfo
# says of a processor that has it. One whose best is none of them compiles its own.
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    'x86_64': {
        'x86-64-v4': ('avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'),
        'x86-64-v3': ('avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'movbe'),
    },
    'aarch64': {'armv8-a': ('asimd',)},
}


def names() -> list[str]:
    """What a compiler is called: `CXX`, else `c++` or `g++`."""
    return [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++']


def compiler() -> str | None:
    """The path of the C++ compiler, or None."""
    return next((found for name in names() if (found := shutil.which(name))), None)


def sources() -> list[Path]:
    """The files of the kernels: all there are, a new one is named nowhere."""
    return sorted(FOLDER.glob('*.cpp'))


def cpuinfo() -> str:
    try:
        return Path('/proc/cpuinfo').read_text()
    except OSError:
        return ''


def level(info: str, machine: str) -> str | None:
    """The best of `LEVELS` that a machine's processor has, by its /proc/cpuinfo, or None."""
    for line in info.splitlines():
        if line.startswith(('flags', 'Features')):
            flags = set(line.partition(':')[2].split())
            for name, needed in LEVELS.get(machine, {}).items():
                if flags.issuperset(needed):
                    return name
            break
    return None


def shipped(name: str) -> Path:
    """Where a wheel has the library of a level."""
    return FOLDER / 'lib' / f'kernels-{name}.so'


def make(
    cxx: str, files: Sequence[Path], target: Path, options: Sequence[str], link: Sequence[str] = ()
) -> None:
    """Compile files, as many at once as there are processors, to a library that is there as a whole
    or not at all. It asks for no OpenMP runtime, which it is given when it is loaded.

    Raises:
        RuntimeError: with what the compiler said last.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [str(Path(folder, path.stem + '.o')) for path in files]
        flags = [*options, *FLAGS, f'-I{FOLDER}', *os.environ.get('CXXFLAGS', '').split()]
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            jobs = [
                pool.submit(_run, [cxx, *flags, '-c', str(path), '-o', to])
                for path, to in zip(files, objects, strict=True)
            ]
            failed = [error for job in jobs if (error := job.result())]
        lib = str(Path(folder, 'kernels.so'))
        error = failed[0] if failed else _run([cxx, '-shared', *objects, *link, '-o', lib])
        if error:
            raise RuntimeError(f'{cxx} failed: {error.strip()[-400:]}')
        os.replace(lib, target)


def _run(command: list[str]) -> str:
    """What a command that fails says, else nothing."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return (done.stderr or f'exit status {done.returncode}') if done.returncode else ''


def machine_of(cxx: str) -> str:
    """The kind of machine that a compiler compiles for: this one, but for a cross compiler."""
    said = subprocess.run([cxx, '-dumpmachine'], capture_output=True, text=True, timeout=60).stdout
    found = said.partition('-')[0]
    return found if found in LEVELS else platform.machine()


def levels(machine: str) -> list[str]:
    """The levels of a kind of machine."""
    return list(LEVELS.get(machine, ()))


def ship(folder: Path) -> list[Path]:
    """Compile the library of each of the compiler's machine's levels into a folder, for a wheel.

    Raises:
        RuntimeError: if there is no compiler, or it fails.
    """
    cxx = compiler()
    if cxx is None:
        raise RuntimeError(f'no compiler called {" or ".join(names())}')
    made = []
    for name in levels(machine_of(cxx)):
        made.append(folder / shipped(name).name)
        # Of the compiler's own libraries it needs none either: they may be newer than the user's.
        link = ['-static-libstdc++', '-static-libgcc']
        make(cxx, sources(), made[-1], [f'-march={name}'], link)
    return made


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description='Compile the libraries that a wheel brings, with $CXX, for its machine.'
    )
    parser.add_argument('folder', type=Path, help='where to put them')
    folder = parser.parse_args(args).folder
    try:
        for path in ship(folder):
            print(path)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main(sys.argv[1:])
