"""A wheel, installed into an empty folder, brings configs, tools and kernel sources along."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip('setuptools')
pytest.importorskip('wheel')


def pip(*args):
    return subprocess.run(
        [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check', *map(str, args)],
        check=True,
        capture_output=True,
        text=True,
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


def test_an_install_replaces_nothing(installed):
    _, site = installed
    (metadata,) = site.glob('mmattn-*.dist-info/METADATA')
    assert 'Requires-Dist' not in metadata.read_text()


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
