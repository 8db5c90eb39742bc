import json
import re
from functools import cache

import pytest
import yaml
from mmengine.config import Config

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmattn import papers  # noqa: E402
from mmattn.analysis import complexity  # noqa: E402
from mmattn.papers import alternatives  # noqa: E402
from mmattn.papers.trial import config_paths  # noqa: E402

ROOT = papers.config_root()
GROUPS = sorted(
    {
        (path.split('/')[0], path.split('/')[1].split('_')[0].split('-')[0])
        for path in config_paths()
    }
)


@cache
def read(path):
    return Config.fromfile(ROOT / path, import_custom_modules=False)


def of_group(group):
    return [path for path in config_paths() if path.startswith(f'{group[0]}/{group[1]}')]


def test_the_groups_are_all():
    assert sorted(sum(map(of_group, GROUPS), [])) == sorted(config_paths())
    assert len(config_paths()) == 143


@pytest.mark.parametrize('group', GROUPS, ids='-'.join)
def test_every_config_builds(group):
    """On the meta device; a model that differs from another in data or schedule only, once."""
    built = {}
    for path in of_group(group):
        cfg = read(path)
        key = json.dumps([cfg.model, cfg.get('data_preprocessor')], sort_keys=True)
        if key not in built:
            model = complexity.build(cfg)
            assert all(p.is_meta for p in model.parameters())
            gated = any(type(m).__module__.startswith('mmattn.attention') for m in model.modules())
            assert gated == ('plugins' in cfg.model.backbone), path
            built[key] = path
    assert built


def test_no_two_configs_are_the_same():
    """Rows that the papers share have one config; two configs differ in what a run reads."""
    pretraining = [str(path.relative_to(ROOT)) for path in ROOT.glob('*/pretraining/*.py')]
    assert len(pretraining) == 15
    found = {}
    for path in config_paths() + pretraining:
        key = json.dumps(alternatives.effective(read(path)), sort_keys=True)
        assert found.setdefault(key, path) == path


@pytest.mark.parametrize('name', ['drtam-release', 'nogep-avg'])
def test_no_two_rows_of_a_table_are_the_same_with_an_alternative(name):
    """The alternatives that set arguments of gates, in which a table's rows may differ."""
    for item in alternatives.listed():
        found = {}
        for path in item.configs if item.name == name else []:
            cfg = alternatives.combine(ROOT / path, [name])
            key = json.dumps(alternatives.effective(cfg), sort_keys=True)
            assert found.setdefault(key, path) == path, (item.paper, item.table)


def test_what_a_detector_or_segmentor_can_start_from():
    """An ImageNet config with the same gates: a row's, or one in `pretraining` that says so."""
    started = [entry for entry in papers.entries() if entry.pretrained]
    assert started == [
        entry
        for entry in papers.entries()
        if papers.load(entry.paper)[entry.table]['task'] != 'image-classification'
    ]
    rows = {entry.config for entry in papers.entries()}
    others = {entry.pretrained for entry in started} - rows
    assert len(others) == 9 + 6
    assert others == {str(p.relative_to(ROOT)) for p in ROOT.glob('*/pretraining/*.py')}
    for path in others:
        assert (ROOT / path).read_text().startswith('# Not in the paper: ')
    for config, pretrained in {(entry.config, entry.pretrained) for entry in started}:
        assert config.split('/')[0] == pretrained.split('/')[0]
        cfg, base = (read(path) for path in (config, pretrained))
        assert base.default_scope == 'mmpretrain' and base.model.head.num_classes == 1000
        for key in ('type', 'depth', 'style'):
            assert cfg.model.backbone[key] == base.model.backbone[key], config
        assert gates_of(cfg) == gates_of(base), config


def gates_of(cfg):
    """A config's plugins, but for the values that their weights start from."""
    plugins = [plugin.to_dict() for plugin in cfg.model.backbone.get('plugins', [])]
    for plugin in plugins:
        plugin['cfg'].pop('norm_weight', None)
    return plugins


def test_the_checkpoint_that_counts_is_kept():
    """The best one where a table counts that; where it counts the last, that is kept anyway."""
    for entry in papers.entries():
        hook = read(entry.config).default_hooks.checkpoint
        which = papers.load(entry.paper)[entry.table]['checkpoint']
        assert hook.get('save_best') == {'best': 'accuracy/top1', 'last': None}[which], entry
        assert hook.get('save_last', True)


@pytest.mark.parametrize('group', GROUPS, ids='-'.join)
def test_names_and_batches(group):
    """The name says GPUs x images a GPU, which is the batch that the learning rate belongs to."""
    for path in of_group(group):
        cfg = read(path)
        gpus, images = map(int, re.search(r'_(\d+)xb(\d+)[-_]', path).groups())
        assert cfg.train_dataloader.batch_size == images, path
        assert cfg.auto_scale_lr.base_batch_size == gpus * images, path
        depth = re.search(r'(?:resnet|_r)(\d+)', path)
        if depth:
            backbone = cfg.model.backbone
            assert backbone.depth == int(depth.group(1)), path
            if backbone.get('init_cfg'):
                assert backbone.init_cfg.checkpoint == f'torchvision://resnet{backbone.depth}'
        for plugin in cfg.model.backbone.get('plugins', []):
            name = {'CoordAttention': 'ca'}.get(plugin.cfg.type, plugin.cfg.type.lower())
            assert re.search(f'[-_]{name}[-_]', path), path
            if re.search(r'-r\d+_', path):
                assert path.split('-r')[-1].split('_')[0] == str(plugin.cfg.reduction), path


@pytest.mark.parametrize(
    'words, lr, momentum, decay, length, steps',
    [
        ('cat/*_8xb32_in1k.py', 0.1, 0.9, 1e-4, 100, [30, 60, 90]),
        ('cat/*_cifar100.py', 0.001, 0.9, 5e-4, 200, [50, 100, 150]),
        ('cat/faster-rcnn*-18k_voc0712.py', 0.02, 0.9, 1e-4, 18000, [12000, 16000]),
        ('cat/retinanet*-18k_voc0712.py', 0.01, 0.9, 1e-4, 18000, [12000, 16000]),
        ('cat/*-18k_voc12.py', 0.02, 0.9, 1e-4, 18000, [12000, 16000]),
        ('cat/*-rcnn*-90k_coco.py', 0.02, 0.9, 1e-4, 90000, [70000, 80000]),
        ('cat/retinanet*-90k_coco.py', 0.01, 0.9, 1e-4, 90000, [70000, 80000]),
        ('drtam/resnet*_in1k.py', 0.2, 0.9, 1e-4, 100, [30, 60, 90]),
        ('drtam/mobilenet*_in1k.py', 0.045, 0.9, 4e-5, 300, None),
        ('drtam/mask-rcnn*.py', 0.02, 0.9, 1e-4, 12, [8, 11]),
        ('drtam/fcn*.py', 0.01, 0.9, 5e-4, 20000, None),
    ],
)
def test_schedules(words, lr, momentum, decay, length, steps):
    paths = [str(path.relative_to(ROOT)) for path in ROOT.glob(words)]
    assert len(paths) >= 6
    for path in paths:
        cfg = read(path)
        assert cfg.optim_wrapper.optimizer.to_dict() == dict(
            type='SGD', lr=lr, momentum=momentum, weight_decay=decay
        )
        assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == length
        schedulers = cfg.param_scheduler
        last = schedulers[-1] if isinstance(schedulers, list) else schedulers
        if steps:
            assert (last.type, last.milestones, last.gamma) == ('MultiStepLR', steps, 0.1)
        elif 'mobilenet' in path:
            assert (last.type, last.step_size, last.gamma) == ('StepLR', 1, 0.98)
        else:
            assert (last.type, last.power, last.end) == ('PolyLR', 0.9, length)


def test_configs_are_small_and_portable():
    """A dozen lines, own base files only, no weights or data from this machine."""
    for path in config_paths():
        lines = (ROOT / path).read_text().splitlines()
        assert len(lines) <= 12, path
        assert max(map(len, lines)) <= 100, path
    for path in [*ROOT.glob('_base_/**/*.py'), *(ROOT / path for path in config_paths())]:
        text = path.read_text()
        assert '::' not in text, path
        for base in re.findall(r"'(\.[^']*\.py)'", text):
            assert (path.parent / base).resolve().is_relative_to(ROOT.resolve()), path
        assert not re.search(r"'/[a-z]", text), path


@pytest.mark.parametrize('paper', papers.PAPERS)
def test_the_metafile_names_every_config(paper):
    repository = ROOT.parent
    index = yaml.safe_load((repository / 'model-index.yml').read_text())
    assert f'configs/{paper}/metafile.yml' in index['Import']
    meta = yaml.safe_load((ROOT / paper / 'metafile.yml').read_text())
    (collection,) = meta['Collections']
    assert (repository / collection['README']).is_file()
    assert collection['Paper']['URL'].startswith('https://arxiv.org/abs/')
    models = meta['Models']
    assert sorted(model['Config'] for model in models) == sorted(
        f'configs/{path}' for path in config_paths() if path.startswith(f'{paper}/')
    )
    assert len({model['Name'] for model in models}) == len(models)
    for model in models:
        cfg = read(model['Config'].removeprefix('configs/'))
        assert model['In Collection'] == collection['Name']
        assert model['Config'].endswith(f'/{model["Name"]}.py')
        train = cfg.train_cfg
        assert model['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size
        assert model['Metadata'].get('Epochs') == train.get('max_epochs')
        assert model['Metadata'].get('Iterations') == train.get('max_iters')
