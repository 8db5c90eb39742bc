"""The CPU kernels for a kind of processor that this machine has not, compiled here as for a wheel
and run by an emulator: every call that operators make leaves what it leaves here."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import recorded_calls
from needs import needs_kernels

from mmattn.ops.native import build, toolchain

pytestmark = [pytest.mark.slow, needs_kernels]
REPLAY = Path(__file__).with_name('replay.cpp')
COMPILER, EMULATOR = 'aarch64-linux-gnu-g++', 'qemu-aarch64'
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """Calls, and the folder where they are."""
    folder = tmp_path_factory.mktemp('recorded')
    found = recorded_calls.record()
    found.write(folder)
    return found, folder


def replay(compiler, emulator, library, folder, target):
    """What calls left of their memory on the compiler's machine."""
    program = target / 'replay'
    said = subprocess.run(
        [compiler, '-std=c++17', '-O1', REPLAY, '-ldl', '-o', program],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    files = library, folder / 'calls', folder / 'memory', target / 'result'
    said = subprocess.run([*emulator, program, *files], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return (target / 'result').read_bytes()


def test_every_function_is_called(recording):
    functions = {name for name, _, _ in recording[0].regions}
    assert functions == build.library().keys()


@pytest.mark.skipif(platform.machine() not in toolchain.LEVELS, reason='calls as on other machines')
def test_this_processor_does_the_same_again(recording, tmp_path):
    """To the bit: what is compared below are processors."""
    found, folder = recording
    library = build._build(toolchain.sources())
    result = replay(build.compiler(), [], library, folder, tmp_path)
    for _, offset, values in found.regions:
        size = values.numel() * values.element_size()
        assert result[offset : offset + size] == recorded_calls._bytes(values)
    # And a difference is seen.
    spoiled = bytearray(result)
    spoiled[found.regions[0].offset + 3] ^= 64
    assert len(found.compare(spoiled)) == 1


@pytest.mark.skipif(
    bool(MISSING),
    reason=f'no {" or ".join(MISSING)} (Debian: g++-aarch64-linux-gnu, qemu-user)',
)
def test_aarch64(recording, tmp_path):
    command = [sys.executable, toolchain.__file__, tmp_path]
    env = dict(os.environ, CXX=COMPILER)
    said = subprocess.run(command, env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    (library,) = said.stdout.split()
    assert Path(library).name == toolchain.shipped('armv8-a').name
    found, folder = recording
    result = replay(COMPILER, [EMULATOR, '-L', sysroot()], library, folder, tmp_path)
    assert not (problems := found.compare(result)), problems[:10]


def sysroot():
    """Where the cross compiler's libraries are."""
    told = subprocess.run([COMPILER, '-print-file-name=libc.so.6'], capture_output=True, text=True)
    return Path(told.stdout.strip()).resolve().parents[1]
