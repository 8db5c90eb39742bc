"""A backbone starts from every weight of a checkpoint, gates and all, or not at all."""

import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from torch import nn

from mmattn import CBAM, ECA, plug
from mmattn.papers.alternatives import start_from
from mmattn.runs import checkpoint, pretrained


class Model(nn.Module):
    """A backbone with a gate in it, and a head."""

    def __init__(self, gate):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), gate)
        self.head = nn.Linear(16, 2)


@pytest.fixture
def start(tmp_path):
    """Loads a dict into a model as a checkpoint of that name: `start(model, found)`."""

    def load(model, found):
        path = tmp_path / 'x.pth'
        torch.save(found, path)
        pretrained.load_backbone(model, path)

    return load


def history():
    """What mmengine keeps beside the weights."""
    losses = HistoryBuffer([0.5, 0.25], [1, 1])
    return dict(losses=losses, seconds=np.float64(0.5), counts=np.arange(3))


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: dict(state_dict=state, meta=dict(epoch=1)),
        lambda state: dict(state_dict=state, message_hub=history()),
        lambda state: state,
        lambda state: dict(model=state),
        lambda state: dict(state_dict=prefixed(state, 'module.')),
        lambda state: dict(state_dict=prefixed(state, 'module._orig_mod.')),
        lambda state: {'steps': torch.tensor(3), **prefixed(state, 'module.')},
        lambda state: dict(state_dict={**state, 'ema_backbone_0_weight': torch.zeros(1)}),
        # a classifier that is no OpenMMLab model: its backbone's names begin anywhere
        lambda state: {
            re.sub('^backbone.', '', name).replace('head.', 'fc.'): value
            for name, value in state.items()
        },
        # as torchvision's first files, from before there were such counts
        lambda state: {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')},
        lambda state: {
            **state,
            'neck.convs.0.weight': torch.zeros(1),
            'rpn_head.b': torch.zeros(1),
        },
    ],
)
def test_what_starts_a_backbone(start, wrap):
    there, model = Model(CBAM(16)), Model(CBAM(16))
    nn.init.normal_(there.backbone[1].running_mean)
    head = model.head.weight.clone()
    start(model, wrap(there.state_dict()))
    for name, value in there.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    assert torch.equal(model.head.weight, head)


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda state: state.pop('backbone.0.bias'), 'missing: 0.bias'),
        (lambda state: state.update({'backbone.3.w': torch.zeros(1)}), 'unexpected: 3.w'),
        (lambda state: state.update(other=torch.zeros(1)), 'unexpected: other'),
        (
            lambda state: state.update({'backbone.0.bias': torch.zeros(8)}),
            r'of another shape: 0.bias \(\(8,\), not \(16,\)\)',
        ),
    ],
)
def test_one_weight_that_does_not_fit_is_named(start, change, words):
    model = Model(CBAM(16))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = Model(CBAM(16)).state_dict()
    change(found)
    with pytest.raises(ValueError, match=words) as raised:
        start(model, found)
    assert '\n' not in str(raised.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_another_gate_does_not_fit(start):
    with pytest.raises(ValueError, match=r'unexpected: 2\.\S+, 2\.\S+, 2\.\S+ and 5 more; of'):
        start(Model(ECA(16)), Model(CBAM(16)).state_dict())
    with pytest.raises(ValueError, match=r'missing: 2\.\S+, 2\.\S+, 2\.\S+ and 5 more; of'):
        start(Model(CBAM(16)), Model(ECA(16)).state_dict())


def test_the_last_stage_may_be_in_the_roi_head(start):
    there = Model(CBAM(16))
    model = Model(nn.Identity())
    model.roi_head = nn.Module()
    model.roi_head.shared_head = nn.Sequential(nn.Identity(), nn.Identity(), CBAM(16))
    model.roi_head.with_shared_head = True
    start(model, there.state_dict())
    for name, value in there.backbone[2].state_dict().items():
        assert torch.equal(model.roi_head.shared_head[2].state_dict()[name], value)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.mark.parametrize('old_format', [False, True])
def test_nothing_of_a_checkpoint_is_executed(tmp_path, monkeypatch, old_format):
    monkeypatch.chdir(tmp_path)
    state = Model(CBAM(16)).state_dict()
    torch.save(
        dict(state_dict=state, meta=Hostile()),
        'x.pth',
        _use_new_zipfile_serialization=not old_format,
    )
    with pytest.raises(checkpoint.Unsafe, match='x.pth wants to use posix.mkdir'):
        pretrained.load_backbone(Model(CBAM(16)), 'x.pth')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(
    'found, words',
    [
        (dict(state_dict=dict(epoch=1)), 'holds no weights'),
        (dict(state_dict={'head.weight': torch.zeros(1)}), 'missing: 0.bias, 0.weight, 1.bias and'),
    ],
)
def test_files_without_a_backbone(start, found, words):
    with pytest.raises(ValueError, match=words):
        start(Model(CBAM(16)), found)


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / 'x.pth'
    for content in (b'', b'weights', b'PK\x03\x04'):
        path.write_bytes(content)
        with pytest.raises(checkpoint.Damaged, match='x.pth is no whole checkpoint'):
            pretrained.read_state_dict(path)


def test_fresh_gates_on_the_weights_of_the_network_without_them(tmp_path):
    """Gates in slots and of `plug` stay as they were; the rest is every weight or none, as ever."""
    registry = pytest.importorskip('mmdet.registry').MODELS
    host = dict(type='mmdet.PluginResNet', depth=18, base_channels=8, stem_channels=8)
    bare = nn.Module()
    bare.backbone = registry.build(host)
    path = tmp_path / 'bare.pth'
    torch.save(bare.state_dict(), path)

    def gated():
        model = nn.Module()
        plugins = [dict(cfg=dict(type='SE'), position='after_conv2', start='identity')]
        model.backbone = registry.build(dict(host, plugins=plugins))
        plug(model, CBAM, at='backbone.layer2', channels=16)
        return model

    model = gated()
    gates = pretrained.gate_names(model.backbone)
    before = {name: model.backbone.state_dict()[name].clone() for name in gates}
    assert len([name for name in gates if name.endswith('.identity_scale')]) == 8
    assert gates | bare.backbone.state_dict().keys() == model.backbone.state_dict().keys()
    with pytest.raises(ValueError, match='does not fit the backbone; missing: '):
        pretrained.load_backbone(model, path)
    with pytest.warns(UserWarning, match=r'CBAM at layer2\..*: fresh on pretrained') as said:
        pretrained.load_backbone(model, path, fresh_gates=True)
    assert len(said) == 1  # those in the slots start as the identity
    for name, value in model.backbone.state_dict().items():
        wanted = before[name] if name in gates else bare.backbone.state_dict()[name]
        assert torch.equal(value, wanted), name
    # A checkpoint with gates is no such network, and one without a layer is none at all.
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match='unexpected: '):
        pretrained.load_backbone(gated(), path, fresh_gates=True)
    weights = bare.state_dict()
    del weights['backbone.layer3.0.conv1.weight']
    torch.save(weights, path)
    with pytest.raises(ValueError, match='missing: layer3.0.conv1.weight'):
        pretrained.load_backbone(gated(), path, fresh_gates=True)
    hook = pretrained.PretrainedHook(str(path), fresh_gates=True)
    with pytest.raises(ValueError, match='missing: layer3.0.conv1.weight'):
        hook.before_train(SimpleNamespace(iter=0, model=gated()))


def test_a_config_says_that_gates_are_fresh():
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=dict(type='Pretrained')))))
    start_from(cfg, 'x.pth')
    assert cfg.default_hooks.pretrained == dict(type='PretrainedHook', checkpoint='x.pth')
    cfg.default_hooks.pretrained = dict(type='PretrainedHook', fresh_gates=True)
    start_from(cfg, 'y.pth')
    assert cfg.default_hooks.pretrained.fresh_gates
    assert cfg.default_hooks.pretrained.checkpoint == 'y.pth'


def test_a_resumed_run_is_left_alone(tmp_path):
    model = Model(CBAM(16))
    runner = SimpleNamespace(iter=5, model=model)
    pretrained.PretrainedHook(str(tmp_path / 'gone.pth')).before_train(runner)
    runner.iter = 0
    with pytest.raises(FileNotFoundError):
        pretrained.PretrainedHook(str(tmp_path / 'gone.pth')).before_train(runner)
    with pytest.raises(ValueError, match='is not named'):
        pretrained.PretrainedHook().before_train(runner)


def test_a_published_checkpoint_by_its_address(tmp_path, monkeypatch):
    """Downloaded, and compared with the hash in its name, as `load_from` is."""
    torch.save(dict(weight=torch.ones(1)), tmp_path / 'x')
    digits = checkpoint.sha256_of(tmp_path / 'x')[:8]
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))

    def fetch(url, target, hash_prefix, progress):
        assert hash_prefix in (digits, '00000000')
        with open(target, 'wb') as file:
            file.write((tmp_path / 'x').read_bytes())

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    found = pretrained.read_state_dict(f'https://example.org/x-{digits}.pth')
    assert found['weight'].item() == 1
    with pytest.raises(checkpoint.WrongHash, match='00000000'):
        pretrained.read_state_dict('https://example.org/y-00000000.pth')
