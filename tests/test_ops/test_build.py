"""Where the CPU kernels come from: a wheel, the cache, or a compiler, which one process runs."""

import fcntl
import os
import platform
import threading
import time
import warnings
from pathlib import Path

import forked
import pytest
from needs import needs_kernels

from mmattn.ops import native
from mmattn.ops.native import build, toolchain

V3 = 'fpu avx avx2 bmi1 bmi2 f16c fma movbe'
V4 = f'{V3} avx512f avx512bw avx512cd avx512dq avx512vl'


@pytest.mark.parametrize(
    'machine, info, level',
    (
        ('x86_64', f'processor: 0\nflags : {V4} amx\n', 'x86-64-v4'),
        ('x86_64', f'flags\t\t: {V3} avx512f\n', 'x86-64-v3'),
        ('x86_64', 'flags : fpu sse2 avx\n', None),
        ('x86_64', '', None),
        ('aarch64', 'Features : fp asimd crc32\n', 'armv8-a'),
        ('riscv64', 'isa : rv64imafdc\n', None),
    ),
)
def test_the_best_level_that_a_processor_has(machine, info, level):
    assert toolchain.level(info, machine) == level


@pytest.mark.parametrize(
    'says, machine',
    (
        ('aarch64-linux-gnu', 'aarch64'),
        ('x86_64-pc-linux-gnu', 'x86_64'),
        ('m68k-linux-gnu', platform.machine()),
        ('', platform.machine()),
    ),
)
def test_the_machine_that_a_compiler_compiles_for(tmp_path, says, machine):
    compiler = tmp_path / 'c++'
    compiler.write_text(f'#!/bin/sh\necho {says}\n')
    compiler.chmod(0o755)
    assert toolchain.machine_of(str(compiler)) == machine


def test_the_libraries_of_a_wheel_by_hand(monkeypatch, tmp_path, capsys):
    made = []
    monkeypatch.setattr(toolchain, 'make', lambda *args: made.append(args[2:]))
    monkeypatch.setattr(toolchain, 'compiler', lambda: 'cross-c++')
    monkeypatch.setattr(toolchain, 'machine_of', lambda cxx: 'aarch64')
    toolchain.main([str(tmp_path)])
    library = tmp_path / 'kernels-armv8-a.so'
    assert made == [(library, ['-march=armv8-a'], ['-static-libstdc++', '-static-libgcc'])]
    assert capsys.readouterr().out == f'{library}\n'
    monkeypatch.setattr(toolchain, 'compiler', lambda: None)
    with pytest.raises(SystemExit, match='2'):
        toolchain.main([str(tmp_path)])
    assert 'no compiler called' in capsys.readouterr().err


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """The library is looked for anew, in an empty cache; who compiles is an error."""

    def compile_(*args):
        raise RuntimeError('a compiler was asked')

    build.library()  # with the compiler, unless it is there
    monkeypatch.setattr(toolchain, 'make', compile_)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for name in ('CXX', 'CXXFLAGS'):
        monkeypatch.delenv(name, raising=False)
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


def compiled():
    """The library's file in the cache, be it made now."""
    return build._build(toolchain.sources())


@needs_kernels
def test_a_library_that_a_wheel_brought(afresh, monkeypatch):
    monkeypatch.undo()
    there = compiled()
    monkeypatch.setenv('XDG_CACHE_HOME', str(afresh / 'cache'))
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    level = toolchain.level(toolchain.cpuinfo(), os.uname().machine)
    if level is None:
        pytest.skip('no wheel has kernels for this processor')
    monkeypatch.setattr(toolchain, 'shipped', lambda name: there if name == level else Path('no'))
    build.library.cache_clear()
    assert build.library() and build.in_use() == level
    assert not (afresh / 'cache').exists()
    # Who names a compiler or options wants that compiler's.
    monkeypatch.setenv('CXXFLAGS', '-Og')
    build.library.cache_clear()
    with pytest.warns(UserWarning, match='no compiler called c\\+\\+ or g\\+\\+'):
        assert build.library() is None


def test_a_compiler_that_fails_is_told(afresh):
    with pytest.warns(UserWarning, match='a compiler was asked'):
        assert build.library() is None


def _build(rank, said, variables):
    os.dup2(os.open(f'{said}_{rank}', os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(variables)
    warnings.simplefilter('error')
    assert build.library() is not None


# Takes a second for a file, and gives a library that is there already.
_COMPILER = """#!/bin/sh
for last; do :; done
case "$*" in
    *--version*) echo slow 1.0 ;;
    *-shared*) cp {library} "$last" ;;
    *) echo "$last" >>{log}; sleep 1; : >"$last" ;;
esac
"""


@needs_kernels
def test_one_process_compiles_and_the_others_wait(tmp_path):
    """Each says what it does and loads a whole file, and nothing else is left behind."""
    compiler, log = tmp_path / 'slow-c++', tmp_path / 'log'
    compiler.write_text(_COMPILER.format(library=compiled(), log=log))
    compiler.chmod(0o755)
    cache = tmp_path / 'cache'
    variables = dict(XDG_CACHE_HOME=str(cache), CXX=str(compiler))
    forked.processes(_build, tmp_path / 'said', variables)
    said = [(tmp_path / f'said_{rank}').read_text() for rank in range(2)]
    assert len(log.read_text().split()) == len(toolchain.sources()), 'compiled twice'
    assert sum('compiling the CPU kernels with' in text for text in said) == 1
    assert sum('once on this machine' in text for text in said) == 1
    # The other waited, or came late.
    assert all('waiting for it' in text or 'compiling' in text or not text for text in said)
    assert [path.suffix for path in (cache / 'mmattn').iterdir()] == ['.so']


def test_who_waits_says_so(tmp_path, capsys):
    other, entered = os.open(tmp_path, os.O_RDONLY), []
    fcntl.flock(other, fcntl.LOCK_EX)

    def wait():
        with build._alone(tmp_path):
            entered.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    said, until = '', time.monotonic() + 60
    while not said and time.monotonic() < until:
        time.sleep(0.02)
        said = capsys.readouterr().err
    assert 'another process compiles the CPU kernels; waiting for it' in said and not entered
    os.close(other)
    waiting.join(60)
    assert entered


def test_the_backend_asks_this_library():
    assert native.library is build.library
