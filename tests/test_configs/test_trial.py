"""The papers' configs on digits, as tools/check_configs.py runs them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('sklearn')

from mmattn import papers  # noqa: E402
from mmattn.papers import alternatives, trial  # noqa: E402
from mmattn.runs import PretrainedHook  # noqa: E402

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


ALTERNATIVES = trial.one_for_each_alternative()


def test_every_alternative_is_tried_in_each_of_its_tables():
    tried = {
        (entry.paper, entry.table, name) for path, name in ALTERNATIVES for entry in rows(path)
    }
    assert tried >= {(item.paper, item.table, item.name) for item in alternatives.listed()}


def rows(path):
    return [entry for entry in papers.entries() if entry.config == path]


@pytest.mark.slow
@pytest.mark.parametrize('path, name', ALTERNATIVES, ids=lambda value: value.split('.py')[0])
def test_two_steps_with_an_alternative(path, name, digits):
    assert len(trial.run(path, digits, [name]).losses) == trial.STEPS


@pytest.mark.slow
@pytest.mark.parametrize('path', sorted({path for path, _ in ALTERNATIVES}))
def test_two_steps_with_all_alternatives_that_go_together(path, digits):
    """One after another, each that the ones before admit."""
    names = []
    for name in alternatives.of_row(path):
        try:
            alternatives.combine(papers.config_root() / path, [*names, name])
        except alternatives.AlternativeError:
            continue
        names.append(name)
    assert len(trial.run(path, digits, names).losses) == trial.STEPS


class Stop(Exception):
    """A training that has started is all that is asked for."""


class Start(Hook):
    """Keeps the backbone as training starts, and stops."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.weights = runner.model.backbone.state_dict()
        raise Stop


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """The checkpoint of an ImageNet network after two steps on digits."""
    checkpoints = {}

    def train(path):
        if path not in checkpoints:
            folder = tmp_path_factory.mktemp('imagenet')
            runner = trial.build(path, digits, folder)
            runner.train()
            runner.save_checkpoint(str(folder), 'x.pth')
            checkpoints[path] = folder / 'x.pth'
        return checkpoints[path]

    return train


@pytest.mark.parametrize(
    'path',
    [
        'cat/faster-rcnn_r50-cat_fpn_4xb2-18k_voc0712.py',
        'cat/mask-rcnn_r50-cat_fpn_2xb4-90k_coco.py',
        'drtam/fcn_r50-d8-drtam-pool_4xb4-20k_voc12aug-512x512.py',
    ],
)
def test_a_trained_imagenet_network_starts_it(path, trained, digits, tmp_path):
    checkpoint = trained(rows(path)[0].pretrained)
    runner = trial.build(path, digits, tmp_path)
    start, hook = Start(), PretrainedHook(str(checkpoint))
    fresh = {k: v.clone() for k, v in runner.model.backbone.state_dict().items()}
    for each in (start, hook):
        runner.register_hook(each)
    with pytest.raises(Stop):
        runner.train()
    there = torch.load(checkpoint, weights_only=False)['state_dict']
    there = {
        name.removeprefix('backbone.'): value
        for name, value in there.items()
        if name.startswith('backbone.')
    }
    assert there.keys() == start.weights.keys()
    for name, value in there.items():
        assert torch.equal(start.weights[name], value), name
    # the gates' are no accident: they were others, and have learned
    gates = [name for name in there if '.cat' in name or '.drtam' in name or 'after_' in name]
    assert gates and any(not torch.equal(fresh[name], there[name]) for name in gates)


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
        if cfg.default_scope != 'mmpretrain':
            item['backbone'].pop('zero_init_residual', None)
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


@pytest.mark.parametrize(
    'path',
    [
        'cat/faster-rcnn_r50-cat-spatial_fpn_4xb2-18k_voc12.py',
        'drtam/fcn_r50-d8-drtam-bott_4xb4-20k_voc12aug-512x512.py',
    ],
)
def test_gates_have_something_to_do(path, digits, tmp_path):
    """A residual whose last norm starts at zero would give them zeros."""
    backbone = trial.build(path, digits, tmp_path).model.backbone
    backbone.init_weights()
    last = [m.norm3.weight for m in backbone.modules() if hasattr(m, 'norm3')]
    assert last and all(weight.all() for weight in last)


def test_pixels_are_scaled_where_only_weights_would_do_it():
    path = papers.config_root() / 'cat/mask-rcnn_r50-cat_fpn_2xb4-90k_coco.py'
    msra = trial.overlay(alternatives.combine(path, ['msra']), 'elsewhere')
    assert msra.model.data_preprocessor.std == [58.0] * 3
    other = trial.overlay(alternatives.combine(path, []), 'elsewhere')
    assert other.model.data_preprocessor.std == [58.395, 57.12, 57.375]


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

    def broken(path, root, names):
        if path == bad:
            raise RuntimeError('no such luck')
        return run(path, root, names)

    monkeypatch.setattr(tool.trial, 'run', broken)
    with pytest.raises(SystemExit, match=f'failed: {bad}'):
        tool.main([good, bad, '--data-root', str(digits)])
    text = capsys.readouterr().out
    assert f'ok {good} (' in text
    assert f'FAILED {bad}' in text and 'no such luck' in text
    assert '1 of 2 configs ran' in text


def test_the_tool_shows_alternatives(capsys):
    spec = importlib.util.spec_from_file_location('check_configs', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    row = 'cat/retinanet_r50_fpn_4xb2-90k_coco.py'
    tool.main(['--alternatives', '--list', row])
    text = capsys.readouterr().out
    for name, item in alternatives.of_row(row).items():
        assert f'cat/retinanet_r50_fpn_4xb2-90k_coco+{name}.py\n  {item.changes}. ' in text
    assert '  optim_wrapper.optimizer.lr: 0.01 -> 0.005\n' in text
    with pytest.raises(SystemExit):
        tool.main(['--alternatives', 'quickstart/resnet18-cat_digits-cifar.py'])
    assert 'is in no table' in capsys.readouterr().err
