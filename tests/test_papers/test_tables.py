from functools import cache

import pytest
from mmengine.config import Config

from mmattn import papers
from mmattn.papers import tables

ROWS = {
    'cat': {1: 20, 2: 20, 3: 20, 4: 10, 5: 10, 6: 11},
    'drtam': {1: 8, 2: 9, 3: 6, 4: 22, 5: 6, 6: 6, 7: 8},
}


def plugins_of(entry):
    path = papers.config_root() / entry.config
    return Config.fromfile(path, import_custom_modules=False).model.backbone.get('plugins', [])


@pytest.mark.parametrize('paper', papers.PAPERS)
def test_every_row_is_there(paper):
    assert {n: len(table['rows']) for n, table in papers.load(paper).items()} == ROWS[paper]


def test_every_config_is_used_and_every_row_has_one():
    root = papers.config_root()
    used = {entry.config for entry in papers.entries()}
    there = {
        str(path.relative_to(root))
        for paper in papers.PAPERS
        for path in (root / paper).glob('*.py')
    }
    assert used == there
    assert len(used) == 143
    # 156 rows; six of Table 7 hold two models
    assert len(papers.entries()) == 162


@pytest.mark.parametrize(
    'paper, table, group, name, values',
    [
        ('cat', 1, 'RetinaNet ResNet101', '+ CAT', {'AP': 55.42, 'AP50': 79.94, 'AP75': 59.91}),
        (
            'cat',
            3,
            'Mobilenetv2',
            '+ CAT',
            {'top1_error': 47.34, 'top5_error': 18.63, 'gmac': 2.44, 'params': 2.40},
        ),
        (
            'cat',
            6,
            'Faster-RCNN ResNet50',
            '+ channel w/o GEP',
            {'AP': 40.38, 'AP50': 71.31, 'AP75': 41.1},
        ),
        (
            'drtam',
            4,
            'MobileNetV2-0.75',
            '+ DRTAM',
            {'params': 2.81, 'gflops': 0.23, 'top1': 71.468, 'top5': 90.088},
        ),
        (
            'drtam',
            7,
            'ResNet-101',
            '+ CA (pool)',
            {'params': 69.00, 'gflops': 274.25, 'mIoU': 76.23},
        ),
    ],
)
def test_printed_numbers(paper, table, group, name, values):
    found = [e for e in papers.entries(paper, table) if (e.group, e.name) == (group, name)]
    assert [entry.values for entry in found] == [values]


def test_rows_of_one_experiment_share_a_config():
    def configs(table, **settings):
        return {
            e.config
            for e in papers.entries('drtam', table)
            if e.group in ('ResNet-50', 'ResNet50')
            and e.settings == settings
            and 'DRTAM' in e.method
        }

    shared = configs(1, S=3, N=1, r=32)
    assert len(shared) == 1
    assert shared == configs(2, S=3, N=1, r=32) == configs(3, S=3, N=1, r=32)
    assert shared == configs(4, S=3, N=1, r=32)
    boxes, masks = papers.entries('drtam', 5), papers.entries('drtam', 6)
    assert [entry.config for entry in boxes] == [entry.config for entry in masks]


def test_what_a_detector_or_segmentor_can_start_from():
    """An ImageNet config with the same gates: a row's, or one in `pretraining` that says so."""
    root = papers.config_root()
    started = [entry for entry in papers.entries() if entry.pretrained]
    assert started == [
        entry
        for entry in papers.entries()
        if papers.load(entry.paper)[entry.table]['task'] != 'image-classification'
    ]
    rows = {entry.config for entry in papers.entries()}
    others = {entry.pretrained for entry in started} - rows
    assert len(others) == 9 + 6
    assert others == {str(p.relative_to(root)) for p in root.glob('*/pretraining/*.py')}
    for path in others:
        assert (root / path).read_text().startswith('# Not in the paper: ')
    read_once = cache(lambda path: Config.fromfile(root / path, import_custom_modules=False))

    for config, pretrained in {(entry.config, entry.pretrained) for entry in started}:
        assert config.split('/')[0] == pretrained.split('/')[0]
        cfg, base = (read_once(path) for path in (config, pretrained))
        assert base.default_scope == 'mmpretrain' and base.model.head.num_classes == 1000
        backbone = base.model.backbone
        for plugin in backbone.get('plugins', []):
            plugin.cfg.pop('norm_weight', None)  # only a start
        for key in ('type', 'depth', 'plugins', 'style'):
            assert cfg.model.backbone.get(key) == backbone.get(key), (config, key)


@pytest.mark.parametrize(
    'paper, table', [(p, t) for p in ROWS for t in ROWS[p] if (p, t) != ('cat', 6)]
)
def test_the_gate_of_a_row_is_the_one_it_names(paper, table):
    """The config's plugin has the type, r, S, N and position that the row's own words say."""
    types = {
        'SENet': 'SE',
        'CBAM': 'CBAM',
        'ECANet': 'ECA',
        'CAT': 'CAT',
        'CA': 'CoordAttention',
        'DRTAM': 'DRTAM',
    }
    positions = {
        ('cat', 'Mobilenetv2'): 'after_project',
        ('cat', 'Shufflenetv2'): 'after_right_branch',
        ('drtam', 'MobileNetV2-1.0'): 'after_depthwise',
        ('drtam', 'MobileNetV2-0.75'): 'after_depthwise',
    }
    for entry in papers.entries(paper, table):
        plugins = plugins_of(entry)
        if not entry.method.startswith('+ '):
            assert not plugins, entry
            continue
        position = positions.get((paper, entry.group), 'after_conv3')
        wanted = ['after_stem', 'after_stage'] if entry.placement == 'pool' else [position]
        assert [plugin.position for plugin in plugins] == wanted, entry
        assert all(plugin.get('stages') is None for plugin in plugins), entry
        gate = plugins[0].cfg
        assert all(plugin.cfg == gate for plugin in plugins), entry
        assert gate.type == types[entry.method.removeprefix('+ ')], entry
        if paper == 'cat' and gate.type != 'ECA':
            assert gate.reduction == 16
        if 'r' in entry.settings:
            assert gate.reduction == entry.settings['r'], entry
        if 'S' in entry.settings:
            assert gate.get('num_chunks', 3) == entry.settings['S'], entry
            assert gate.get('num_channel_chunks', 1) == entry.settings['N'], entry


def test_the_ablation_names_its_parts():
    """CAT's Table 6: order of the attentions, pooling operators, factors."""
    bare, *others = papers.entries('cat', 6)
    assert not plugins_of(bare)
    for entry in others:
        (plugin,) = plugins_of(entry)
        wanted = dict(type='CAT', reduction=16)
        if 'interior' not in entry.method:
            wanted['interior'] = False
        if entry.method.startswith('+ '):
            wanted['arrangement'] = entry.method[2:].removesuffix(' w/o GEP').replace(' + ', '-')
        if entry.method.endswith('w/o GEP'):
            wanted['pools'] = ('avg', 'max')
        assert plugin.cfg.to_dict() == wanted, entry


@pytest.mark.parametrize(
    'paper, table, words',
    [
        ('senet', None, 'paper must be one of'),
        ('cat', 7, r'cat has the tables \[1, 2, 3, 4, 5, 6\]'),
    ],
)
def test_unknown_paper_or_table(paper, table, words):
    with pytest.raises(ValueError, match=words):
        papers.entries(paper, table)


GOOD = """
paper: CAT
tables:
- {id: 1, caption: c, task: object-detection, dataset: d, metrics: [AP], checkpoint: last,
   checkpoint_evidence: e, proven: p, platform: q, rows: [
   {group: g, method: m, config: cat/x.py, paper: {AP: 1.5}}]}
"""


@pytest.mark.parametrize(
    'old, new, words',
    [
        ('caption: c, ', '', 'expected the keys'),
        ('config: cat/x.py, ', '', 'expected the keys'),
        ('method: m', 'method: m, note: n', 'expected the keys'),
        ('object-detection', 'detection', 'task must be one of'),
        ('checkpoint: last', 'checkpoint: first', 'checkpoint must be one of'),
        ('{AP: 1.5}', '{AP: 1.5, AP50: 2}', 'has the metrics'),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, monkeypatch, old, new, words):
    (tmp_path / 'cat').mkdir()
    path = tmp_path / 'cat' / 'paper_tables.yml'
    monkeypatch.setattr(tables, 'config_root', lambda: tmp_path)
    load = tables.load.__wrapped__  # past the cache
    path.write_text(GOOD)
    assert list(load('cat')) == [1]
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=words):
        load('cat')
