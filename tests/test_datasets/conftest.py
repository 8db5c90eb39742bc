import gc
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import official
import pytest

from mmattn.datasets.prepare import counts

PAPERS = dict(counts.PAPERS)


@pytest.fixture(autouse=True)
def quick_calls(monkeypatch):
    """os.sync waits for all disks; mmengine collects garbage with each data set."""
    monkeypatch.setattr(os, 'sync', lambda: None)
    monkeypatch.setattr(gc, 'collect', lambda *args: 0)


@pytest.fixture(scope='session')
def published(tmp_path_factory):
    """`downloads`, the archives, and `trees`, what they were made of; not to be changed."""
    folder = tmp_path_factory.mktemp('official')
    official.make(folder)
    return folder


@pytest.fixture
def downloads(published, tmp_path):
    """Archives of one test's own, to plant faults in."""
    shutil.copytree(published / 'downloads', tmp_path / 'downloads')
    return tmp_path / 'downloads'


@pytest.fixture
def unprivileged():
    """A folder where this process, be it root's, has only the rights that modes give."""
    folder = Path(tempfile.mkdtemp())
    before = os.geteuid()
    os.chmod(folder, 0o777)
    if before == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(before)
    for path in (folder, *folder.rglob('*')):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture
def papers_numbers():
    """As they are outside of the tests."""
    return PAPERS


@pytest.fixture(autouse=True)
def small_papers(monkeypatch):
    """Papers that use what the tests' archives hold."""
    numbers = {}
    for name, splits in official.SPLITS.items():
        numbers.update(zip(splits, official.COUNTS[name], strict=True))
    assert numbers.keys() == counts.PAPERS.keys()
    monkeypatch.setattr(counts, 'PAPERS', numbers)


@pytest.fixture
def tool(request, monkeypatch, capsys):
    """Runs the test file's TOOL in this process: exit code, standard output, standard error."""

    def call(*args):
        path = request.module.TOOL
        monkeypatch.setattr(sys, 'argv', [path.name, *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name='__main__')
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call
