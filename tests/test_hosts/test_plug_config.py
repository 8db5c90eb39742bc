"""The config key `plug`, in our runner and others', `PluggedModel` and `AttentionNeck`."""

import copy
import importlib
import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS, DefaultScope, Registry
from mmengine.runner import Runner as MMEngineRunner
from torch import nn
from torch.utils.data import Dataset

import mmattn.hosts  # noqa: F401  (registers)
from mmattn.attention.gate import Gate
from mmattn.hosts.building import build_model
from mmattn.hosts.identity import identity_scales
from mmattn.hosts.plug import plug_entries
from mmattn.runs import Runner

PLUG = [dict(cfg=dict(type='SE', reduction=2), at='body', start='identity')]


class ToyPlugModel(BaseModel):
    def __init__(self):
        super().__init__(init_cfg=dict(type='Constant', layer=['Conv2d', 'Linear'], val=0.25))
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if isinstance(inputs, (list, tuple)):
            inputs = torch.stack(inputs)
        out = self.head(self.body(inputs).mean((2, 3)))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


class ToyPlugData(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.full((3, 8, 8), index / 8), data_samples=index)


@pytest.fixture(autouse=True)
def registered():
    from mmengine.registry import DATASETS

    for registry, cls in ((MODELS, ToyPlugModel), (DATASETS, ToyPlugData)):
        registry.register_module(module=cls, force=True)
    yield
    MODELS.module_dict.pop('ToyPlugModel')
    DATASETS.module_dict.pop('ToyPlugData')


def config(folder, model=None, **more):
    return Config(
        dict(
            model=model or dict(type='ToyPlugModel'),
            default_scope='mmengine',
            work_dir=str(folder),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                dataset=dict(type='ToyPlugData'),
                sampler=dict(type='DefaultSampler', shuffle=True),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.001, weight_decay=0.5)),
            param_scheduler=dict(type='MultiStepLR', milestones=[1], gamma=0.1),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            randomness=dict(seed=0),
            log_level='WARNING',
            experiment_name=str(folder).replace('/', '_'),
            **more,
        )
    )


def gates(model):
    return [name for name, module in model.named_modules() if isinstance(module, Gate)]


def decays(runner):
    scales = {id(p) for p in identity_scales(runner.model).values()}
    return {
        group['weight_decay']
        for group in runner.optim_wrapper.optimizer.param_groups
        for p in group['params']
        if id(p) in scales
    }


@pytest.mark.parametrize('way', ['runner', 'hook', 'model'])
def test_three_ways(way, tmp_path):
    """The gate is trained, averaged and saved; what the host draws does not reach it."""
    ema = [dict(type='EMAHook')]
    cfg = config(tmp_path, custom_hooks=ema, plug=PLUG)
    if way == 'runner':
        runner = Runner.from_cfg(cfg)
    else:
        cfg.pop('plug')
        if way == 'hook':
            cfg.custom_hooks = [*ema, dict(type='PlugHook', plug=PLUG)]
        else:
            cfg.model = dict(type='PluggedModel', model=cfg.model, plug=PLUG)
        runner = MMEngineRunner.from_cfg(cfg)
    runner.train()
    model = runner.model
    assert gates(model) == ['body.se']
    (scale,) = identity_scales(model).values()
    assert scale.any()
    held = [p for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    if way != 'model':
        assert decays(runner) == {0.0}
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    for key in ('state_dict', 'ema_state_dict'):
        assert any(name.endswith('body.se.identity_scale') for name in saved[key])
    assert 'body.weight' in saved['state_dict']
    # Constant(0.25) is for the host's layers.
    fresh = build_model(dict(model=dict(type='ToyPlugModel'), plug=PLUG))
    before = copy.deepcopy(fresh.body.se.mlp.state_dict())
    fresh.init_weights()
    assert (fresh.body.weight == 0.25).all() and not fresh.body.se.identity_scale.any()
    for name, value in fresh.body.se.mlp.state_dict().items():
        assert torch.equal(value, before[name])


def test_resumes(tmp_path):
    cfg = config(tmp_path, plug=PLUG)
    cfg.train_cfg.max_epochs = 1
    Runner.from_cfg(cfg).train()
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(str(tmp_path / 'epoch_1.pth'), strict=True)
    for key, value in runner.model.state_dict().items():
        assert torch.equal(saved['state_dict'][key], value), key
    cfg.train_cfg.max_epochs, cfg.resume = 2, True
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert resumed.iter == 4 and decays(resumed) == {0.0}
    groups = resumed.optim_wrapper.optimizer.state_dict()['param_groups']
    expected = saved['optimizer']['param_groups']
    assert [group['params'] for group in groups] == [group['params'] for group in expected]
    (scale,) = identity_scales(resumed.model).values()
    assert not torch.equal(scale, saved['state_dict']['body.se.identity_scale'])


def test_pretrained_weights(tmp_path):
    """A checkpoint of the model reaches its gates; one of the bare model is warned of."""
    file = tmp_path / 'weights.pth'
    plain = [dict(PLUG[0], start=None)]
    plugged = build_model(dict(model=dict(type='ToyPlugModel'), plug=plain))
    for parameter in plugged.parameters():
        nn.init.normal_(parameter)
    torch.save(plugged.state_dict(), file)
    with DefaultScope.overwrite_default_scope('mmengine'):
        model = build_model(dict(model=dict(type='ToyPlugModel'), plug=plain))
        model.init_cfg = dict(type='Pretrained', checkpoint=str(file))
        model.init_weights()
    for key, value in plugged.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key

    torch.save(ToyPlugModel().state_dict(), file)
    for entries, expected in ((plain, 1), (PLUG, 0)):
        runner = Runner.from_cfg(config(tmp_path / str(expected), plug=entries))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            runner.load_checkpoint(str(file))
        texts = [str(w.message) for w in found if 'fresh on pretrained' in str(w.message)]
        assert len(texts) == expected


@pytest.mark.parametrize(
    'entries, message',
    [
        ([dict(cfg=dict(type='SE'))], "has no 'at'"),
        ([dict(cfg=dict(type='SE'), att='body')], "unknown key 'att'; did you mean 'at'"),
        (['SE'], 'must be a dict'),
        ('SE', 'must be a list of dicts'),
        ([*PLUG, dict(cfg=dict(type='SE'), at='neck')], r"^plug\[1\]: at='neck': no module"),
    ],
)
def test_refused_entries(entries, message):
    model = ToyPlugModel()
    with pytest.raises(ValueError, match=message):
        plug_entries(model, entries)
    assert not gates(model)


def test_a_model_of_another_library():
    """As mmpose's: in a registry of its own, with samples that must be given, read or not."""
    registry = Registry('model', scope='toypose', parent=MODELS)

    @registry.register_module()
    class Estimator(ToyPlugModel):
        def forward(self, inputs, data_samples, mode='tensor'):
            return super().forward(inputs, data_samples, mode)

    cfg = dict(type='PluggedModel', model=dict(type='toypose.Estimator'), plug=PLUG)
    try:
        with DefaultScope.overwrite_default_scope('toypose'):
            model = registry.build(cfg)
    finally:
        MODELS.children.pop('toypose')
    assert type(model) is Estimator and gates(model) == ['body.se']
    assert (model(torch.ones(1, 3, 8, 8), None) == model(torch.ones(1, 3, 8, 8), [])).all()


def test_a_hook_needs_the_optimisers_config(tmp_path):
    cfg = config(tmp_path)
    model = ToyPlugModel()
    runner = MMEngineRunner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=cfg.train_dataloader,
        train_cfg=cfg.train_cfg,
        optim_wrapper=dict(optimizer=torch.optim.SGD(model.parameters(), lr=0.1)),
        custom_hooks=[HOOKS.build(dict(type='PlugHook', plug=PLUG))],
        experiment_name='needs',
        log_level='WARNING',
    )
    runner.cfg.pop('optim_wrapper', None)
    with pytest.raises(RuntimeError, match='PlugHook makes the optimiser anew'):
        runner.train()


NECKS = {
    'mmdet': dict(type='FPN', in_channels=[4, 8], out_channels=8, num_outs=3),
    'mmseg': dict(type='MultiLevelNeck', in_channels=[4, 8], out_channels=8, scales=[1, 2]),
    'mmpretrain': dict(type='HRFuseScales', in_channels=[4, 8, 16, 32], out_channels=8),
}


@pytest.mark.parametrize('scope', NECKS)
@pytest.mark.parametrize('position', ['before', 'after'])
def test_attention_neck(scope, position):
    pytest.importorskip(scope)
    registry = importlib.import_module(f'{scope}.registry').MODELS
    neck = NECKS[scope]
    with DefaultScope.overwrite_default_scope(scope):
        torch.manual_seed(0)
        bare = registry.build(dict(neck)).eval()
        made = registry.build(
            dict(
                type='AttentionNeck',
                cfg=dict(type='SE', reduction=2),
                neck=dict(neck),
                position=position,
                start='identity',
            )
        ).eval()
    missing, unexpected = made.load_state_dict(bare.state_dict(), strict=False)
    assert not unexpected and all('se_' in key for key in missing)
    x = tuple(torch.randn(2, c, 16 >> i, 24 >> i) for i, c in enumerate(neck['in_channels']))
    ours, theirs = made(x), bare(x)
    levels = [theirs] if isinstance(theirs, torch.Tensor) else theirs
    assert len(gates(made)) == len(x if position == 'before' else levels)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    for scale in identity_scales(made).values():
        nn.init.ones_(scale)
    assert not torch.equal(made(x)[0], theirs[0])


def test_attention_neck_of_some_levels():
    with DefaultScope.overwrite_default_scope('mmengine'):
        made = MODELS.build(
            dict(type='AttentionNeck', cfg=dict(type='SE'), channels=[4, 8], levels=(False, True))
        )
    assert gates(made) == ['se_1']
    x = (torch.randn(2, 4, 6, 8), torch.randn(2, 8, 3, 4))
    assert made(x)[0] is x[0] and not torch.equal(made(x)[1], x[1])
    for wrong, message in (
        (dict(channels=[4], levels=(True, True)), 'levels must be 1 bools'),
        (dict(channels=[4], levels=(False,)), 'no True'),
        (dict(), 'say channels'),
        (dict(channels=[4], position='inside'), "allowed: 'before', 'after'"),
    ):
        with pytest.raises(ValueError, match=message):
            MODELS.build(dict(type='AttentionNeck', cfg=dict(type='SE'), **wrong))
    with pytest.raises(ValueError, match='2 levels and was given 1'):
        made(x[:1])
