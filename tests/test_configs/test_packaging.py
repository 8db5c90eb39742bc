"""A wheel, installed into an empty folder, brings configs, tools and kernel sources along.

And nothing else that would replace what the user has: see `pyproject.toml`.
"""

import contextlib
import email
import importlib.metadata
import os
import platform
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mmattn
from mmattn.ops.native import toolchain

ROOT = Path(__file__).parents[2]

# What an extra brings, and what none may bring: that is the user's.
EXTRAS = {
    'mmpretrain': ('einops', 'importlib_metadata', 'mat4py', 'matplotlib', 'modelindex', 'rich'),
    'mmdet': ('matplotlib', 'pycocotools', 'scipy', 'shapely', 'six', 'terminaltables', 'tqdm'),
    'mmseg': ('ftfy', 'matplotlib', 'packaging', 'prettytable', 'regex', 'scipy'),
    'reproduce': ('jinja2', 'rich', 'scipy', 'submitit'),
    'docs': ('furo', 'myst-parser', 'sphinx'),
}
CROSS = 'aarch64-linux-gnu-g++'
CODEBASES = ('mmengine', 'mmcv', 'mmdetection', 'mmpretrain', 'mmsegmentation')
THEIRS = {'torch', 'torchvision', 'mmcv-lite', 'mmcv-full', 'mmdet', 'triton'}
THEIRS |= {*CODEBASES, *(f'onedl-{name}' for name in CODEBASES)}

setuptools = pytest.importorskip('setuptools', minversion='77')


def pip(*args, **environment):
    # Without kernels, unless asked for: a level takes a compiler half a minute.
    return subprocess.run(
        [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check', *map(str, args)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, 'MMATTN_NATIVE': '0', **environment},
    )


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    # Built from a copy: a build leaves its folders in the source tree.
    folder = tmp_path_factory.mktemp('package')
    source = folder / 'source'
    ignore = shutil.ignore_patterns(
        '.*', '__pycache__', 'build', '*.egg-info', 'data', 'work_dirs', 'tests'
    )
    shutil.copytree(ROOT, source, ignore=ignore)
    pip('wheel', source, '--no-deps', '--no-build-isolation', '-w', folder)
    (wheel,) = folder.glob('mmattn-*.whl')
    pip('install', wheel, '--no-deps', '--no-compile', '--target', folder / 'site')
    return wheel, folder / 'site'


def test_the_wheel_is_whole(installed):
    wheel, site = installed
    package = site / 'mmattn'
    for folder in ('configs', 'tools'):
        there = {
            path.relative_to(package / '.mim')
            for path in (package / '.mim' / folder).rglob('*')
            if path.is_file()
        }
        wanted = {
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }
        assert there == wanted
    assert (package / '.mim' / 'model-index.yml').is_file()
    sources = {path.name for path in (ROOT / 'mmattn' / 'ops' / 'native').glob('*.cpp')}
    assert sources and sources == {p.name for p in (package / 'ops' / 'native').glob('*.cpp')}
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(('tests', 'configs', 'tools'))]


def test_a_wheel_without_kernels_is_for_every_machine(installed):
    wheel, site = installed
    assert wheel.name.endswith('-py3-none-any.whl')
    assert not (site / 'mmattn' / 'ops' / 'native' / 'lib').exists()


WITHOUT_A_COMPILER = """
import torch
import mmattn
from mmattn.ops.native import build
assert mmattn.__file__.startswith(SITE)
assert build.compiler() is None
gate = mmattn.CAT(8).double()
x = torch.randn(2, 8, 6, 5, dtype=torch.float64, requires_grad=True)
y = gate(x)
assert 'cat' in type(y.grad_fn).__name__, y.grad_fn
gate.impl = 'reference'
torch.testing.assert_close(y, gate(x))
print(build.in_use())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    toolchain.compiler() is None or platform.machine() not in toolchain.LEVELS,
    reason='no C++ compiler for the CPU kernels of a wheel',
)
def test_a_wheel_with_kernels(installed, tmp_path):
    """One for each level of processors, which a machine without a compiler then has."""
    source = installed[0].parent / 'source'
    options = '--no-deps', '--no-build-isolation', '-w', tmp_path
    pip('wheel', source, *options, MMATTN_NATIVE='1', CXXFLAGS='-O0')
    (wheel,) = tmp_path.glob('mmattn-*.whl')
    assert wheel.name.endswith(f'-py3-none-linux_{platform.machine()}.whl')
    site = tmp_path / 'site'
    pip('install', wheel, '--no-deps', '--no-compile', '--target', site)
    libraries = {p.name for p in (site / 'mmattn' / 'ops' / 'native' / 'lib').iterdir()}
    levels = toolchain.levels(platform.machine())
    assert libraries == {toolchain.shipped(level).name for level in levels}
    level = toolchain.level(toolchain.cpuinfo(), platform.machine())
    if level is None:
        pytest.skip('no wheel has kernels for this processor')
    env = {k: v for k, v in os.environ.items() if k not in ('CXX', 'CXXFLAGS', 'MMATTN_NATIVE')}
    env |= dict(PATH='', PYTHONPATH=str(site), XDG_CACHE_HOME=str(tmp_path / 'cache'))
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_A_COMPILER.replace('SITE', repr(str(site)))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [level]
    assert not (tmp_path / 'cache' / 'mmattn').exists(), 'something was compiled'


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(CROSS) is None, reason=f'no {CROSS} (Debian: g++-aarch64-linux-gnu)'
)
def test_a_wheel_of_another_machine(installed, tmp_path):
    source = installed[0].parent / 'source'
    options = '--no-deps', '--no-build-isolation', '-w', tmp_path
    pip('wheel', source, *options, MMATTN_NATIVE='1', CXXFLAGS='-O0', CXX=CROSS)
    (wheel,) = tmp_path.glob('mmattn-*.whl')
    assert wheel.name.endswith('-py3-none-linux_aarch64.whl')
    with zipfile.ZipFile(wheel) as files:
        (library,) = (name for name in files.namelist() if name.endswith('.so'))
        assert library == 'mmattn/ops/native/lib/kernels-armv8-a.so'
        assert files.read(library)[18:20] == b'\xb7\x00'  # EM_AARCH64


def test_a_compiler_that_fails_fails_the_wheel(installed, tmp_path):
    """It is not left out without a word."""
    with pytest.raises(RuntimeError, match='/false failed: exit status 1'):
        toolchain.make(shutil.which('false'), toolchain.sources()[:1], tmp_path / 'a.so', [])
    assert not list(tmp_path.iterdir())


def metadata(site):
    (path,) = site.glob('mmattn-*.dist-info/METADATA')
    return email.message_from_string(path.read_text(encoding='utf-8'))


def test_metadata(installed):
    _, site = installed
    found = metadata(site)
    assert found['Version'] == mmattn.__version__
    assert found['License-Expression'] == 'Apache-2.0' and found['License-File'] == 'LICENSE'
    assert found['Requires-Python'] == '>=3.10'
    assert found['Description-Content-Type'] == 'text/markdown'
    assert found.get_payload().startswith('# mmattn')
    assert 'Typing :: Typed' in found.get_all('Classifier')
    assert (site / 'mmattn' / 'py.typed').is_file()


def test_an_install_replaces_nothing(installed):
    """Without an extra nothing is asked for; with one, things that leave versions open."""
    _, site = installed
    found = metadata(site)
    extras = set(found.get_all('Provides-Extra'))
    assert extras == {'all', *EXTRAS}
    asked = [Requirement(text) for text in found.get_all('Requires-Dist')]
    for requirement in asked:
        assert requirement.marker is not None and not requirement.marker.evaluate({'extra': ''})
        assert any(requirement.marker.evaluate({'extra': extra}) for extra in extras)
        # With a bound, pip would replace an installed one that is outside.
        assert not requirement.specifier and requirement.url is None
    (itself,) = [requirement for requirement in asked if requirement.name == 'mmattn']
    assert itself.extras == set(EXTRAS) - {'docs'}  # all that the tools need
    assert {r.name for r in asked} == {name for names in EXTRAS.values() for name in names} | {
        'mmattn'
    }


def test_public_names():
    assert set(mmattn.__all__) == {*mmattn.attention.__all__, 'plug', 'unplug', '__version__'}
    for name in mmattn.attention.__all__:
        assert getattr(mmattn, name) is getattr(mmattn.attention, name)


def needs(name, seen):
    """What an installed distribution asks for, and so on; its own extras are not asked for."""
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
            needed = canonicalize_name(requirement.name)
            if needed not in seen:
                seen.add(needed)
                # What is not installed is not needed here (or broken, which pip would say).
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    needs(needed, seen)
    return seen


@pytest.mark.parametrize('name', sorted({name for names in EXTRAS.values() for name in names}))
def test_an_extra_asks_for_nobodys_torch(name):
    """Whatever an extra brings, and what that brings: as the installed ones' metadata say."""
    try:
        found = needs(name, {canonicalize_name(name)})
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f'{name} is not installed')
    assert not found & THEIRS


@pytest.mark.parametrize('name, needed', [('torchvision', 'torch'), ('timm', 'torchvision')])
def test_that_check_can_fail(name, needed):
    pytest.importorskip(name)
    assert needed in needs(name, set()) & THEIRS


def test_the_source_distribution_is_whole(installed, tmp_path):
    """A wheel made of it is the wheel made of the tree, and what contributors need is there."""
    wheel, _ = installed
    source = wheel.parent / 'source'
    build = 'import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))'
    subprocess.run(
        [sys.executable, '-c', build, tmp_path], cwd=source, check=True, capture_output=True
    )
    (archive,) = tmp_path.glob('mmattn-*.tar.gz')
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    for name in ('CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'requirements/tests.txt'):
        assert (unpacked / name).is_file(), name
    pip('wheel', unpacked, '--no-deps', '--no-build-isolation', '-w', tmp_path)
    (again,) = tmp_path.glob('mmattn-*.whl')
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_it_works_from_an_empty_folder(installed, tmp_path):
    _, site = installed
    code = """
import mmattn, pathlib
from mmengine.config import Config
from mmattn import papers
assert pathlib.Path(mmattn.__file__).is_relative_to(SITE), mmattn.__file__
assert papers.config_root().is_relative_to(SITE)
assert len(papers.entries()) == 162
cfg = Config.fromfile(papers.config_root() / 'cat' / 'resnet50-cat-r16_8xb32_in1k.py')
print(cfg.model.backbone.plugins[0].cfg.type)
""".replace('SITE', repr(str(site)))
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'CAT'


def test_a_setuptools_that_is_too_old(monkeypatch):
    monkeypatch.setattr(setuptools, '__version__', '65.5.0')
    wanted = 'mmattn is built by setuptools 77 or later, this environment has 65.5.0: '
    with pytest.raises(SystemExit, match=wanted):
        runpy.run_path(str(ROOT / 'setup.py'))
    assert "requires = ['setuptools>=77']" in (ROOT / 'pyproject.toml').read_text()
