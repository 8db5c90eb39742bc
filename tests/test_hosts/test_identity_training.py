"""`identity_scale` leaves 0 in real trainings of our runner, in whose way stands nothing.

Each way of training must move every one of them, and what is saved must have what was learnt.
"""

import os
import socket
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset

import mmattn.hosts  # noqa: F401  (registers)
from mmattn import ops
from mmattn.hosts.identity import NAME
from mmattn.runs import Runner

WIDTH, STEPS = 8, 5
GATES = (
    dict(type='SE', reduction=2),
    dict(type='ECA'),
    dict(type='CBAM', reduction=2),
    dict(type='CoordAttention'),
    dict(type='CAT', reduction=2),
    dict(type='DRTAM'),
    dict(type='SimAM'),
    dict(type='TripletAttention'),
    dict(type='EMA', factor=2),
    dict(type='ContextBlock', ratio=1 / 2, fusion_types=('channel_mul',)),
    dict(type='NonLocal2d', reduction=2, zeros_init=False),
)
NUMBER = len(GATES)
SGD = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.5)
ADAMW = dict(type='AdamW', lr=0.01, weight_decay=0.5)


class Chain(nn.Module):
    """A convolution for each gate; a ReLU would leave channels without a gradient."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(WIDTH if i else 3, WIDTH, 3, padding=1) for i in range(len(GATES))]
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh() + (x if x.shape[1] == WIDTH else 0)
        return (x,)


class GatedToy(BaseModel):
    """A chain to plug, or a host whose slots have gates.

    Its backbone is called so as it is what `CPUAmpOptimWrapper` casts.
    """

    def __init__(self, backbone=None):
        super().__init__()
        self.backbone = Chain() if backbone is None else MODELS.build(backbone)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(inputs) if isinstance(inputs, (list, tuple)) else inputs
        out = self.backbone(x)[-1].mean((1, 2, 3))
        return dict(loss=(out - 1).square().mean()) if mode == 'loss' else out


class GatedToyData(Dataset):
    def __len__(self):
        return 4 * STEPS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.rand(3, 9, 12, generator=generator), data_samples=index)


@pytest.fixture(autouse=True)
def registered():
    _register()
    yield
    MODELS.module_dict.pop('GatedToy')
    DATASETS.module_dict.pop('GatedToyData')


def _register():
    MODELS.register_module(module=GatedToy, force=True)
    DATASETS.register_module(module=GatedToyData, force=True)


def plugs(start='identity'):
    return [
        dict(cfg=dict(gate), at=f'backbone.layers.{i}', start=start) for i, gate in enumerate(GATES)
    ]


def trained(folder, optimizer, wrapper='OptimWrapper', plug=None, backbone=None, **more):
    plug = plugs() if plug is None else plug
    with mock.patch.object(Runner, '_log_env'):  # which asks compilers for their versions
        runner = Runner.from_cfg(
            Config(
                dict(
                    default_scope='mmengine',
                    model=dict(type='GatedToy', backbone=backbone),
                    plug=plug,
                    work_dir=str(folder),
                    train_dataloader=dict(
                        batch_size=2,
                        num_workers=0,
                        dataset=dict(type='GatedToyData'),
                        sampler=dict(type='DefaultSampler', shuffle=True),
                    ),
                    train_cfg=dict(by_epoch=False, max_iters=STEPS),
                    optim_wrapper=dict(type=wrapper, optimizer=dict(optimizer)),
                    default_hooks=dict(
                        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=STEPS)
                    ),
                    custom_hooks=[dict(type='EMAHook', momentum=0.1)],
                    randomness=dict(seed=0),
                    log_level='ERROR',
                    experiment_name=str(folder).replace('/', '_'),
                    **more,
                )
            )
        )
    runner.train()


def check_all_have_learnt(folder, values=WIDTH, number=NUMBER):
    """In the weights that were saved, the trained ones and their average."""
    saved = torch.load(folder / f'iter_{STEPS}.pth', weights_only=False)
    for key in ('state_dict', 'ema_state_dict'):
        scales = {n: v for n, v in saved[key].items() if n.rpartition('.')[2] == NAME}
        assert len(scales) == number
        still = [
            name
            for name, value in scales.items()
            if not (value.any() if values is None else value.all())
        ]
        assert not still, (key, still)
        assert values is None or {value.numel() for value in scales.values()} == {values}


@pytest.mark.parametrize(
    'optimizer, wrapper',
    [
        (SGD, 'OptimWrapper'),
        pytest.param(SGD, 'CPUAmpOptimWrapper', marks=pytest.mark.slow),
        pytest.param(ADAMW, 'OptimWrapper', marks=pytest.mark.slow),
        (ADAMW, 'CPUAmpOptimWrapper'),
    ],
)
def test_every_gate_learns(optimizer, wrapper, tmp_path):
    trained(tmp_path, optimizer, wrapper)
    check_all_have_learnt(tmp_path)


@pytest.mark.slow
def test_one_factor_for_a_gate_learns(tmp_path):
    trained(tmp_path, ADAMW, plug=plugs('identity-scalar'))
    check_all_have_learnt(tmp_path, values=1)


@pytest.mark.slow
@pytest.mark.parametrize('impl', ['reference', 'fast'])
def test_both_implementations_learn(impl, tmp_path):
    with ops.use_impl(impl):
        trained(tmp_path, SGD)
    check_all_have_learnt(tmp_path)


@pytest.mark.slow
def test_gates_in_slots_learn(tmp_path):
    """The runner has the host draw its weights anew; it trains with the norms in eval mode."""
    pytest.importorskip('mmpretrain')
    plugins = [
        dict(cfg=dict(gate), position=position, start='identity')
        for position in ('after_conv1', 'after_conv2')
        for gate in GATES[:6]
    ]
    for number, plugin in enumerate(plugins):
        plugin['cfg']['postfix'] = f'_{number}'
    backbone = dict(
        type='mmpretrain.PluginResNet',
        depth=18,
        stem_channels=WIDTH,
        base_channels=WIDTH,
        strides=(1, 1, 1, 1),
        norm_eval=True,
        plugins=plugins,
    )
    trained(tmp_path, SGD, plug=[], backbone=backbone)
    check_all_have_learnt(tmp_path, values=None, number=8 * len(plugins))


def _work(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    _register()
    trained(folder, ADAMW, launcher='pytorch')


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Without a search for parameters that are not used: those of the gates have gradients."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(_work, (tmp_path, port), nprocs=2)
    check_all_have_learnt(tmp_path)
