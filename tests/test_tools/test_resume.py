"""Training that was cut off and resumed, or spread over two processes, ends as it would have."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from test_quiet import noise

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'quickstart'

# A process that ends itself: no signal from outside would come at the same iteration every time.
HOOK = """
import os
import signal
import time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class CutOff(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if os.environ.get('CUT_OFF') != str(runner.iter):
            return
        if os.environ['CUT_OFF_BY'] == 'SIGKILL':
            os.kill(os.getpid(), signal.SIGKILL)
        if runner.rank == 0:
            os.kill(os.getppid(), signal.SIGINT)  # as a terminal would, to the launcher
        time.sleep(60)
"""

# No codebase, which takes its time to import in each of two processes.
SMALL = """
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmattn import CAT


@DATASETS.register_module(force=True)
class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return dict(inputs=torch.rand(3, 6, 6) + index / 12, data_samples=index)


@MODELS.register_module(force=True)
class Small(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.cat = torch.nn.Sequential(CAT(8), CAT(8))
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = self.cat(self.conv(torch.stack(list(inputs))))
        return dict(loss=(self.layer(x.mean((2, 3))) - 3).square().mean())
"""
SMALL_EPOCHS = """
default_scope = 'mmengine'
custom_imports = dict(
    imports=['mmattn', 'mmattn.runs', 'cut_off', 'small'], allow_failed_imports=False)
custom_hooks = [dict(type='CutOff')]
randomness = dict(seed=SEED)
model = dict(type='Small')
train_dataloader = dict(
    batch_size=4, num_workers=2, persistent_workers=True, dataset=dict(type='Noise'),
    sampler=dict(type='DefaultSampler', shuffle=True))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05))
train_cfg = dict(by_epoch=True, max_epochs=2)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
"""

# Two epochs of 3 iterations. Workers that persist, because theirs are the generators that would go
# wrong, and augmentation that shows it.
EPOCHS = f"""
_base_ = '{CONFIGS}/resnet18-cat_digits-cifar.py'
custom_imports = dict(
    _delete_=True, imports=['mmattn', 'mmattn.runs', 'cut_off'], allow_failed_imports=False)
custom_hooks = [dict(type='CutOff')]
randomness = dict(_delete_=True, seed=SEED)
model = dict(head=dict(cal_acc=False))
train_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.05, momentum=0.9))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=6, by_epoch=False)
train_cfg = dict(max_epochs=2)
val_cfg = None
val_dataloader = None
val_evaluator = None
"""

# Six iterations, a checkpoint every two, dropout in the heads.
ITERATIONS = f"""
_base_ = '{CONFIGS}/fcn_r18-d8-drtam-pool_digits-voc.py'
custom_imports = dict(
    _delete_=True, imports=['mmattn', 'mmattn.runs', 'cut_off'], allow_failed_imports=False)
custom_hooks = [dict(type='CutOff')]
randomness = dict(_delete_=True, seed=SEED)
crop_size = (64, 64)
model = dict(data_preprocessor=dict(size=crop_size), decode_head=dict(dropout_ratio=0.5))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(96, 96), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.99),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
digits = dict(
    type='PascalVOCDataset', data_root=_base_.data_root, pipeline=pipeline,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ann_file='ImageSets/Segmentation/train.txt')
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True,
    dataset=dict(datasets=[digits, digits]))
param_scheduler = dict(total_steps=6)
train_cfg = dict(max_iters=6)
default_hooks = dict(checkpoint=dict(interval=2))
val_cfg = None
val_dataloader = None
val_evaluator = None
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / 'cut_off.py').write_text(HOOK)
    (tmp_path / 'small.py').write_text(SMALL)
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, seed=0):
        path = tmp_path / 'run.py'
        path.write_text(text.replace('SEED', str(seed)))
        return path

    return write


def environment(tmp_path, **more):
    paths = [str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH', '')]
    return dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(paths),
        OMP_NUM_THREADS='1',
        PYTHON=sys.executable,
        **more,
    )


def last_checkpoint(work_dir):
    path = (work_dir / 'last_checkpoint').read_text().strip()
    return torch.load(path, map_location='cpu', weights_only=False)


def differences(one, other):
    return {key: (one[key].double() - other[key].double()).abs().max().item() for key in one}


def cut_off_training(folder, at, *args):
    train = ROOT / 'tools' / 'train.py'
    forked.script(train, *args, imports=[folder], CUT_OFF=at, CUT_OFF_BY='SIGKILL')


@pytest.mark.parametrize(
    'text, cut_off, left',
    [
        # in the second of the second epoch's three iterations, and in the sixth of six
        (EPOCHS, 4, 3),
        (ITERATIONS, 5, 4),
    ],
    ids=['epochs', 'iterations'],
)
def test_kill_and_resume(text, cut_off, left, config, run_tool, tmp_path):
    # No seed in the config: the resumed run must take over the one that the killed run had drawn.
    log, args = tmp_path / 'log', (config(text, None), '--work-dir', tmp_path / 'cut')
    code = forked.alone(log, cut_off_training, tmp_path, str(cut_off), *args)
    assert code == -signal.SIGKILL, log.read_text()
    before = last_checkpoint(tmp_path / 'cut')
    assert before['meta']['iter'] == left
    run_tool('train', config(text, None), '--work-dir', tmp_path / 'cut', '--resume')
    resumed = last_checkpoint(tmp_path / 'cut')

    run_tool('train', config(text, before['meta']['seed']), '--work-dir', tmp_path / 'whole')
    whole = last_checkpoint(tmp_path / 'whole')
    assert resumed['meta']['iter'] == whole['meta']['iter'] == 6
    for key, value in whole['state_dict'].items():
        assert torch.equal(resumed['state_dict'][key], value), key
    assert max(differences(whole['state_dict'], before['state_dict']).values()) > 1e-3


def test_other_seed_other_weights(config, run_tool, tmp_path):
    """The comparison above would notice other augmentation."""
    ends = []
    for seed in (1, 2):
        run_tool('train', config(EPOCHS, seed), '--work-dir', tmp_path / str(seed))
        ends.append(last_checkpoint(tmp_path / str(seed))['state_dict'])
    assert max(differences(*ends).values()) > 1e-3


def test_interrupt_and_resume(config, run_tool, tmp_path):
    """Ctrl-C in two processes: one line, code 130; --resume goes on from the last epoch, in one."""
    command = [
        'bash',
        ROOT / 'tools' / 'dist_train.sh',
        config(SMALL_EPOCHS),
        '2',
        '--work-dir',
        tmp_path / 'work',
    ]
    stopped = subprocess.run(
        [*command, '--cfg-options', 'train_dataloader.batch_size=2'],
        env=environment(tmp_path, CUT_OFF='4', CUT_OFF_BY='SIGINT'),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.count('interrupted; --resume goes on from') == 1, stopped.stderr
    assert 'epoch_1.pth' in stopped.stderr and 'Traceback' not in stopped.stderr
    run_tool('train', config(SMALL_EPOCHS), '--work-dir', tmp_path / 'work', '--resume')
    assert last_checkpoint(tmp_path / 'work')['meta']['iter'] == 6


# Group norm stands for batch norm: CPUs have no SyncBN, each process would normalise by its own
# half of the batch, and two different networks would be compared.
IN_GROUPS = EPOCHS.replace(
    'model = dict(',
    'model = dict(backbone=dict(zero_init_residual=False, '
    "norm_cfg=dict(type='GN', num_groups=4)), ",
)


@pytest.mark.parametrize(
    'text',
    [SMALL_EPOCHS, pytest.param(IN_GROUPS, marks=pytest.mark.slow)],
    ids=['small', 'resnet'],
)
def test_two_processes_train_like_one(text, config, run_tool, tmp_path):
    """Three steps with the same global batch of 4: 1 x 4 and 2 x 2, what is drawn for the samples
    included. SGD, because Adam's first steps are the signs of gradients, where rounding decides
    about those near zero."""
    one, two = tmp_path / 'one', tmp_path / 'two'
    options = ['--cfg-options', 'train_cfg.max_epochs=1']
    run_tool('train', config(text), '--work-dir', one, *options)
    ran = subprocess.run(
        [
            'bash',
            ROOT / 'tools' / 'dist_train.sh',
            config(text),
            '2',
            '--work-dir',
            two,
            *options,
            'train_dataloader.batch_size=2',
        ],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert not noise(ran.stdout + ran.stderr)
    first, second = last_checkpoint(one), last_checkpoint(two)
    assert first['meta']['iter'] == second['meta']['iter'] == 3
    assert max(differences(first['state_dict'], second['state_dict']).values()) < 1e-5
    # three steps have moved the parameters, the gates' among them, by far more than that
    run_tool(
        'train',
        config(text),
        '--work-dir',
        tmp_path / 'still',
        *options,
        'optim_wrapper.optimizer.lr=0.0',
    )
    moved = differences(first['state_dict'], last_checkpoint(tmp_path / 'still')['state_dict'])
    gates = {key: value for key, value in moved.items() if 'cat' in key.lower()}
    assert len(gates) > 8
    assert max(gates.values()) > 1e-3
