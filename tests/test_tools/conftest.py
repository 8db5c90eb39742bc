import logging
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.visualization import Visualizer

from mmattn.datasets import digits
from mmattn.runs import checkpoint, endings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def digits_root(tmp_path_factory):
    """A folder with data/digits in it, a dozen images a task, where the quickstart configs run."""
    root = tmp_path_factory.mktemp('runs')
    for task in digits.TASKS:
        digits.make(root / 'data' / 'digits', task, num=12, num_val=4, size=96)
    return root


@pytest.fixture
def workspace(digits_root, monkeypatch):
    monkeypatch.chdir(digits_root)
    return digits_root


def forget_visualizers(cls):
    """mmengine keeps one by name for the life of a process, be it another codebase's."""
    cls._instance_dict.clear()
    for child in cls.__subclasses__():
        forget_visualizers(child)


@pytest.fixture
def run_tool(workspace, monkeypatch):
    """Runs a tool in this process: `run_tool('train', CONFIG, ...)`; SystemExit has its code."""

    def exit_with(code):
        raise SystemExit(code)

    def run(tool, *args):
        forget_visualizers(Visualizer)
        with monkeypatch.context() as patch:
            patch.setattr(endings, 'leave', exit_with)
            # Loggers of earlier tests write to what those tests had for standard error.
            patch.setattr(logging, 'raiseExceptions', False)
            patch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
            patch.delenv('LOCAL_RANK', raising=False)
            runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the subprocesses that results are compared with
    yield run
    torch.set_num_threads(threads)
    checkpoint.install(trust=False)  # --trust-checkpoint is one command's, here one process's


@pytest.fixture
def error_of(run_tool, capsys):
    """The one line with which a tool ends."""

    def run(tool, *args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_tool(tool, *args)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
        assert ended.value.code == 2
        assert len(lines) == 1
        return lines[0]

    return run
