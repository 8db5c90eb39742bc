"""The papers' configs on digits, as tools/check_configs.py runs them."""

import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('sklearn')

from mmattn import papers  # noqa: E402
from mmattn.papers import trial  # noqa: E402

TOOL = Path(__file__).parents[2] / 'tools' / 'check_configs.py'
ONE_FOR_EACH_PIPELINE = [
    'cat/faster-rcnn_r50-cat_fpn_4xb2-18k_voc0712.py',
    'cat/retinanet_r50-cat_fpn_4xb2-18k_voc0712.py',
    'cat/faster-rcnn_r50-cat_fpn_4xb2-90k_coco.py',
    'cat/retinanet_r50-cat_fpn_4xb2-90k_coco.py',
    'cat/resnet50-cat-r16_1xb128_cifar100.py',
    'cat/resnet50-cat-r16_8xb32_in1k.py',
    'cat/mask-rcnn_r50-cat_fpn_2xb4-90k_coco.py',
    'cat/faster-rcnn_r50-cat-spatial_fpn_4xb2-18k_voc12.py',
    'drtam/mask-rcnn_r50-drtam-r16_fpn_4xb4-1x_coco.py',
    'drtam/fcn_r50-d8-drtam-bott_4xb4-20k_voc12aug-512x512.py',
]


def test_the_distinct_pipelines():
    assert trial.one_for_each_pipeline(trial.config_paths()) == ONE_FOR_EACH_PIPELINE


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp('digits')
    trial.prepare(root)
    return root


METRICS = {
    'voc': 'pascal_voc/AP50',
    'coco': 'coco/bbox_mAP',
    'in1k': 'accuracy/top5',
    'cifar100': 'accuracy/top1',
    'voc12aug': 'mIoU',
}


@pytest.mark.parametrize('path', ONE_FOR_EACH_PIPELINE)
def test_two_steps_and_a_validation(path, digits):
    result = trial.run(path, digits)
    assert len(result.losses) == trial.STEPS
    name = next(METRICS[key] for key in sorted(METRICS, key=len, reverse=True) if key in path)
    assert name in result.metrics
    if 'mask-rcnn' in path:
        assert 'coco/segm_mAP' in result.metrics


@pytest.mark.parametrize('path', ONE_FOR_EACH_PIPELINE)
def test_the_overlay_changes_what_it_says_and_no_more(path):
    cfg = Config.fromfile(papers.config_root() / path, import_custom_modules=False)
    small = trial.overlay(cfg, 'elsewhere')
    assert 'elsewhere' not in cfg.text and 'elsewhere' not in str(cfg)  # a copy
    assert 'data/' not in str(small.train_dataloader).replace('elsewhere/', '')
    for name in ('optim_wrapper', 'param_scheduler', 'default_scope'):
        assert small[name] == cfg[name]
    assert small.val_evaluator.get('type') == cfg.val_evaluator.type
    model, other = small.model.to_dict(), cfg.model.to_dict()
    for item in (model, other):
        item['backbone'].pop('init_cfg', None)
        for key in ('train_cfg', 'test_cfg', 'data_preprocessor'):
            item.pop(key, None)
    assert model == other

    def transforms(item):
        if isinstance(item, dict):
            if 'pipeline' in item:
                yield [(t['type'], sorted(t)) for t in item['pipeline']]
            for value in item.values():
                yield from transforms(value)
        elif isinstance(item, (list, tuple)):
            for value in item:
                yield from transforms(value)

    for name in ('train_dataloader', 'val_dataloader'):
        assert list(transforms(small[name])) == list(transforms(cfg[name]))


def test_sizes_are_divided():
    item = dict(
        type='Resize',
        scale=(1333, 800),
        ratio_range=(0.5, 2.0),
        scales=[(1333, 480)],
        crop_size=224,
        padding=4,
        keep_ratio=True,
        prob=0.5,
    )
    assert trial._shrink(item) == dict(
        type='Resize',
        scale=(166, 100),
        ratio_range=(0.5, 2.0),
        scales=[(166, 60)],
        crop_size=32,
        padding=4,
        keep_ratio=True,
        prob=0.5,
    )


def test_a_loss_that_is_not_finite_is_an_error(digits, monkeypatch):
    monkeypatch.setattr(
        trial.Recorder,
        'after_train_iter',
        lambda self, *args, **kwargs: self.losses.append(float('nan')),
    )
    with pytest.raises(FloatingPointError, match='losses'):
        trial.run('cat/mobilenet-v2_1xb128_cifar100.py', digits)


def test_the_tool_tells_what_failed(digits, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location('check_configs', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    good, bad = 'cat/mobilenet-v2_1xb128_cifar100.py', 'cat/mobilenet-v2-se-r16_1xb128_cifar100.py'
    run = trial.run

    def broken(path, root):
        if path == bad:
            raise RuntimeError('no such luck')
        return run(path, root)

    monkeypatch.setattr(tool.trial, 'run', broken)
    with pytest.raises(SystemExit, match=f'failed: {bad}'):
        tool.main([good, bad, '--data-root', str(digits)])
    text = capsys.readouterr().out
    assert f'ok {good} (' in text
    assert f'FAILED {bad}' in text and 'no such luck' in text
    assert '1 of 2 configs ran' in text
