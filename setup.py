"""Packaging. `mim` looks for configs, tools and the model index in `<package>/.mim`: a wheel gets
copies, an editable install symbolic links, so that edited configs are the ones mim sees."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
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


def version():
    scope = {}
    exec((ROOT / 'mmattn' / 'version.py').read_text(), scope)
    return scope['__version__']


setup(
    name='mmattn',
    version=version(),
    description='Attention plugins (CAT, DRTAM and those they are compared with) for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    # None on purpose: torch, mmcv and the codebases come in several distributions and builds
    # (CUDA versions, OpenMMLab or OneDL), and an install must never replace the user's.
    install_requires=[],
    packages=find_packages(include=['mmattn', 'mmattn.*']),
    package_data={'mmattn.ops.native': ['*.cpp', '*.h']},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
