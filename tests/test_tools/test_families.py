"""One tiny training and test of every quickstart config, through the command lines."""

import json
from pathlib import Path

import pytest
import torch

from mmattn.runs.quickstart import TASKS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'quickstart'
FEW = {
    'mmpretrain': ['train_cfg.max_epochs=1', 'param_scheduler.total_steps=1'],
    'mmdet': ['train_cfg.max_epochs=1', 'param_scheduler.total_steps=1'],
    'mmseg': ['train_cfg.max_iters=2', 'param_scheduler.total_steps=2'],
}
# Untrained, they are sure of nothing, and COCO's evaluator has no metrics for no detections.
UNSURE = {
    'retinanet_r18-cat_fpn_digits-coco.py': ['model.test_cfg.score_thr=0.0'],
    'mask-rcnn_r18-drtam_fpn_digits-coco.py': ['model.test_cfg.rcnn.score_thr=0.0'],
}


def scope_of(config):
    return next(scope for scope in FEW if f'{scope}_short' in (CONFIGS / config).read_text())


@pytest.mark.parametrize('task', TASKS, ids=[task.config for task in TASKS])
def test_train_and_test(task, run_tool, tmp_path):
    config = CONFIGS / task.config
    unsure = UNSURE.get(task.config, [])
    run_tool(
        'train',
        config,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *FEW[scope_of(task.config)],
        'train_dataloader.batch_size=6',
        *unsure,
    )
    untrained = json.loads((tmp_path / 'untrained.json').read_text())
    assert task.metric in untrained['metrics']
    assert untrained['parameters'] > 5e5
    last = (tmp_path / 'last_checkpoint').read_text().strip()
    checkpoint = torch.load(last, weights_only=False)
    assert checkpoint['meta']['iter'] == 2
    gate = 'cat' if 'cat' in task.config else 'drtam'
    assert any(gate in key.lower() for key in checkpoint['state_dict']), 'no gate in the model'
    out = tmp_path / 'test.json'
    run_tool(
        'test',
        config,
        last,
        '--work-dir',
        tmp_path,
        '--out',
        out,
        '--cfg-options',
        'launcher=none',
        *unsure,
    )
    assert task.metric in json.loads(out.read_text())


def test_every_quickstart_config_is_run():
    assert {task.config for task in TASKS} == {path.name for path in CONFIGS.glob('*.py')}


@pytest.fixture(scope='module')
def checkpoints(digits_root):
    """Untrained checkpoints, made on demand."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    made = {}

    def checkpoint(name):
        if name not in made:
            cfg = Config.fromfile(CONFIGS / name)
            init_default_scope(cfg.default_scope)
            model = MODELS.build(cfg.model)
            model.init_weights()
            made[name] = digits_root / f'{name}.pth'
            torch.save(dict(state_dict=model.state_dict(), meta={}), made[name])
        return made[name]

    return checkpoint


one_of_each = pytest.mark.parametrize(
    'name',
    [
        'resnet18-drtam_digits-in1k.py',
        'faster-rcnn_r18-cat_fpn_digits-voc.py',
        'fcn_r18-d8-drtam-pool_digits-voc.py',
    ],
)


@one_of_each
def test_tta_and_predictions(name, run_tool, checkpoints, tmp_path):
    run_tool(
        'test',
        CONFIGS / name,
        checkpoints(name),
        '--work-dir',
        tmp_path,
        '--tta',
        '--out',
        tmp_path / 'out.pkl',
    )
    assert (tmp_path / 'out.pkl').stat().st_size > 100


@one_of_each
def test_pictures(name, run_tool, checkpoints, tmp_path):
    run_tool(
        'test',
        CONFIGS / name,
        checkpoints(name),
        '--work-dir',
        tmp_path,
        '--show-dir',
        tmp_path / 'shown',
    )
    pictures = [path for path in tmp_path.rglob('*') if path.suffix in ('.jpg', '.png', '.JPEG')]
    assert len([path for path in pictures if 'shown' in str(path)]) == 4


def test_segmentation_masks(run_tool, checkpoints, tmp_path):
    name = 'fcn_r18-d8-drtam-pool_digits-voc.py'
    run_tool(
        'test',
        CONFIGS / name,
        checkpoints(name),
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'masks',
    )
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 4
