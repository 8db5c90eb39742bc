import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like the checkout: what commands write does not reach the real one."""
    for path in ROOT.iterdir():
        if path.name not in ('work_dirs', 'data', 'build') and not path.name.startswith('.'):
            (tmp_path / path.name).symlink_to(path)
    # Where tools/leaderboard.py looks for runs: none yet.
    (tmp_path / 'work_dirs' / 'reproduce').mkdir(parents=True)
    return tmp_path


@pytest.fixture
def environment(checkout):
    """The variables for commands in `checkout`, where `python` is the Python of this test."""
    programs = checkout / '.programs'
    programs.mkdir()
    (programs / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore "$@"\n')
    (programs / 'python').chmod(0o755)
    return {
        **os.environ,
        'PATH': f'{programs}:{os.environ["PATH"]}',
        'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.getenv('PYTHONPATH')])]),
        'OMP_NUM_THREADS': '1',
    }
