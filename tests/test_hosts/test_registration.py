"""Each installed codebase gets its hosts, in its own registry; one that is not is no trouble."""

import importlib.util
import subprocess
import sys
import types

import forked
import pytest
import torch
from host_cases import GATES, entry, gates, image
from mmengine.registry import MODELS, DefaultScope

from mmattn import registry

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
    registry.import_from_location()
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
    monkeypatch.setattr(registry.importlib.util, 'find_spec', lambda name: spec)
    monkeypatch.setattr(registry.importlib, 'import_module', lambda name: pytest.fail(name))
    registry.register_when_used('mmdet', 'MODELS', 'mmattn.hosts.mmdet')


def test_broken(monkeypatch):
    def broken(name):
        assert name == 'mmseg.registry'
        raise AssertionError('MMCV==9.9 is used but incompatible')

    monkeypatch.setattr(
        registry.importlib.util, 'find_spec', lambda name: types.SimpleNamespace(origin='there')
    )
    monkeypatch.setattr(registry.importlib, 'import_module', broken)
    monkeypatch.setattr(registry, '_broken', set())
    with pytest.warns(UserWarning) as record:  # once, though much here asks for a codebase
        registry.register_when_used('mmseg', 'MODELS', 'mmattn.hosts.mmseg')
        registry.register_when_used('mmseg', 'DATASETS', 'mmattn.datasets.other')
    assert [str(w.message) for w in record] == [
        "mmseg is installed but fails to import, so mmattn's classes for it are missing: "
        'AssertionError: MMCV==9.9 is used but incompatible'
    ]


LATE = """
import sys, warnings
warnings.simplefilter('ignore')
import mmattn, importlib
importlib.reload(mmattn)
assert not {f'{name}.models' for name in ('mmpretrain', 'mmdet', 'mmseg')} & set(sys.modules)
# Asked for first of all, after the codebase's own import, after another class of its.
from mmseg.registry import MODELS
assert MODELS.get('PluginResNetV1c').__module__ == 'mmattn.hosts.mmseg'
import mmdet.models
from mmdet.registry import MODELS
assert MODELS.get('PluginResNet').__module__ == 'mmattn.hosts.mmdet'
from mmpretrain.registry import MODELS
assert MODELS.get('ResNet').__module__ == 'mmpretrain.models.backbones.resnet'
from mmengine.registry import MODELS
assert MODELS.get('mmpretrain.PluginResNet').__module__ == 'mmattn.hosts.mmpretrain'
"""


def test_no_codebase_is_imported_before_it_is_used():
    for codebase in HOSTS:
        pytest.importorskip(codebase)
    done = subprocess.run([sys.executable, '-c', LATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def use_before():
    from mmseg.registry import MODELS

    for name in [name for name in sys.modules if name.startswith('mmattn.hosts')]:
        sys.modules.pop(name)
    MODELS.module_dict.pop('PluginResNet', None), MODELS.module_dict.pop('PluginResNetV1c', None)
    MODELS._locations[:] = ['mmseg.models']
    MODELS.import_from_location()
    assert 'FCNHead' in MODELS.module_dict and 'PluginResNet' not in MODELS.module_dict
    importlib.import_module('mmattn.hosts')
    assert 'PluginResNet' in MODELS.module_dict


def test_a_codebase_that_was_used_before(tmp_path):
    """Whose registry looks nowhere any more."""
    pytest.importorskip('mmseg')
    assert forked.alone(tmp_path / 'log', use_before) == 0, (tmp_path / 'log').read_text()


ALONE = """
import sys, warnings
from importlib.machinery import PathFinder
warnings.simplefilter('ignore')
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: (
    None if name.partition('.')[0] in ('mmpretrain', 'mmseg') else find(name, *args))
import mmattn
from mmdet.registry import MODELS
assert 'PluginResNet' in MODELS
assert not {'mmseg', 'mmpretrain'} & {name.partition('.')[0] for name in sys.modules}
print('alone')
"""


def test_one_codebase_alone():
    pytest.importorskip('mmdet')
    done = subprocess.run([sys.executable, '-c', ALONE], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('alone\n'), done.stderr
