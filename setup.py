"""The part of packaging that is code; the rest is in pyproject.toml.

`mim` looks for configs, tools and the model index in `<package>/.mim`: a wheel gets copies, an
editable install symbolic links, so that edited configs are the ones mim sees.

A wheel also gets the CPU kernels, compiled for each level of this machine's kind of processor
(`mmattn/ops/native/toolchain.py`), or of the one that a cross compiler in `CXX` compiles for;
without a compiler, or with `MMATTN_NATIVE=0`, it does not, and is one for every machine. They are
no extension module: one wheel serves every Python and torch.
"""

import os
import platform
import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, __version__, setup
from setuptools.command.build_py import build_py

# Reached with --no-build-isolation alone. An older one fails too, but does not say why.
if int(__version__.partition('.')[0]) < 77:
    raise SystemExit(
        f'mmattn is built by setuptools 77 or later, this environment has {__version__}: '
        'install without --no-build-isolation, or first: pip install -U "setuptools>=77,<81"'
    )
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402  (which older ones have not)

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')
NATIVE = 'mmattn/ops/native'
toolchain = runpy.run_path(str(ROOT / NATIVE / 'toolchain.py'))
CXX = None if os.environ.get('MMATTN_NATIVE') == '0' else toolchain['compiler']()
MACHINE = platform.machine() if CXX is None else toolchain['machine_of'](CXX)
LEVELS = [] if CXX is None else toolchain['levels'](MACHINE)


class BuildWithMim(build_py):
    def run(self):
        super().run()
        in_tree = ROOT / 'mmattn' / '.mim'
        target = in_tree if self.editable_mode else Path(self.build_lib) / 'mmattn' / '.mim'
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for name in MIM:
            source = ROOT / name
            if self.editable_mode:
                (target / name).symlink_to(source)
            elif source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target / name)
        if LEVELS and not self.editable_mode:
            print(f'compiling the CPU kernels for {", ".join(LEVELS)}', flush=True)
            folder = Path(self.build_lib) / NATIVE / 'lib'
            for of_another_machine in folder.glob('kernels-*.so'):  # an earlier build's
                of_another_machine.unlink()
            toolchain['ship'](folder)


class Compiled(Distribution):
    def has_ext_modules(self):
        return bool(LEVELS)


class WheelOfAnyPython(bdist_wheel):
    def get_tag(self):
        return 'py3', 'none', super().get_tag()[2].replace(platform.machine(), MACHINE)


setup(
    distclass=Compiled,
    cmdclass={'build_py': BuildWithMim, 'bdist_wheel': WheelOfAnyPython},
)
