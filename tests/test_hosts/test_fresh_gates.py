"""Gates that are fresh where they should not be: in what is frozen by hand, on loaded weights."""

import copy
import warnings

import pytest
import torch
from host_cases import CASES, entry
from mmengine.hooks import Hook
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner as MMEngineRunner
from plug_cases import Net, net
from test_plug_config import PLUG, config
from test_plug_config import registered as registered  # a fixture
from torch import nn

from mmattn import SE, plug
from mmattn.hosts.fresh import check_frozen, gates_before, gates_of
from mmattn.hosts.identity import identity_scales
from mmattn.runs import Runner

CASE = CASES['mmdet-resnet18']
BEGINS = [dict(entry('SE', 'after_conv2'), start='identity')]
FRESH = [entry('SE', 'after_conv2')]


def said(model, before=None):
    """The warnings of `check_frozen`."""
    before = gates_before(model) if before is None else before
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        check_frozen(model, before)
    return [str(w.message) for w in found]


def test_an_identity_is_refused():
    model = CASE.build(BEGINS)
    assert not said(model)
    model.layer2.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r'layer2\.0\.se\.identity_scale, .*frozen at 0, .*allowed'
    ):
        check_frozen(model, {})
    for name, scale in identity_scales(model).items():
        if name.startswith('layer2'):
            nn.init.constant_(scale, 0.5)  # trained before it was frozen
    assert not said(model)
    plugged = net()
    plug(plugged, SE, ['layer2', 'layer1.0.bn2'], start='identity')
    plugged.layer2.requires_grad_(False)
    with pytest.raises(ValueError, match=r'layer2\.se\.identity_scale: frozen at 0'):
        check_frozen(plugged, {})


def test_a_fresh_gate_is_warned_of():
    model = CASE.build(FRESH)
    before = gates_before(model)
    assert not said(model)
    model.requires_grad_(False)
    (text,) = said(model)
    assert text.startswith('SE at layer1.0.se (output over input 0.5') and 'and 5 more' in text
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert not said(model, before)
    plugged = net()
    plug(plugged, SE, 'layer2')
    plugged.layer2.requires_grad_(False)
    (text,) = said(plugged)
    assert text.startswith('SE at layer2.se (output over input 0.5')


def test_what_the_host_has_said_is_not_said_again():
    with pytest.warns(UserWarning, match='in a frozen stage'):
        model = CASE.build(FRESH, frozen_stages=1)
    model.train()
    assert not next(iter(gates_of(model)))[1].mlp[0].weight.requires_grad
    assert not said(model)


class FreezesItself(Net):
    """As upstream's backbones with `frozen_stages`, which freeze when they are set to train."""

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.layer1.requires_grad_(False)
        return self


def test_plugged_where_the_host_freezes():
    model = FreezesItself()
    keys = [*model.state_dict()]
    with pytest.raises(ValueError, match='behind layer1: the host freezes that stage, .* stay 0'):
        plug(model, SE, ['layer1', 'layer2'], start='identity')
    assert [*model.state_dict()] == keys
    with pytest.warns(UserWarning, match='behind layer1 are in a frozen stage') as found:
        plug(model, SE, ['layer1', 'layer2'])
    assert len(found) == 1
    model.train()
    assert not said(model)


def test_averages_and_teachers_follow_what_learns():
    model = nn.Module()
    model.student = CASE.build(BEGINS)
    model.teacher = copy.deepcopy(model.student).requires_grad_(False)
    model.average = ExponentialMovingAverage(nn.Sequential(model.student.layer1))
    assert not any(p.requires_grad for p in model.average.parameters())
    assert not said(model)
    model.student.requires_grad_(False)
    with pytest.raises(ValueError, match=r'student\..* and \d+ more: frozen'):
        check_frozen(model, {})


def test_behind_layers_that_are_frozen_already():
    """A gate that is put there learns; what is around a fresh one cannot follow it."""
    model = net()
    model.layer2.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=r"layer2.relu are fresh \(output over input 0.*'identity'"
    ):
        plug(model, SE, 'layer2.relu')  # it has no weights, what it is in has
    for start, at in (('identity', 'layer2'), (None, 'layer1')):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            plug(model, SE, at, start=start)
    assert all(p.requires_grad for p in model.layer2.se.parameters())


@pytest.fixture
def freezing():
    @HOOKS.register_module(force=True)
    class FreezesByHand(Hook):
        def before_run(self, runner):
            runner.model.body.requires_grad_(False)

    yield dict(type='FreezesByHand')
    HOOKS.module_dict.pop('FreezesByHand')


@pytest.mark.parametrize('way', ['runner', 'hook'])
def test_before_a_training(way, freezing, tmp_path):
    """In our runner, and in others by `PlugHook`; a loaded gate is none that is fresh."""
    plain = [dict(PLUG[0], start=None)]

    def begun(entries, folder, **more):
        cfg = config(tmp_path / folder, custom_hooks=[freezing], **more)
        cfg.train_cfg.max_epochs = 1
        if way == 'runner':
            cfg.plug = entries
            return Runner.from_cfg(cfg)
        cfg.custom_hooks = [dict(type='PlugHook', plug=entries), freezing]
        return MMEngineRunner.from_cfg(cfg)

    runner = begun(PLUG, 'identity')
    with pytest.raises(ValueError, match=r'body\.se\.identity_scale: frozen at 0'):
        runner.train()
    assert runner.iter == 0
    runner = begun(plain, 'fresh')
    with pytest.warns(UserWarning, match=r'SE at body.se \(output over input'):
        runner.train()
    saved = tmp_path / 'fresh' / 'epoch_1.pth'
    assert any('body.se.' in key for key in torch.load(saved, weights_only=False)['state_dict'])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        begun(plain, 'loaded', load_from=str(saved)).train()
    assert not [w for w in found if 'frozen' in str(w.message) or 'fresh' in str(w.message)]


@pytest.mark.parametrize('way', ['runner', 'hook'])
@pytest.mark.parametrize('start', [None, 'identity'])
def test_on_a_whole_model_that_is_loaded(way, start, tmp_path):
    """A gate in a slot of a detector's backbone, say, whose `load_from` is of the bare detector."""
    entries = [dict(cfg=dict(type='SE', reduction=2), position='after_conv2', start=start)]
    backbone = dict(type='mmdet.PluginResNet', depth=18, base_channels=4, stem_channels=4)

    @MODELS.register_module(force=True)
    class ToyOfAHost(BaseModel):
        def __init__(self, plugins=None):
            super().__init__()
            self.backbone = MODELS.build(dict(backbone, plugins=plugins))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            inputs = torch.stack(inputs) if isinstance(inputs, (list, tuple)) else inputs
            return dict(loss=self.backbone(inputs)[-1].square().mean())

    file = str(tmp_path / 'bare.pth')
    torch.save(ToyOfAHost().state_dict(), file)
    cfg = config(tmp_path, load_from=file, model=dict(type='ToyOfAHost', plugins=entries))
    cfg.train_cfg.max_epochs = 1
    if way == 'hook':
        cfg.custom_hooks = [dict(type='FreshGatesHook')]
    runner = (Runner if way == 'runner' else MMEngineRunner).from_cfg(cfg)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        runner.train()
    texts = [str(w.message) for w in found if 'fresh on pretrained' in str(w.message)]
    assert len(texts) == (start is None)
    assert start or 'SE at backbone.layer1.0.se (output over input 0.' in texts[0]
    assert start or 'and 7 more gates' in texts[0]
    MODELS.module_dict.pop('ToyOfAHost')
