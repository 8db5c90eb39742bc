"""Fingerprints: equal for equal things wherever they lie, another for others."""

import subprocess

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mmattn.datasets import digits
from mmattn.papers import config_root
from mmattn.runs import provenance
from mmattn.runs.cli import move_data


def fingerprint(config, root):
    cfg = Config.fromfile(config_root() / 'quickstart' / config)
    move_data(cfg, str(root))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return provenance.data([DATASETS.build(cfg.train_dataloader.dataset)], root)


@pytest.mark.parametrize(
    'config, task, scope',
    [
        ('resnet18-cat_digits-cifar.py', 'cifar', 'mmpretrain'),
        ('resnet18-drtam_digits-in1k.py', 'imagenet', 'mmpretrain'),
        ('retinanet_r18-cat_fpn_digits-coco.py', 'coco', 'mmdet'),
        ('faster-rcnn_r18-cat_fpn_digits-voc.py', 'voc', 'mmdet'),
        ('fcn_r18-d8-drtam-pool_digits-voc.py', 'vocseg', 'mmseg'),
    ],
)
def test_data_is_known_by_what_it_is(tmp_path, config, task, scope):
    pytest.importorskip(scope)
    roots = [tmp_path / name for name in ('here', 'elsewhere', 'other')]
    for root, number in zip(roots, (8, 8, 9), strict=True):
        digits.make(root / 'digits', task, num=number, num_val=2, size=96)
    here, elsewhere, other = (fingerprint(config, root) for root in roots)
    assert here == elsewhere != other


def test_data_that_does_not_tell_its_samples_has_none():
    assert provenance.data([torch.utils.data.TensorDataset(torch.zeros(2))], 'data') is None


def git(folder, *args):
    identity = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', '-C', folder, *identity, *args], check=True, capture_output=True)


def test_code_is_its_commit_and_what_differs(tmp_path):
    assert provenance.code(tmp_path) == (None, None)
    git(tmp_path, 'init')
    (tmp_path / 'mmattn').mkdir()
    source = tmp_path / 'mmattn' / 'a.py'
    source.write_text('a = 1\n')
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-m', 'a')
    commit, diff = provenance.code(tmp_path)
    assert len(commit) == 40 and diff is None
    (tmp_path / 'notes').write_text('no source')
    assert provenance.code(tmp_path) == (commit, None)
    source.write_text('a = 2\n')
    changed = provenance.code(tmp_path)
    assert changed[0] == commit and len(changed[1]) == 64
    (tmp_path / 'mmattn' / 'b.py').write_text('b = 1\n')
    assert provenance.code(tmp_path)[1] not in (None, changed[1])
    # A package installed somewhere below another's checkout is not of that checkout.
    assert provenance.code(tmp_path / 'mmattn') == (None, None)


def test_equal_weights_have_the_same_hash(tmp_path):
    state = {'b': torch.ones(2, dtype=torch.bfloat16), 'a': torch.arange(3), 'c': torch.tensor(1.0)}
    one, other, third = (tmp_path / name for name in ('one.pth', 'other.pth', 'third.pth'))
    torch.save(dict(state_dict=state, meta=dict(time='1')), one)
    torch.save(dict(state_dict=dict(sorted(state.items())), meta=dict(time='2')), other)
    torch.save(dict(state_dict={**state, 'c': torch.tensor(2.0)}), third)
    assert provenance.weights(one) == provenance.weights(other) != provenance.weights(third)
