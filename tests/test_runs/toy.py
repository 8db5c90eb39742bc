"""A training that takes a moment: what long runs need, with nothing to compute."""

import copy
import itertools
import os
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset

from mmattn.runs import Runner

NUMBERS = itertools.count()


class Digits(Dataset):
    """Inputs that depend on the sample and on the random numbers drawn for it."""

    def __init__(self, size=10, bad=(), pause=0):
        self.size, self.bad, self.pause, self.read = size, set(bad), pause, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(int(index))
        time.sleep(self.pause)
        value = 1e4 if index in self.bad else index / self.size
        return dict(inputs=torch.full((4,), value) + torch.rand(4), data_samples=Sample(index))


class Sample:
    def __init__(self, index):
        self.img_path = f'images/{int(index)}.jpg'


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()


class Toy(BaseModel):
    """Layers with running means and dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), Exponential(), nn.BatchNorm1d(8))
        self.last = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.last(self.first(torch.stack(list(inputs))))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


class Root(torch.autograd.Function):
    """Gives 1 for a bad sample's input, with an infinite derivative."""

    @staticmethod
    def forward(ctx, x):
        bad = (x > 1e3).any(1, keepdim=True)
        ctx.save_for_backward(bad)
        return torch.where(bad, 1.0, x)

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(ctx.saved_tensors[0], torch.inf, gradient)


class Steep(Toy):
    """Of which a bad sample spoils what comes before `last`, and its running means."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.middle = nn.BatchNorm1d(8)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.stack(list(inputs))
        x = Root.apply(self.first(inputs.clamp(max=1)) + (inputs[:, :1] > 1e3) * 1e4)
        out = self.last(self.middle(x))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def config(work_dir, epochs=None, iters=None, size=10, bad=(), interval=None, **more):
    """The config of a training by epochs or by iterations, batches of two."""
    by_epoch = epochs is not None
    scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=20)
    cfg = dict(
        work_dir=str(work_dir),
        model=dict(type='Toy'),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type='ToyDigits', size=size, bad=tuple(bad)),
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs)
        if by_epoch
        else dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        param_scheduler=[scheduler, dict(type='StepLR', step_size=1, gamma=0.9)][: 1 + by_epoch],
        default_hooks=dict(
            logger=None,
            checkpoint=dict(
                type='CheckpointHook', interval=interval or 1, by_epoch=by_epoch, max_keep_ckpts=3
            ),
        ),
        randomness=dict(seed=1),
        default_scope='mmengine',
        log_level='WARNING',
        experiment_name=f'toy_{next(NUMBERS)}',  # mmengine keeps loggers by it
    )
    cfg.update(copy.deepcopy(more))
    return cfg


def write(path, cfg):
    """Writes a config as a file for the tools."""
    imports = dict(imports=['mmattn.runs', Path(__file__).stem], allow_failed_imports=False)
    cfg = dict(cfg, custom_imports=imports)
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in cfg.items()))
    return path


def environment(**more):
    """The variables with which the tools find this file."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    paths += filter(None, [os.environ.get('PYTHONPATH')])
    return dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(paths),
        PYTHON=sys.executable,
        OMP_NUM_THREADS='1',
        PYTHONWARNINGS='ignore',  # older libraries with each other
        **more,
    )


def runner(cfg):
    with mock.patch.object(Runner, '_log_env'):  # which asks compilers for their versions
        return Runner.from_cfg(Config(cfg))


def weights(trained):
    return {key: value.clone() for key, value in trained.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


for registry, name, part in (
    (DATASETS, 'ToyDigits', Digits),
    (MODELS, 'Toy', Toy),
    (MODELS, 'ToySteep', Steep),
):
    registry.register_module(name=name, module=part, force=True)
