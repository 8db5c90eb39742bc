"""The part of packaging that is code; the rest is in pyproject.toml.

`mim` looks for configs, tools and the model index in `<package>/.mim`: a wheel gets copies, an
editable install symbolic links, so that edited configs are the ones mim sees.
"""

import shutil
from pathlib import Path

from setuptools import __version__, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')


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


# Reached with --no-build-isolation alone. An older one fails too, but does not say why.
if int(__version__.partition('.')[0]) < 77:
    raise SystemExit(
        f'mmattn is built by setuptools 77 or later, this environment has {__version__}: '
        'install without --no-build-isolation, or first: pip install -U "setuptools>=77,<81"'
    )

setup(cmdclass={'build_py': BuildWithMim})
