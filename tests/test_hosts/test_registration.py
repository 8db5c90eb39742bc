"""Each installed codebase gets its hosts, in its own registry; one that is not is no trouble."""

import importlib.util
import subprocess
import sys
import types

import pytest
import torch
from host_cases import GATES, entry, gates, image
from mmengine.registry import MODELS, DefaultScope

from mmattn import hosts

HOSTS = {
    'mmpretrain': {
        'PluginResNet',
        'PluginResNet_CIFAR',
        'PluginMobileNetV2',
        'PluginMobileNetV2_CIFAR',
        'PluginShuffleNetV2',
        'PluginShuffleNetV2_CIFAR',
    },
    'mmdet': {'PluginResNet'},
    'mmseg': {'PluginResNet', 'PluginResNetV1c'},
}


@pytest.mark.parametrize('scope', HOSTS)
def test_names(scope):
    pytest.importorskip(scope)
    registry = importlib.import_module(f'{scope}.registry').MODELS
    assert {name for name in registry.module_dict if name.startswith('Plugin')} == HOSTS[scope]
    assert not any(name.startswith('Plugin') for name in MODELS.module_dict)
    # A codebase's own class of that name would be found before the gate.
    assert not set(GATES) & set(registry.module_dict) and set(GATES) <= set(MODELS.module_dict)


@pytest.mark.parametrize('scope', HOSTS)
def test_default_scope(scope):
    pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(
            dict(
                type='PluginResNet',
                depth=18,
                base_channels=4,
                stem_channels=4,
                plugins=[entry('CAT', 'after_conv2')],
            )
        )
    assert type(model).__module__ == f'mmattn.hosts.{scope}' and len(gates(model)) == 8


def test_in_a_detector_of_another_codebase():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(
            dict(
                type='RetinaNet',
                backbone=dict(
                    type='mmpretrain.PluginMobileNetV2',
                    widen_factor=0.25,
                    out_indices=(2, 4, 6),
                    plugins=[
                        entry('CAT', 'after_project'),
                        entry('mmdet.DropBlock', 'after_stage', drop_prob=0.1, block_size=1),
                    ],
                ),
                neck=dict(type='FPN', in_channels=[8, 24, 80], out_channels=8, num_outs=5),
                bbox_head=dict(
                    type='RetinaHead',
                    num_classes=3,
                    in_channels=8,
                    feat_channels=8,
                    stacked_convs=1,
                    anchor_generator=dict(
                        type='AnchorGenerator',
                        octave_base_scale=4,
                        scales_per_octave=3,
                        ratios=[1.0],
                        strides=[4, 16, 32, 64, 128],
                    ),
                ),
            )
        )
    assert type(model.backbone).__module__ == 'mmattn.hosts.mmpretrain'
    assert len(gates(model)) == 17
    with torch.no_grad():
        assert len(model.extract_feat(image())) == 5


@pytest.mark.parametrize('spec', [None, types.SimpleNamespace(origin=None)], ids=['none', 'folder'])
def test_not_installed(monkeypatch, spec):
    monkeypatch.setattr(hosts.importlib.util, 'find_spec', lambda name: spec)
    monkeypatch.setattr(hosts.importlib, 'import_module', lambda name: pytest.fail(name))
    hosts._register('mmdet')


def test_broken(monkeypatch):
    def broken(name):
        assert name == 'mmseg.models'
        raise AssertionError('MMCV==9.9 is used but incompatible')

    monkeypatch.setattr(
        hosts.importlib.util, 'find_spec', lambda name: types.SimpleNamespace(origin='there')
    )
    monkeypatch.setattr(hosts.importlib, 'import_module', broken)
    with pytest.warns(UserWarning) as record:
        hosts._register('mmseg')
    assert [str(w.message) for w in record] == [
        'mmseg is installed but fails to import, so its hosts are missing: '
        'AssertionError: MMCV==9.9 is used but incompatible'
    ]


ALONE = """
import sys, warnings
from importlib.machinery import PathFinder
warnings.simplefilter('ignore')
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: (
    None if name.partition('.')[0] in ('mmpretrain', 'mmseg') else find(name, *args))
import mmattn
from mmdet.registry import MODELS
assert 'PluginResNet' in MODELS.module_dict
assert not {'mmseg', 'mmpretrain'} & {name.partition('.')[0] for name in sys.modules}
print('alone')
"""


def test_one_codebase_alone():
    pytest.importorskip('mmdet')
    done = subprocess.run([sys.executable, '-c', ALONE], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('alone\n'), done.stderr
