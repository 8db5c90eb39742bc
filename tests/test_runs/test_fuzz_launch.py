"""What a cluster or a user may say in the environment: numbers that are none end in one line."""

import contextlib
import io
import os
import runpy
import subprocess
from pathlib import Path

import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from mmattn.runs import launch

TOOLS = Path(__file__).parents[2] / 'tools'
NAMES = ('NNODES', 'NODE_RANK', 'PORT', 'MASTER_PORT', 'RESTARTS', 'MASTER_ADDR')
WORDS = st.one_of(
    st.sampled_from(('', ' ', '0', '1', '2', '-1', '1.5', '1e3', '0x10', '٣', '²', '1 ', '+1')),
    st.sampled_from(('1_0', '70000', '65535', '9' * 5000, 'nan', 'x;y', '\x1b[2J', 'a\nb')),
    st.integers().map(str),
    st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs']), max_size=5),
)


@cases(300)
@given(st.dictionaries(st.sampled_from(NAMES), WORDS), WORDS)
def test_launch(variables, count):
    """The numbers are read and checked; nothing is started here."""
    started, err = [], io.StringIO()

    class Agent:
        @staticmethod
        def run(*args):
            started.append(args)
            return 0

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(launch.sys, 'argv', ['launch.py', count, 'train.py'])
        patch.setitem(launch.sys.modules, 'agent', Agent)
        with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            launch.main()
    if started:
        _, processes, nodes, node_rank, _, port, restarts = started[0]
        assert ended.value.code == 0 and not err.getvalue()
        assert processes >= 1 and 0 <= node_rank < nodes and 0 < port < 65536 and restarts >= 0
    else:
        assert ended.value.code == 2
        assert err.getvalue().startswith('error: ') and err.getvalue().count('\n') == 1
        assert '\x1b' not in err.getvalue() and len(err.getvalue()) < 1000


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_test.sh'])
@pytest.mark.parametrize('value', ['', 'x', '-1', '8 9', 'a[$(touch trace)]'])
@pytest.mark.parametrize('name', ['GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK'])
def test_slurm(tmp_path, script, value, name):
    """What is no number is said before anything is started, and is run nowhere."""
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    environment = {key: word for key, word in os.environ.items() if not key.startswith('GPUS')}
    environment.update({name: value, 'PATH': f'{srun.parent}:{os.environ["PATH"]}'})
    ran = subprocess.run(
        ['bash', TOOLS / script, 'part', 'job', 'config', 'work'],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert os.listdir(tmp_path) == ['bin']
    if value:
        assert ran.returncode == 2 and ran.stdout == ''
        assert ran.stderr.startswith(f'error: {name} must be ') and ran.stderr.count('\n') == 1
    else:
        assert ran.returncode == 0, ran.stderr  # as if it were not set


RANKS = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'MMATTN_ATTEMPT')
RANKS += ('OMPI_COMM_WORLD_RANK',)


@pytest.mark.parametrize('name', RANKS)
def test_ranks_that_are_no_numbers(name, tmp_path, monkeypatch, capfd):
    """What a launcher of another kind may have left."""
    from mmattn.runs import endings

    def leave(code):
        raise SystemExit(code)

    for other in RANKS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, 'x')
    monkeypatch.setattr(endings, 'leave', leave)
    monkeypatch.setattr('sys.argv', ['train.py', 'nothing.py', '--work-dir', str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')
    err = capfd.readouterr().err
    assert ended.value.code == 2
    assert [line for line in err.splitlines() if line.startswith('error: ')]
    assert 'Traceback' not in err
