"""The tools say nothing that is not the user's, and let through what is."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from mmengine.logging import MMLogger, print_log

from mmattn import quiet

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / 'configs' / 'quickstart'
NOISE = ('Warning', 'Could not import', 'faster_coco_eval', 'deprecat')


def said_by(command, cwd, *folders):
    """Everything that a command prints, but PyTorch's list of its compiler's options."""
    path = os.pathsep.join(map(str, (*folders, ROOT, *os.environ.get('PYTHONPATH', '').split(':'))))
    ran = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout
    return '\n'.join(line for line in ran.stdout.splitlines() if 'Build settings: ' not in line)


def noise(text):
    return [line for line in text.splitlines() if any(word in line for word in NOISE)]


def make_digits(root, *tasks):
    size = ['--num', '6', '--num-val', '2', '--size', '64', '--task', *tasks]
    return said_by([ROOT / 'tools' / 'dataset_converters' / 'make_digits.py', *size], root)


def train_and_test(root, config, checkpoint, *options):
    """A training with a data worker of its own that is not forked, and a test."""
    common = [
        '--work-dir', 'work', '--cfg-options', 'train_dataloader.batch_size=3',
        'train_dataloader.num_workers=1', 'train_dataloader.multiprocessing_context=spawn',
    ]  # fmt: skip
    tool = ROOT / 'tools'
    trained = said_by([tool / 'train.py', QUICKSTART / config, *common, *options], root, root)
    tested = said_by([tool / 'test.py', QUICKSTART / config, f'work/{checkpoint}', *common], root)
    return trained, tested


def test_segmentation(tmp_path):
    """And a warning of the user's own, in the process and in its worker."""
    (tmp_path / 'mine.py').write_text(
        'import warnings\n'
        'from mmengine.logging import print_log\n'
        "warnings.warn('a fault of mine', UserWarning)\n"
        "print_log('a line of mine')\n"
    )
    assert not noise(make_digits(tmp_path, 'vocseg'))
    mine = "custom_imports.imports=['mmattn','mine']"
    steps = ('train_cfg.max_iters=2', 'param_scheduler.total_steps=2')
    trained, tested = train_and_test(
        tmp_path, 'fcn_r18-d8-drtam-pool_digits-voc.py', 'iter_2.pth', mine, *steps
    )
    assert [line for line in noise(trained) if 'a fault of mine' not in line] == []
    assert 'UserWarning: a fault of mine' in trained
    assert 'a line of mine' in trained
    assert not noise(tested)


def test_detection(tmp_path):
    make_digits(tmp_path, 'coco')
    steps = ('train_cfg.max_epochs=1', 'param_scheduler.total_steps=1')
    for text in train_and_test(
        tmp_path, 'retinanet_r18-cat_fpn_digits-coco.py', 'epoch_1.pth', *steps
    ):
        assert not noise(text)


@pytest.mark.parametrize(
    'command',
    [
        ('analysis_tools/complexity.py', 'configs/drtam/resnet50-drtam-r32_4xb128_in1k.py'),
        ('analysis_tools/benchmark.py', 'modules', '--shapes', '1x8x7x7', '--rounds', '1'),
        ('check_configs.py', 'cat/faster-rcnn_r50-cat_fpn_4xb2-18k_voc12.py'),
    ],
    ids=lambda command: Path(command[0]).stem,
)
def test_tool(command):
    text = said_by([ROOT / 'tools' / command[0], *command[1:]], ROOT)
    assert text.strip()
    assert not noise(text)


def test_import_restores(capsys):
    """After `import mmattn` a user's program is as noisy as it was."""
    logger = sys.modules['mmengine.logging.logger']
    before = vars(logger).get('print'), list(warnings.filters)
    with quiet.imports():
        print_log('Could not import OneDL')
        print_log('something else')
        warnings.filterwarnings('ignore', 'set meanwhile')
        assert len(warnings.filters) > len(before[1])
    assert (vars(logger).get('print'), warnings.filters[1:]) == before
    warnings.filters.pop(0)
    assert capsys.readouterr().out == 'something else\n'


def test_install_hears_the_rest(monkeypatch, capsys):
    monkeypatch.setattr(MMLogger, 'filter', MMLogger.filter)
    logger = sys.modules['mmengine.logging.logger']
    monkeypatch.setitem(vars(logger), 'print', print)
    log = MMLogger('test_quiet', log_level='INFO')
    with warnings.catch_warnings():
        quiet.install()
        log.warning('"FileClient" will be deprecated in future. Please use io functions')
        log.warning('"file_client_args" will be deprecated in future.')  # which a config may say
        print_log('Could not import OneDL. Skipping OneDL datasets.')
        print_log('Could not import OneDL, nor anything else')
    said = capsys.readouterr()
    text = said.out + said.err
    assert 'FileClient' not in text and 'Skipping OneDL' not in text
    assert 'file_client_args' in text and 'nor anything else' in text
