"""What the user can mend is told in one line."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mmattn.runs.cli import one_line_errors

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'quickstart' / 'resnet18-cat_digits-cifar.py'


def child(tmp_path, text):
    path = tmp_path / 'child.py'
    path.write_text(f"_base_ = '{CONFIG}'\n{text}\n")
    return path


def test_missing_config(error_of):
    near = CONFIG.with_name('resnet18-cat_digit-cifar.py')
    assert error_of('train', near) == f'error: config not found: {near}; did you mean {CONFIG}?'
    assert error_of('test', 'nothing.py', 'x.pth') == 'error: config not found: nothing.py'


def test_missing_base(error_of, tmp_path):
    path = tmp_path / 'child.py'
    path.write_text("_base_ = './gone.py'\n")
    line = error_of('train', path)
    assert 'base config is missing' in line and 'gone.py' in line


def test_syntax_error_has_file_and_line(error_of, tmp_path):
    path = child(tmp_path, 'model = dict(\n    backbone=dict(depth=18)')
    assert error_of('train', path).startswith(f'error: {path}:2: ')
    grandchild = tmp_path / 'grandchild.py'
    grandchild.write_text("_base_ = './child.py'\n")
    assert error_of('train', grandchild).startswith(f'error: {path}:2: ')


def test_undefined_name(error_of, tmp_path):
    line = error_of('train', child(tmp_path, 'max_epochs = EPOCHS'))
    assert 'child.py: NameError' in line and 'EPOCHS' in line


@pytest.mark.parametrize(
    'plugin, words',
    [
        (
            "dict(cfg=dict(type='CAT', reducton=4), position='after_conv2')",
            ['reducton', 'reduction'],
        ),
        ("dict(cfg=dict(type='CAT', reduction=0), position='after_conv2')", ['reduction', '0']),
        ("dict(cfg=dict(type='KAT'), position='after_conv2')", ['KAT']),
        ("dict(cfg=dict(type='CAT'), position='after_conv3')", ['after_conv3', 'after_conv2']),
        (
            "dict(cfg=dict(type='CAT'), stages=(True, False), position='after_conv2')",
            ['stages', '4'],
        ),
        ("dict(cfg=dict(type='CAT'), postion='after_conv2')", ['position']),
    ],
)
def test_plugin_mistakes(error_of, tmp_path, plugin, words):
    path = child(tmp_path, f'model = dict(backbone=dict(plugins=[{plugin}]))')
    line = error_of('train', path, '--work-dir', tmp_path)
    for word in words:
        assert word in line
    assert line.endswith('(--debug shows the traceback)')


def test_debug_shows_the_traceback(run_tool, tmp_path, monkeypatch):
    path = child(
        tmp_path,
        "model = dict(backbone=dict(plugins=[dict(cfg=dict(type='CAT', r=4), "
        "position='after_conv2')]))",
    )
    with pytest.raises((TypeError, ValueError)):
        run_tool('train', path, '--work-dir', tmp_path, '--debug')
    monkeypatch.setenv('MMATTN_DEBUG', '1')
    with pytest.raises((TypeError, ValueError)):
        run_tool('train', path, '--work-dir', tmp_path)


@pytest.mark.parametrize(
    'name, missing',
    [
        ('resnet18-cat_digits-cifar.py', 'cifar100'),
        ('resnet18-drtam_digits-in1k.py', 'imagenet'),
        ('retinanet_r18-cat_fpn_digits-coco.py', 'instances_train2017.json'),
        ('faster-rcnn_r18-cat_fpn_digits-voc.py', 'train.txt'),
        ('fcn_r18-d8-drtam-pool_digits-voc.py', 'VOC2012'),
    ],
)
def test_missing_data(error_of, tmp_path, monkeypatch, name, missing):
    monkeypatch.chdir(tmp_path)
    assert missing in error_of('train', CONFIG.with_name(name), '--work-dir', tmp_path)


def test_missing_pictures(error_of, tmp_path, workspace):
    """The lists are there, a picture is not: found at the first batch, by a worker."""
    root = tmp_path / 'imagenet'
    shutil.copytree(workspace / 'data' / 'digits' / 'imagenet', root)
    for path in root.rglob('*.JPEG'):
        path.unlink()
    line = error_of(
        'train',
        CONFIG.with_name('resnet18-drtam_digits-in1k.py'),
        '--work-dir',
        tmp_path,
        '--cfg-options',
        f'train_dataloader.dataset.data_root={root}',
        'train_dataloader.num_workers=1',
    )
    assert '.JPEG' in line


def test_missing_checkpoints(error_of, tmp_path):
    gone = tmp_path / 'gone.pth'
    assert error_of('test', CONFIG, gone) == f'error: checkpoint not found: {gone}'
    assert error_of('train', CONFIG, '--resume', gone) == f'error: checkpoint not found: {gone}'
    (tmp_path / 'last_checkpoint').write_text(str(gone))
    assert str(gone) in error_of('train', CONFIG, '--resume', '--work-dir', tmp_path)


@pytest.mark.parametrize('option', ['--skip-nonfinite', '--max-unreadable'])
def test_numbers(run_tool, capsys, option):
    with pytest.raises(SystemExit):
        run_tool('train', CONFIG, option, '-1')
    assert "must be a number from 0 on, got '-1'" in capsys.readouterr().err


def test_folder_of_another(error_of, tmp_path):
    """A training and a test alike are refused by name."""
    code = (
        'from fcntl import *; import sys; file = open(sys.argv[1], "w"); lockf(file, LOCK_EX);'
        'file.write(sys.argv[2]); file.flush(); print(flush=True); sys.stdin.read()'
    )
    owner = '{"pid": 7, "machine": "node3", "what": "a training", "since": "noon"}'
    checkpoint = tmp_path / 'x.pth'
    checkpoint.touch()
    command = [sys.executable, '-c', code, tmp_path / '.owner', owner]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for tool in (['train', CONFIG], ['test', CONFIG, checkpoint]):
            line = error_of(*tool, '--work-dir', tmp_path)
            assert line.startswith(
                f'error: {tmp_path} is in use by a training (process 7 on node3, since noon;'
            )
        other.stdin.close()


def test_folder_that_is_none(error_of, tmp_path):
    """A file has its name, or that of a folder above it."""
    checkpoint = tmp_path / 'x.pth'
    checkpoint.touch()
    for folder in (checkpoint, checkpoint / 'a' / 'b'):
        for tool in (['train', CONFIG], ['test', CONFIG, checkpoint]):
            assert error_of(*tool, '--work-dir', folder) == (
                f'error: {folder} cannot be a folder for results: {checkpoint} is no folder; '
                'choose another'
            )


def test_options_that_the_config_cannot_serve(error_of, tmp_path):
    path = child(tmp_path, 'auto_scale_lr = dict(_delete_=True)')
    assert 'base_batch_size' in error_of('train', path, '--auto-scale-lr')
    checkpoint = tmp_path / 'x.pth'
    torch.save({}, checkpoint)
    assert '.json or .pkl' in error_of('test', CONFIG, checkpoint, '--out', 'metrics.txt')


ROW = ROOT / 'configs' / 'cat' / 'retinanet_r50-cat_fpn_4xb2-90k_coco.py'


@pytest.mark.parametrize(
    'args, words',
    [
        ([CONFIG, '--alternative', 'pretrained'], ['in no table', 'cat/paper_tables.yml']),
        ([ROW, '--alternative', 'retinanet'], ["no alternative 'retinanet'", 'pretrained, ret']),
        ([ROW, '--alternative', 'pretraind'], ['did you mean pretrained?']),
        (
            [ROW, '--alternative', 'pretrained'],
            ['--pretrained CHECKPOINT', 'cat/resnet50-cat-r16_8xb32_in1k.py'],
        ),
        ([ROW, '--pretrained', 'gone.pth'], ['checkpoint not found: gone.pth']),
    ],
)
def test_alternatives_and_starts(error_of, args, words):
    line = error_of('train', *args)
    for word in words:
        assert word in line
    assert '--debug' not in line


def test_a_checkpoint_of_another_network(error_of, tmp_path):
    checkpoint = tmp_path / 'x.pth'
    torch.save({'backbone.conv1.weight': torch.zeros(16, 3, 3, 3)}, checkpoint)
    line = error_of('train', CONFIG, '--pretrained', checkpoint, '--work-dir', tmp_path)
    assert 'x.pth does not fit the backbone; missing: bn1.bias, ' in line


def test_faults_in_training_keep_their_traceback(run_tool, tmp_path, monkeypatch):
    from mmpretrain.models import ImageClassifier

    def fault(self, *args, **kwargs):
        raise ValueError('a fault')

    monkeypatch.setattr(ImageClassifier, 'loss', fault)
    with pytest.raises(ValueError, match='a fault'):
        run_tool('train', CONFIG, '--work-dir', tmp_path)


def test_two_processes_say_it_once(tmp_path):
    """The whole of what two real processes print about a mistake that both of them meet."""
    path = tmp_path / 'config.py'
    path.write_text(
        "default_scope = 'mmengine'\n"  # no codebase, which takes its time to import
        "custom_imports = dict(imports=['mmattn'], allow_failed_imports=False)\n"
        "model = dict(type='CAT', in_channels=8, reducton=4)\n"
        'train_dataloader = dict(\n'
        "    batch_size=1, num_workers=0, dataset=dict(type='ConcatDataset', datasets=[]),\n"
        "    sampler=dict(type='DefaultSampler', shuffle=True))\n"
        'train_cfg = dict(by_epoch=True, max_epochs=1)\n'
        "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n"
    )
    ran = subprocess.run(
        ['bash', ROOT / 'tools' / 'dist_train.sh', path, '2', '--work-dir', tmp_path],
        env=dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 2
    assert len(re.findall('^error: .*reducton', ran.stderr, re.M)) == 1
    assert 'Traceback' not in ran.stdout + ran.stderr


def test_broken_connections_of_threads_say_nothing(capfd):
    """After Ctrl-C data workers may find nobody to hand their tensors to."""

    def report(error):
        thread = threading.Thread(target=lambda: sys.excepthook(type(error), error, None))
        thread.start()
        thread.join()
        return capfd.readouterr().err

    before = sys.excepthook
    with one_line_errors(debug=False):
        assert report(ConnectionResetError('gone')) == ''
        assert report(EOFError()) == ''
        assert 'KeyError' in report(KeyError('fault'))
        sys.excepthook(BrokenPipeError, BrokenPipeError('ours'), None)
        assert 'ours' in capfd.readouterr().err
    assert sys.excepthook is before
