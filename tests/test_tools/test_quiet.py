"""The tools say nothing that is not the user's, and let through what is."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from mmengine.logging import MMLogger, print_log

from mmattn import quiet

ROOT = Path(__file__).parents[2]
NOISE = ('Warning', 'Could not import', 'faster_coco_eval', 'deprecat')


def ran(command, cwd, *folders):
    """A command that has ended."""
    path = os.pathsep.join(map(str, (*folders, ROOT, *os.environ.get('PYTHONPATH', '').split(':'))))
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def said_by(command, cwd, *folders):
    """Everything that a command prints."""
    done = ran(command, cwd, *folders)
    return done.stdout + done.stderr


# PyTorch's list of its compiler's options; what mmattn says where there is no compiler.
HEARD = ('Build settings: ', 'mmattn runs its reference ops on the CPU')


def noise(text):
    """The lines with one of the words, but for those that are to be heard."""
    lines = [line for line in text.splitlines() if not any(words in line for words in HEARD)]
    return [line for line in lines if any(word in line for word in NOISE)]


def test_train_and_test(workspace, tmp_path):
    """With a data worker that is not forked, and a warning of the user's own."""
    (tmp_path / 'mine.py').write_text(
        'import warnings\n'
        'from mmengine.logging import print_log\n'
        "warnings.warn('a fault of mine', UserWarning)\n"
        "print_log('a line of mine')\n"
    )
    config = tmp_path / 'config.py'
    base = ROOT / 'configs' / 'quickstart' / 'fcn_r18-d8-drtam-pool_digits-voc.py'
    config.write_text(
        f"_base_ = '{base}'\n"
        "custom_imports = dict(imports=['mmattn', 'mine'])\n"
        'train_dataloader = dict(\n'
        "    batch_size=3, num_workers=1, multiprocessing_context='spawn')\n"
        'val_dataloader = test_dataloader = dict(num_workers=0)\n'
        'train_cfg = dict(max_iters=2)\n'
        'param_scheduler = dict(total_steps=2)\n'
    )
    work = ['--work-dir', tmp_path / 'work']
    trained = said_by([ROOT / 'tools' / 'train.py', config, *work], workspace, tmp_path)
    assert [line for line in noise(trained) if 'a fault of mine' not in line] == []
    assert 'UserWarning: a fault of mine' in trained
    assert 'a line of mine' in trained
    config.write_text(config.read_text().replace(", 'mine'", ''))
    checkpoint = tmp_path / 'work' / 'iter_2.pth'
    assert not noise(said_by([ROOT / 'tools' / 'test.py', config, checkpoint, *work], workspace))


@pytest.mark.parametrize(
    'command',
    [
        ('analysis_tools/benchmark.py', 'modules', '--shapes', '1x8x7x7', '--rounds', '1'),
        ('check_configs.py', 'cat/faster-rcnn_r50-cat_fpn_4xb2-18k_voc12.py'),
    ],
    ids=lambda command: Path(command[0]).stem,
)
def test_tool(command):
    text = said_by([ROOT / 'tools' / command[0], *command[1:]], ROOT)
    assert text.strip()
    # Said of this config, once: what stands in a frozen stage does not learn.
    assert [line for line in noise(text) if 'stay as they were drawn' not in line] == []
    assert text.count('stay as they were drawn') == (command[0] == 'check_configs.py')


def test_standard_output_is_the_result_alone():
    tool = ROOT / 'tools' / 'analysis_tools' / 'complexity.py'
    config = ROOT / 'configs' / 'drtam' / 'mobilenet-v2-drtam-r32_4xb64_in1k.py'
    done = ran([tool, config, '--format', 'json'], ROOT)
    assert json.loads(done.stdout)['params'] > 3504872  # of the network without
    assert not noise(done.stderr)


def test_import_says_and_changes_nothing():
    code = """
import sys, warnings
import mmengine.logging.logger
logger = vars(sys.modules['mmengine.logging.logger'])
before = warnings.filters[:]
import mmattn
assert 'print' not in logger
assert [rule for rule in warnings.filters if 'mm' in str(rule)] == [
    rule for rule in before if 'mm' in str(rule)]
"""
    assert said_by(['-c', code], ROOT) == ''


@pytest.fixture
def installed(monkeypatch):
    """`quiet.install` until the end of the test."""
    monkeypatch.setattr(MMLogger, 'filter', MMLogger.filter)
    monkeypatch.setitem(vars(sys.modules['mmengine.logging.logger']), 'print', print)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        quiet.install()
        yield said


@pytest.mark.parametrize('path, heard', [('site/mmdet/models/x.py', False), ('mine/x.py', True)])
def test_syntax_of_others(installed, path, heard):
    """Python 3.12 and later warn while they compile; before, no user saw it."""
    warnings.warn_explicit("invalid escape sequence '\\d'", SyntaxWarning, path, 1)
    assert bool(installed) == heard


def test_install_hears_the_rest(installed, capsys):
    log = MMLogger('test_quiet', log_level='INFO')
    log.warning('"FileClient" will be deprecated in future. Please use io functions')
    log.warning('"file_client_args" will be deprecated in future.')  # which a config may say
    print_log('Could not import OneDL. Skipping OneDL datasets.')
    print_log('Could not import OneDL, nor anything else')
    said = capsys.readouterr()
    text = said.out + said.err
    assert 'FileClient' not in text and 'Skipping OneDL' not in text
    assert 'file_client_args' in text and 'nor anything else' in text
