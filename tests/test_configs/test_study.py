"""The study on digits: its tables name every config, which differ in their gates alone."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmattn.analysis import complexity  # noqa: E402
from mmattn.papers import alternatives, config_root, own, plan  # noqa: E402
from mmattn.runs import pretrained  # noqa: E402

FILE = config_root() / 'digits' / 'paper_tables.yml'
ENTRIES = [entry for table in own.select('digits', files=[FILE]) for entry in table.entries]


def read(config):
    return Config.fromfile(config_root() / config, import_custom_modules=False)


def test_the_tables_name_every_config():
    there = sorted(f'digits/{path.name}' for path in FILE.parent.glob('*.py'))
    assert sorted({entry.config for entry in ENTRIES}) == there and len(there) == 15 + 8


def starts(entry):
    """What a row's method says of how its gates start: 'fresh', 'identity' or nothing."""
    return entry.method.partition(', ')[2]


def test_rows_differ_in_their_gates_alone():
    rests = {}
    for entry in ENTRIES:
        found = alternatives.effective(read(entry.config))
        backbone, hooks = found['model']['backbone'], found['default_hooks']
        plugins = backbone.pop('plugins', None)
        assert (plugins is None) == (entry.method == 'ResNet-18'), entry.config
        hook = hooks.pop('pretrained', {})
        assert hook.get('fresh_gates', False) == (starts(entry) != ''), entry.config
        start = (backbone.get('plugin_defaults') or {}).pop('start', None)
        assert start == ('identity' if starts(entry) == 'identity' else None), entry.config
        if not backbone.get('plugin_defaults'):
            backbone.pop('plugin_defaults', None)
        rests.setdefault(entry.table, set()).add(json.dumps(found, sort_keys=True))
    assert {table: len(found) for table, found in rests.items()} == dict.fromkeys(range(1, 6), 1)


def test_what_is_started_from_has_the_same_backbone():
    for entry in ENTRIES:
        if entry.table > 1:
            model, start = (
                complexity.build(read(config)) for config in (entry.config, entry.pretrained)
            )
            wanted = {n: v.shape for n, v in model.backbone.state_dict().items()}
            if starts(entry):
                gates = pretrained.gate_names(model.backbone)
                assert gates and gates <= wanted.keys()
                scales = {name for name in gates if name.endswith('.identity_scale')}
                assert bool(scales) == (starts(entry) == 'identity')
                wanted = {name: shape for name, shape in wanted.items() if name not in gates}
            names = {name: value.shape for name, value in start.backbone.state_dict().items()}
            assert names == wanted


def test_a_plan_of_all_of_it():
    runs = plan.make('digits', [1, 2, 3], seeds=5, alternatives=['pretrained'], files=[FILE])
    assert len(runs) == 75
    assert sum(run.waits_for is not None for run in runs) == 40
    runs = plan.make('digits', [4, 5], seeds=3, alternatives=['pretrained'], files=[FILE])
    assert len(runs) == 3 * (3 + 2 * 7)
    for run in runs:
        if 'fresh' in run.config or 'identity' in run.config:
            assert run.waits_for.config == 'digits/resnet18_digits-in1k.py'


def test_the_page_says_how_to_repeat_it():
    page = (Path(__file__).parents[2] / 'docs' / 'studies' / 'digits.md').read_text()
    for words in ('--tables configs/digits/paper_tables.yml', '--seeds 5', '--hard'):
        assert words in page
