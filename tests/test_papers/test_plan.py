"""The graph of runs: each once, and after what it starts from."""

import json
import shlex

import pytest
import yaml
from mmengine.config import Config

from mmattn.papers import PAPERS, alternatives, config_root, entries, plan
from mmattn.papers.tables import load


@pytest.mark.parametrize('paper', PAPERS)
def test_every_config_of_a_paper_runs_once_a_seed(paper):
    runs = plan.make(paper, [], seeds=2)
    expected = {entry.config for entry in entries(paper)}
    assert sorted(run.name for run in runs) == sorted(
        f'{config.removesuffix(".py")}/seed{seed}' for config in expected for seed in (0, 1)
    )
    assert all(run.path.is_file() and run.waits_for is None for run in runs)


def test_a_row_of_several_tables_runs_once_and_names_them():
    numbers = {}
    for entry in entries('drtam'):
        numbers.setdefault(entry.config, set()).add(entry.table)
    shared = next(config for config, found in numbers.items() if len(found) > 1)
    found = [run for run in plan.make('drtam', []) if run.config == shared]
    assert len(found) == 1
    tables = {int(row.split()[1].rstrip(':')) for row in found[0].rows}
    assert tables == numbers[shared]


def test_gated_detectors_wait_for_the_same_seed_of_their_imagenet_network():
    runs = plan.make('cat', [1], seeds=2, alternatives=['pretrained'])
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    detectors = [run for run in runs if run.waits_for]
    # Each ImageNet network serves a Faster R-CNN and a RetinaNet.
    assert len(detectors) == 2 * 16 and len(runs) == 2 * 20 + 2 * 8
    pretrained = {entry.config: entry.pretrained for entry in entries('cat', 1)}
    for run in detectors:
        assert run.alternatives == ('pretrained',)
        assert run.waits_for.config == pretrained[run.config] and run.waits_for.seed == run.seed
        assert names.index(run.waits_for.name) < names.index(run.name)
    assert not any('-' not in run.config for run in detectors)


@pytest.mark.parametrize(
    'table, row, name',
    (
        (1, 'faster-rcnn_r50-cat_*', 'cat-concat'),
        (6, 'faster-rcnn_r50-cat-spatial_*', 'cat-concat'),  # which starts from no table's row
        (6, 'faster-rcnn_r50-cat-spatial-nogep_*', 'nogep-avg'),
    ),
)
def test_other_gates_start_from_a_network_with_the_same(table, row, name, tmp_path):
    """Others would not fit, days later. What is not of the gates stays the row's."""
    names = ['pretrained', 'frozen-gates-learn', name]
    start, run = plan.make('cat', [table], rows=[row], alternatives=names)
    assert run.waits_for == start and run.alternatives == tuple(sorted(names))
    assert start.alternatives == (name,)
    gates = [
        Config(json.loads(r.expected())).model.backbone.plugins[0]['cfg'] for r in (start, run)
    ]
    assert gates[0] == gates[1]
    command = plan.as_shell([start], tmp_path, 8)
    assert f'--alternative {name}' in command
    assert alternatives.combine(start.path, [name])


def test_rows_of_the_plan_that_others_start_from_keep_their_own_rows():
    """A plan of a detector's table and of ImageNet's trains the network once."""
    runs = plan.make('cat', [1, 4], alternatives=['pretrained'])
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 20 + 10
    network = next(run for run in runs if run.config == 'cat/resnet50-cat-r16_8xb32_in1k.py')
    assert network.rows and network.rows[0].startswith('cat 4: ')


def test_rows_by_pattern():
    found = plan.make('cat', [1], rows=['retinanet_r50-*'])
    assert {run.config.split('/')[1].split('_')[0] for run in found} == {'retinanet'}
    assert plan.make('cat', [1], rows=['+ CAT'])
    with pytest.raises(plan.PlanError, match='no row fits .nothing.; the rows are ResNet50'):
        plan.make('cat', [1], rows=['nothing'])


def test_what_tables_do_not_have_is_refused():
    with pytest.raises(ValueError, match='cat has the tables 1, 2, 3, 4, 5, 6, got 9'):
        plan.make('cat', [9])
    with pytest.raises(ValueError, match='paper must be one of'):
        plan.make('bat', [1])
    with pytest.raises(plan.PlanError, match="no row has the alternative 'c5'; they have .*c4"):
        plan.make('cat', [1], alternatives=['c5'])
    with pytest.raises(plan.PlanError, match='at least 1, got 0'):
        plan.make('cat', [1], seeds=0)


def test_alternatives_that_exclude_each_other_are_refused_before_anything_starts():
    with pytest.raises(plan.PlanError, match='do not go together'):
        plan.make('cat', [1], alternatives=['retinanet-lr-0.005', 'retinanet-lr-0.02'])


def test_plain_commands(tmp_path):
    runs = plan.make('cat', [1], rows=['faster-rcnn_r50-cat_*'], alternatives=['pretrained'])
    first, second = plan.as_shell(runs, 'a folder', 4).splitlines()[-2:]
    words = shlex.split(first)
    assert words[:2] == ['bash', 'tools/dist_train.sh'] and words[3] == '4'
    assert words[2].endswith('cat/resnet50-cat-r16_8xb32_in1k.py')
    assert '--record' in words and words[words.index('--seed') + 1] == '0'
    assert 'a folder/cat/resnet50-cat-r16_8xb32_in1k/seed0/last_checkpoint' in second
    data = json.loads(json.dumps(plan.as_data(runs, 'a folder', 4)))
    assert [item['waits_for'] for item in data] == [None, data[0]['name']]
    assert data[1]['pretrained_from'] == f'{data[0]["folder"]}/last_checkpoint'


def test_tables_of_ones_own(tmp_path):
    """Their configs are beside them, or the papers'."""
    table = {**load('cat')[6]}
    del table['alternatives']
    row = {**table['rows'][0]}
    own = {**row, 'method': 'own', 'config': 'mine/own.py', 'pretrained': row['config']}
    folder = tmp_path / 'mine'
    folder.mkdir()
    (folder / 'own.py').write_text(f'_base_ = {str(config_root() / row["config"])!r}\n')
    path = folder / 'tables.yml'
    path.write_text(yaml.safe_dump(dict(tables=[{**table, 'rows': [row, own]}])))
    runs = plan.make('mine', [], files=[path])
    assert [run.path for run in runs] == [config_root() / row['config'], folder / 'own.py']
    assert runs[0].rows[0].startswith('mine 6: ')
    runs = plan.make('mine', [6], files=[path], alternatives=['pretrained'])
    assert runs[1].waits_for == runs[0] and runs[1].alternatives == ('pretrained',)
    assert '--alternative' not in runs[1].arguments('work')
    with pytest.raises(ValueError, match=r'mine has the tables 6, got 1'):
        plan.make('mine', [1], files=[path])
    (folder / 'own.py').unlink()
    with pytest.raises(ValueError, match='config not found: mine/own.py'):
        plan.make('mine', [], files=[path])
