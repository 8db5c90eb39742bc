"""Records to boards: what counts, what is said of it, and that every format says the same."""

import csv
import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip('scipy.stats')

import synthetic as made_up  # noqa: E402

from mmattn.leaderboard import judge, packs
from mmattn.leaderboard.board import commands  # noqa: E402
from mmattn.leaderboard.build import boards  # noqa: E402
from mmattn.leaderboard.collect import collect  # noqa: E402
from mmattn.leaderboard.expected import fitting  # noqa: E402
from mmattn.leaderboard.render import number, render, show  # noqa: E402
from mmattn.leaderboard.sources import Folder  # noqa: E402
from mmattn.papers import alternatives, entries, load  # noqa: E402
from mmattn.papers.metrics import Metric, metrics_of  # noqa: E402

BARE = 'cat/resnet50_8xb32_in1k.py'
CAT = 'cat/resnet50-cat-r16_8xb32_in1k.py'
CIFAR = 'cat/resnet50_1xb128_cifar100.py'
TOOL = Path(__file__).parents[2] / 'tools' / 'leaderboard.py'


def top(top1, top5=93.0):
    return {'accuracy/top1': top1, 'accuracy/top5': top5}


def one(root, table=4, paper='cat', **kwargs):
    return boards(paper, [table], [Folder(root)], **kwargs)[0]


def row_of(board, config, alternatives=()):
    return next(
        row for row in board.rows if (row.config, row.alternatives) == (config, alternatives)
    )


def rewrite(path, **changes):
    """A record changed behind the back of what writes records."""
    found = json.loads(path.read_text())
    found.update(changes)
    path.write_text(json.dumps(found))


# ------------------------------------------------------------------------------------------ metrics


def test_every_trained_column_of_the_papers_is_read():
    for paper in ('cat', 'drtam'):
        for table in load(paper).values():
            metrics = metrics_of(table)
            assert set(metrics) == set(table['metrics']) - {'params', 'gflops', 'gmac'}
            assert set(metrics) <= set(judge.MARGINS)


@pytest.mark.parametrize(
    'paper, table, column, evaluation, value',
    [
        ('cat', 1, 'AP', {'pascal_voc/AP': 0.5047}, 50.47),
        ('cat', 2, 'APs', {'coco/bbox_mAP_s': 0.18, 'coco/bbox_mAP': 0.3}, 18.0),
        ('cat', 3, 'top1_error', {'accuracy/top1': 78.5}, 21.5),
        ('cat', 4, 'top5', {'accuracy/top5': 92.5}, 92.5),
        ('cat', 5, 'AP50', {'coco/bbox_mAP_50': 0.6, 'coco/segm_mAP_50': 0.55}, 55.0),
        ('drtam', 7, 'mIoU', {'mIoU': 67.68}, 67.68),
        ('cat', 2, 'APs', {'coco/bbox_mAP_s': -1.0}, None),
        ('cat', 2, 'APs', {}, None),
        ('cat', 2, 'APs', {'coco/bbox_mAP_s': float('nan')}, None),
        ('cat', 2, 'APs', {'coco/bbox_mAP_s': True}, None),
    ],
)
def test_a_columns_value(paper, table, column, evaluation, value):
    found = metrics_of(load(paper)[table])[column].read(evaluation)
    assert found is None if value is None else found == pytest.approx(value)


def test_steps():
    steps = {
        (paper, number): {name: metric.step for name, metric in metrics_of(table).items()}
        for paper in ('cat', 'drtam')
        for number, table in load(paper).items()
    }
    assert steps['cat', 1]['AP'] == 0 and steps['cat', 2]['AP'] == 0.1
    assert steps['cat', 3]['top1_error'] == pytest.approx(0.01)
    assert steps['cat', 4]['top1'] == pytest.approx(0.002) == steps['drtam', 1]['top1']
    assert steps['drtam', 7]['mIoU'] == 0.01


def test_an_unknown_column():
    table = dict(task='object-detection', dataset='VOC', metrics=['APs'])
    with pytest.raises(ValueError, match='has the columns AP, AP50, AP75, params'):
        metrics_of(table)
    assert Metric('top1', 'k').sign == 1 and Metric('top1_error', 'k', error=True).sign == -1


# ----------------------------------------------------------------------------------- what counts


def test_a_row_of_three_seeds(tmp_path):
    for seed, value in enumerate((75.4, 75.5, 75.6)):
        made_up.save(tmp_path, made_up.record(BARE, seed, top(value)))
    board = one(tmp_path)
    row = row_of(board, BARE)
    assert row.cells['top1'].ours == {0: 75.4, 1: 75.5, 2: 75.6}
    assert row.cells['top1'].verdict.mean == pytest.approx(75.5)
    assert row.cells['top1'].paper == row.paper['top1'] == entries('cat', 4)[0].values['top1']
    assert row.state == '3 done' and not board.faults and not row.notes
    other = row_of(board, CAT)
    assert other.state == 'missing' and other.cells['top1'].verdict.word == judge.NOT_RUN
    assert other.cells['top1'].gain is None


def test_the_checkpoint_that_the_table_counts(tmp_path):
    """The best for classification, the last for detection; the other one is shown beside it."""
    best = made_up.record(BARE, 0, top(75.0), evaluations=3)
    best['evaluations'][1]['metrics'] = top(76.0)
    best['final'].update(best=top(76.0), best_epoch=best['evaluations'][1]['epoch'])
    made_up.save(tmp_path, best)
    cell = row_of(one(tmp_path), BARE).cells['top1']
    assert (cell.ours, cell.other) == ({0: 76.0}, {0: 75.0})
    config = entries('cat', 1)[0].config
    last = made_up.record(config, 0, {f'pascal_voc/{k}': 0.5 for k in ('AP', 'AP50', 'AP75')})
    better = {key: 0.6 for key in last['final']['last']}
    last['evaluations'][0]['metrics'] = last['final']['best'] = better
    last['final']['best_epoch'] = last['evaluations'][0]['epoch']
    made_up.save(tmp_path, last)
    cell = row_of(one(tmp_path, table=1), config).cells['AP']
    assert (cell.ours, cell.other) == ({0: 50.0}, {0: 60.0})


@pytest.mark.parametrize('state', ['running', 'stopped', 'failed'])
def test_a_run_that_is_not_done_is_shown_and_not_counted(tmp_path, state):
    for seed in (0, 1):
        made_up.save(tmp_path, made_up.record(BARE, seed, top(75 + seed)))
    half = made_up.record(BARE, 2, top(99.0), state=state, final=None, checkpoint=None)
    half['evaluations'] = half['evaluations'][:1]
    half['progress'] = dict(epoch=43, iter=43, max_iters=100, loss=1.0, at=1.0)
    path = made_up.save(tmp_path, half)
    (path.parent / 'start').mkdir()
    (path.parent / 'start' / 'start.log').write_text('begun\nthe <last> line\n')
    row = row_of(one(tmp_path), BARE)
    assert row.cells['top1'].ours == {0: 75, 1: 76}
    assert row.state == f'2 done, 1 {state}' + ('' if state == 'failed' else ' (43 %)')
    lines = '' if state == 'running' else 'begun\nthe <last> line'
    assert next(run for run in row.runs if run.seed == 2).last_lines == lines


@pytest.mark.parametrize(
    'key, value, found',
    [
        ('optim_wrapper.optimizer.lr', 0.3, 'optim_wrapper.optimizer.lr'),
        ('train_cfg.max_epochs', 1, 'train_cfg.max_epochs'),
        ('model.backbone.depth', 101, 'model.backbone.depth'),
        ('load_from', 'weights.pth', 'load_from'),
    ],
)
def test_another_config_is_modified_with_its_keys(tmp_path, key, value, found):
    made_up.save(tmp_path, made_up.record(BARE, 0, top(75.0)))
    other = made_up.record(BARE, 1, top(99.0))
    config = inner = json.loads(other['config_text'])
    *parts, last = key.split('.')
    for part in parts:
        inner = inner[part]
    inner[last] = value
    other['config_text'] = json.dumps(config)
    other['config_sha256'] = hashlib.sha256(other['config_text'].encode()).hexdigest()
    made_up.save(tmp_path, other)
    row = row_of(one(tmp_path), BARE)
    assert row.cells['top1'].ours == {0: 75.0}
    assert row.state == '1 done, 1 modified' and row.notes == [f'seed 1 modified: {found}']


def test_what_runs_may_differ_in(tmp_path):
    """As many images a step on fewer GPUs is a deviation; other batches and rates are modified."""
    fewer = made_up.record(BARE, 0, top(75.0), gpus=1, processes=1)
    config = json.loads(fewer['config_text'])
    config['train_dataloader']['batch_size'] = 256
    config['env_cfg'] = {'cudnn_benchmark': True}
    fewer['config_text'] = json.dumps(config)
    fewer['config_sha256'] = hashlib.sha256(fewer['config_text'].encode()).hexdigest()
    made_up.save(tmp_path, fewer)
    made_up.save(tmp_path, made_up.record(BARE, 1, top(99.0), batch=32))
    made_up.save(tmp_path, made_up.record(BARE, 2, top(99.0), lr=0.5))
    made_up.save(tmp_path, made_up.record(BARE, 3, top(76.0), commit='other', diff_sha256='d'))
    row = row_of(one(tmp_path), BARE)
    assert row.cells['top1'].ours == {0: 75.0, 3: 76.0}
    assert row.notes == [
        'seed 0: 1 GPU for 8',
        'seed 1 modified: batch 32 for 256',
        'seed 2 modified: rate 0.5 for 0.1',
        'seed 3: uncommitted changes',
        'seeds of 2 commits',
    ]


def broken(kind):
    """(how to break a record's file, what is said of it)"""

    def moved(path):
        path.parent.rename(path.parent.with_name('seed7'))

    def tampered(path):
        found = json.loads(path.read_text())
        found['final']['last']['accuracy/top1'] = 99.0
        path.write_text(json.dumps(found))

    def best(path):
        found = json.loads(path.read_text())
        found['final']['best']['accuracy/top1'] = 99.0
        path.write_text(json.dumps(found))

    def half(path):
        path.rename(path.with_name('record.json.tmp'))

    def linked(path):
        moved = path.with_name('elsewhere')
        path.rename(moved)
        path.symlink_to(moved)

    return {
        'truncated': (lambda path: path.write_text(path.read_text()[:-200]), 'truncated'),
        'empty': (lambda path: path.write_text(''), 'truncated'),
        'binary': (lambda path: path.write_bytes(b'\xff\x00'), 'truncated'),
        'list': (lambda path: path.write_text('[]'), 'must have the keys'),
        'nan': (lambda path: path.write_text(path.read_text().replace('75.0', 'NaN')), 'NaN'),
        'deep': (lambda path: path.write_text('[' * 100000), 'truncated'),
        'twice': (lambda path: path.write_text('{"a": 1, "a": 2}'), 'a key is there twice'),
        'moved': (moved, 'not at its place, which is cat/resnet50_8xb32_in1k/seed0/record.json'),
        'final': (tampered, 'tampered with: final.last is not the last evaluation'),
        'best': (best, 'tampered with: final.best is not the evaluation'),
        'text': (lambda path: rewrite(path, config_text='{}'), 'config_sha256 is not the hash'),
        'half': (half, 'half-written'),
        'linked': (linked, 'truncated'),
        'row': (lambda path: rewrite(path, config='cat/mine.py'), "foreign: 'cat/mine.py' is in"),
        'up': (lambda path: rewrite(path, config='../x.py'), "foreign: '../x.py' is in no table"),
        'names': (lambda path: rewrite(path, alternatives=['msra']), 'not at its place'),
        'nothing': (lambda path: rewrite(path, evaluations=[]), 'says done, without evaluations'),
        'version': (lambda path: rewrite(path, version=2), 'version must be 1'),
        'seed': (lambda path: rewrite(path, seed=-1), 'not at its place'),
        'kind': (lambda path: rewrite(path, seed='0'), 'seed must be of int'),
    }[kind]


@pytest.mark.parametrize(
    'kind',
    ['truncated', 'empty', 'binary', 'list', 'nan', 'deep', 'twice', 'moved', 'final', 'best']
    + ['text', 'half', 'linked', 'row', 'up', 'names', 'nothing', 'version', 'seed', 'kind'],
)
def test_what_is_no_record_is_named_and_not_counted(tmp_path, kind):
    breaks, words = broken(kind)
    path = made_up.save(tmp_path, made_up.record(BARE, 0, top(75.0)))
    made_up.save(tmp_path, made_up.record(BARE, 1, top(76.0)))
    breaks(path)
    board = one(tmp_path)
    assert row_of(board, BARE).cells['top1'].ours == {1: 76.0}
    assert len(board.faults) == 1 and words in board.faults[0].reason
    assert str(tmp_path) in board.faults[0].place


def test_evaluations_out_of_order(tmp_path):
    found = made_up.record(BARE, 0, top(75.0))
    found['evaluations'][0]['iter'] = 10**9
    made_up.save(tmp_path, found)
    assert 'not in order' in collect([Folder(tmp_path)])[1][0].reason


def test_the_same_run_twice(tmp_path):
    a, b = tmp_path / 'a', tmp_path / 'b'
    for root in (a, b):
        made_up.save(root, made_up.record(BARE, 0, top(75.0)))
        made_up.save(root, made_up.record(BARE, 1, top(75.5 if root == a else 80.0)))
    board = boards('cat', [4], [Folder(a), Folder(b)])[0]
    # One record twice counts once; two records of one seed are a choice that nobody should make.
    assert row_of(board, BARE).cells['top1'].ours == {0: 75.0}
    reasons = [fault.reason for fault in board.faults]
    assert len(reasons) == 3 and sum('counted once' in reason for reason in reasons) == 1
    assert sum('another record: none counts' in reason for reason in reasons) == 2


def test_two_seeds_with_the_same_weights(tmp_path):
    first = made_up.record(BARE, 0, top(75.0))
    made_up.save(tmp_path, first)
    made_up.save(tmp_path, made_up.record(BARE, 1, top(75.0), checkpoint=first['checkpoint']))
    made_up.save(tmp_path, made_up.record(BARE, 2, top(75.0)))
    board = one(tmp_path)
    assert row_of(board, BARE).cells['top1'].ours == {2: 75.0}
    assert all('the same weights as' in fault.reason for fault in board.faults)
    assert len(board.faults) == 2


def test_missing_seeds_are_said(tmp_path):
    made_up.save(tmp_path, made_up.record(BARE, 0, top(75.0)))
    made_up.save(tmp_path, made_up.record(CAT, 2, top(75.0)))
    board = one(tmp_path)
    assert row_of(board, BARE).notes == ['seeds missing: 2']
    assert row_of(board, CAT).notes == ['seeds missing: 0']
    assert row_of(one(tmp_path, seeds=3), BARE).notes == ['seeds missing: 1, 2']


def test_the_alternatives_of_a_row_are_those_of_trainings():
    for config in {entry.config for entry in entries()}:
        assert set(fitting(config)) == set(alternatives.of_row(config))


# --------------------------------------------------------------------------------------- verdicts


def test_errors_are_fewer_where_ours_is_better(tmp_path):
    paper = entries('cat', 3)[0].values['top1_error']
    for seed in range(3):
        made_up.save(tmp_path, made_up.record(CIFAR, seed, top(100 - paper + 2 + 0.01 * seed)))
    cell = row_of(one(tmp_path, table=3), CIFAR).cells['top1_error']
    assert cell.verdict.word == judge.LOWER and cell.better
    assert 'lower (fewer errors)' in render([one(tmp_path, table=3)], 'markdown').replace('\\', '')


def test_fewer_errors_are_a_gain(tmp_path):
    gated = 'cat/resnet50-cat-r16_1xb128_cifar100.py'
    for config, mean in ((CIFAR, 77.0), (gated, 79.0)):
        for seed in range(2):
            made_up.save(tmp_path, made_up.record(config, seed, top(mean + seed / 10)))
    board = one(tmp_path, table=3)
    cell, base = (row_of(board, config).cells['top1_error'] for config in (gated, CIFAR))
    assert cell.gain.mean == pytest.approx(2)
    assert cell.gain.paper == pytest.approx(base.paper - cell.paper) and cell.gain.paper > 0


def test_gains_are_corrected_over_all_comparisons_of_the_table(tmp_path):
    for config, mean in ((BARE, 75.0), (CAT, 76.5)):
        for seed in range(3):
            made_up.save(
                tmp_path,
                made_up.record(config, seed, top(mean + 0.1 * seed, 93 + 0.1 * seed)),
            )
    board = one(tmp_path)
    cell = row_of(board, CAT).cells['top1']
    base = row_of(board, BARE).cells['top1']
    ours, theirs = [*cell.ours.values()], [*base.ours.values()]
    paper = cell.paper - base.paper
    alone = judge.gain(ours, theirs, paper, 0.3, paired=True, step=0.002)
    # 8 rows over 2 baselines, 2 metrics each: 16 comparisons, of which 2 were run
    assert cell.gain.p == pytest.approx(min(1, 16 * alone.p))
    assert cell.gain.paired and cell.gain.paper == pytest.approx(paper)
    assert base.gain is None


@pytest.mark.parametrize(
    'changes',
    [dict(commit='other'), dict(commit=None), dict(batch=None), dict(versions={'torch': '1'})]
    + [dict(pretrained=dict(config='x', seed=0, checkpoint_sha256='y')), dict(data_sha256='d')],
)
def test_runs_of_other_code_or_data_are_no_pairs(tmp_path, changes):
    for config, mean in ((BARE, 75.0), (CAT, 76.5)):
        for seed in range(2):
            more = changes if (config, seed) == (CAT, 1) else {}
            made_up.save(tmp_path, made_up.record(config, seed, top(mean + seed), **more))
    assert not row_of(one(tmp_path), CAT).cells['top1'].gain.paired


def test_an_alternative_is_a_row_of_its_own_over_its_own_baseline(tmp_path):
    for seed in range(2):
        made_up.save(tmp_path, made_up.record(BARE, seed, top(75.0 + 0.1 * seed)))
        for names, mean in (((), 76.0), (('cat-concat',), 77.0), (('zero-init-residual',), 78.0)):
            made_up.save(
                tmp_path,
                made_up.record(CAT, seed, top(mean + 0.1 * seed), alternatives=names),
            )
    board = one(tmp_path)
    found = {names: row_of(board, CAT, names).cells['top1'] for names in [(), ('cat-concat',)]}
    assert found[()].verdict.mean == pytest.approx(76.05)
    # `cat-concat` fits no bare network, so that the plain one is its baseline
    assert found['cat-concat',].gain.mean == pytest.approx(2)
    # `zero-init-residual` does, and the bare row was not trained with it
    assert row_of(board, CAT, ('zero-init-residual',)).cells['top1'].gain is None


def test_the_commands_of_a_row_name_all_its_alternatives_at_once(tmp_path):
    names = ('cat-concat', 'zero-init-residual')
    made_up.save(tmp_path, made_up.record(CAT, 0, top(75.0), alternatives=names))
    board = one(tmp_path)
    train, show_it = commands(board, row_of(board, CAT, names))
    # train.py takes the last --alternative of several
    assert train.split()[3:-2] == ['--alternative', *names]
    assert show_it == 'python tools/leaderboard.py cat 4'


def test_groups_without_a_bare_row_have_no_gains(tmp_path):
    for entry in entries('drtam', 3)[:2]:
        for seed in range(2):
            made_up.save(tmp_path, made_up.record(entry.config, seed, top(77 + seed)))
    board = one(tmp_path, table=3, paper='drtam')
    assert all(cell.gain is None for row in board.rows for cell in row.cells.values())


def test_what_waits_for_another_run_says_so(tmp_path):
    """A detector that starts from an ImageNet network, as soon as one of the table does."""
    bare, se, cat = (
        next(entry for entry in entries('cat', 1) if entry.method == method)
        for method in ('ResNet50', '+ SENet', '+ CAT')
    )
    values = {'pascal_voc/AP': 0.5, 'pascal_voc/AP50': 0.8, 'pascal_voc/AP75': 0.5}
    made_up.save(tmp_path, made_up.record(se.pretrained, 0, top(76)))
    made_up.save(tmp_path, made_up.record(se.pretrained, 1, top(76), state='running'))
    made_up.save(tmp_path, made_up.record(se.config, 0, values, ['pretrained']))
    board = one(tmp_path, table=1, seeds=3)
    row = row_of(board, se.config, ('pretrained',))
    assert row.state == '1 done, 2 waiting' and row.waiting == {1: se.pretrained, 2: se.pretrained}
    assert f'seeds that wait for {se.pretrained}: 1, 2' in row.notes
    assert row_of(board, cat.config, ('pretrained',)).state == '3 waiting'
    assert row_of(board, bare.config).state == 'missing'


def test_other_gates_wait_for_a_network_with_the_same(tmp_path):
    cat = next(entry for entry in entries('cat', 1) if entry.method == '+ CAT')
    names, values = ('cat-concat', 'pretrained'), {'pascal_voc/AP': 0.5, 'pascal_voc/AP50': 0.8}
    made_up.save(tmp_path, made_up.record(cat.pretrained, 1, top(76)))  # of the gates as printed
    made_up.save(tmp_path, made_up.record(cat.pretrained, 2, top(76), names[:1]))
    made_up.save(tmp_path, made_up.record(cat.config, 0, values, names))
    start = cat.pretrained.replace('.py', '+cat-concat.py')
    assert row_of(one(tmp_path, table=1, seeds=3), cat.config, names).waiting == {1: start}


@pytest.fixture
def alone(tmp_path):
    """A table that no paper has, of one seed."""
    path = own_rows(tmp_path / 'own')
    rows = f'  - {{group: A, method: bare, config: {BARE}}}\n'
    rows += f'  - {{group: A, method: + CAT, config: {CAT}}}\n'
    path.write_text(
        'tables:\n- id: 2\n  caption: Mine.\n  task: image-classification\n  dataset: ImageNet-1K\n'
        f'  metrics: [top1]\n  checkpoint: last\n  rows:\n{rows}'
    )
    for config in (BARE, CAT):
        made_up.save(tmp_path / 'runs', made_up.record(config, 0, top(75.0)))
    return boards('mine', [], [Folder(tmp_path / 'runs')], files=[path])[0]


def test_one_seed_of_a_table_of_ones_own_has_no_verdict(alone):
    words = [row.cells['top1'].gain_word for row in alone.rows]
    assert words == ['baseline', 'one seed: no verdict'] and not alone.has_paper
    text = render([alone], 'markdown')
    assert 'one seed: no verdict' in text and 'Paper' not in text and 'equivalent' not in text
    assert f'leaderboard.py mine 2 --tables {alone.files[0]}' in render([alone], 'html')


def test_the_hash_of_the_checkpoint_that_counts(tmp_path):
    """The best one's where a table counts it and the run has kept it, else the last one's."""
    best = {'name': 'best.pth', 'sha256': 'b' * 64, 'weights_sha256': 'c' * 64}
    made_up.save(tmp_path, made_up.record(BARE, 0, top(75), best_checkpoint=best))
    made_up.save(tmp_path, made_up.record(CAT, 0, top(76)))
    last = row_of(one(tmp_path), CAT).runs[0].record['checkpoint']['sha256']
    page = render([one(tmp_path)], 'html')
    assert f'best <code title="{"b" * 64}">' in page and f'last <code title="{last}">' in page
    data = json.loads(render([one(tmp_path)], 'json'))
    assert data['tables'][0]['rows'][0]['runs'][0]['best_checkpoint'] == best


def test_quoted_rows_say_so(tmp_path):
    assert 'the paper quotes it from' in render([one(tmp_path)], 'markdown')
    assert row_of(one(tmp_path), BARE).quoted


def own_rows(folder):
    (folder / 'mine').mkdir(parents=True)
    shutil.copy(Path(entries_root()) / BARE, folder / 'mine' / 'resnet50-mine_8xb32_in1k.py')
    text = (folder / 'mine' / 'resnet50-mine_8xb32_in1k.py').read_text()
    text = text.replace("'../", f"'{entries_root()}/").replace("'./", f"'{entries_root()}/cat/")
    (folder / 'mine' / 'resnet50-mine_8xb32_in1k.py').write_text(text)
    path = folder / 'mine' / 'leaderboard.yml'
    path.write_text(
        'tables:\n- joins: cat 4\n  rows:\n  - group: ResNet50\n    method: + Mine\n'
        '    config: mine/resnet50-mine_8xb32_in1k.py\n'
    )
    return path


def entries_root():
    from mmattn.papers import config_root

    return config_root()


def test_a_gate_of_ones_own_joins_the_table(tmp_path):
    own = own_rows(tmp_path / 'own')
    root = tmp_path / 'runs'
    for seed in range(3):
        made_up.save(root, made_up.record(BARE, seed, top(75.0 + 0.01 * seed)))
        mine = made_up.record(BARE, seed, top(77.0 + 0.01 * seed))
        mine.update(config='mine/resnet50-mine_8xb32_in1k.py')
        mine['checkpoint']['weights_sha256'] += 'mine'
        made_up.save(root, mine)
    assert 'foreign' in one(root).faults[0].reason
    board = one(root, files=[own])
    row = row_of(board, 'mine/resnet50-mine_8xb32_in1k.py')
    cell = row.cells['top1']
    assert row.own and cell.paper is None and cell.verdict.word == 'no paper has it'
    assert cell.gain.mean == pytest.approx(2) and cell.gain.paper is None
    assert cell.gain_word == 'gain' and cell.gain.power is None
    for style in ('markdown', 'csv', 'json', 'html'):
        assert 'Mine' in render([board], style)


def test_a_table_of_ones_own(tmp_path, capsys):
    """No paper has it; its rows are compared with each other as a paper's are."""
    path = own_rows(tmp_path / 'own')
    mine = 'mine/resnet50-mine_8xb32_in1k.py'
    rows = f'  - {{group: A, method: bare, config: {BARE}}}\n'
    rows += f'  - {{group: A, method: + Mine, config: {mine}, pretrained: {BARE}}}\n'
    path.write_text(
        'tables:\n- id: 2\n  caption: Mine.\n  task: image-classification\n  dataset: ImageNet-1K\n'
        f'  metrics: [top1]\n  checkpoint: last\n  rows:\n{rows}'
    )
    root = tmp_path / 'runs'
    started = started_config(tmp_path / 'own' / mine)
    for seed in range(3):
        made_up.save(root, made_up.record(BARE, seed, top(75.0 + 0.01 * seed)))
        found = made_up.record(BARE, seed, top(77.0 + 0.01 * seed), **started)
        found.update(config=mine, alternatives=['pretrained'])
        found['checkpoint']['weights_sha256'] += 'mine'
        made_up.save(root, found)
    board = boards('mine', [], [Folder(root)], files=[path])[0]
    assert (board.title, board.faults) == ('MINE, Table 2', [])
    row = row_of(board, mine, ('pretrained',))
    assert row.state == '3 done' and row.cells['top1'].verdict.word == 'no paper has it'
    for style in ('markdown', 'csv', 'json', 'html'):
        assert 'Mine' in render([board], style)
    assert tool('mine', '--tables', path, '--work-dir', root, '--format', 'csv') == 0
    assert 'no paper has it' in capsys.readouterr().out


def started_config(path):
    """The config of a record of a user's row that starts from another's checkpoint."""
    from mmattn.papers.plan import expected
    from mmattn.runs.record import digest, resolved

    text = resolved(expected(path, ['pretrained']))
    return dict(config_text=text, config_sha256=digest(text))


# ---------------------------------------------------------------------------------------- formats


@pytest.fixture
def full(tmp_path):
    made_up.near_paper('cat', 4, 3, tmp_path)
    return one(tmp_path)


def test_all_formats_say_the_same(full):
    lines = [*csv.DictReader(io.StringIO(render([full], 'csv')))]
    data = json.loads(render([full], 'json'))['tables'][0]
    cells = [(row, name, cell) for row in data['rows'] for name, cell in row['metrics'].items()]
    assert len(lines) == len(cells) == 20
    markdown, page = render([full], 'markdown'), render([full], 'html')
    for line, (row, name, cell) in zip(lines, cells, strict=True):
        assert (line['config'], line['metric']) == (row['config'], name)
        assert float(line['paper']) == cell['paper']
        assert float(line['ours_mean']) == cell['ours']['mean']
        assert line['verdict'] == cell['verdict']
        shown = f'{cell["ours"]["mean"]:.2f} ± {cell["ours"]["std"]:.2f}'
        assert shown in markdown and shown in page


def test_an_end_of_an_interval_keeps_its_sign():
    assert number(-0.0004, sign=True) == '−0.0004' and number(0.006, sign=True) == '+0.01'
    assert number(-0.0004) == '0.00' and number(0, sign=True) == '+0.00'


def test_papers_numbers_and_ours_share_no_field(full):
    """Were the paper another, only what is called paper's, or compares the two, would change."""
    cell = json.loads(render([full], 'json'))['tables'][0]['rows'][0]['metrics']['top1']
    assert set(cell) == {
        *('paper', 'ours', 'difference', 'verdict', 'more_seeds', 'gain'),
    }
    assert isinstance(cell['paper'], float)
    assert set(cell['ours']['values']) == {'0', '1', '2'}


def test_the_terminal_obeys_nothing_that_it_prints(tmp_path):
    from rich.console import Console

    made_up.save(tmp_path, made_up.record(BARE, 0, top(75.0)))
    bad = tmp_path / 'cat' / '[red]\x1b[31m\n' / 'seed0'
    bad.mkdir(parents=True)
    (bad / 'record.json').write_text('{')
    out = io.StringIO()
    show([one(tmp_path)], Console(file=out, width=200, force_terminal=True, color_system=None))
    assert '[red] [31m' in out.getvalue() and '\x1b[31m' not in out.getvalue()


def test_what_records_hold_is_escaped(tmp_path):
    evil = '<script>alert(1)</script>"\'&'
    found = made_up.record(
        BARE, 0, top(75.0), commit=evil, versions={evil: evil}, machines=[evil], diff_sha256=evil
    )
    found['pretrained'] = dict(config=evil, seed=evil, checkpoint_sha256=evil)
    text = json.loads(found['config_text'])
    text['model'] = {evil: evil}
    found['config_text'] = json.dumps(text)
    found['config_sha256'] = hashlib.sha256(found['config_text'].encode()).hexdigest()
    made_up.save(tmp_path, found)
    failed = made_up.record(BARE, 1, top(75.0), state='failed', final=None, checkpoint=None)
    path = made_up.save(tmp_path, failed)
    (path.parent / 'start').mkdir()
    (path.parent / 'start' / 'a.log').write_text(evil)
    place = tmp_path / 'cat' / evil.replace('/', '_') / 'seed0' / 'record.json'
    place.parent.mkdir(parents=True)
    place.write_text(evil)
    page = render([one(tmp_path)], 'html')
    assert page.count('<script>') == 1 and 'alert(1)</script>' not in page
    assert page.count('&lt;script&gt;alert(1)') > 4
    assert '<script>alert' not in render([one(tmp_path)], 'markdown').replace('\\<', '')
    assert 'src=' not in page and 'http://' not in page.replace('http://www.w3.org/2000/svg', '')
    assert 'https://' not in page


def test_spreadsheets_see_no_formula(tmp_path):
    text = render([one(tmp_path)], 'csv')
    for line in csv.DictReader(io.StringIO(text)):
        assert line['method'][0] not in '=+-@'


def test_an_unknown_format(full):
    with pytest.raises(ValueError, match="style must be one of .*, got 'pdf'"):
        render([full], 'pdf')


# ------------------------------------------------------------------------------------------ packs


def test_packs_of_two_labs_are_one_leaderboard(tmp_path):
    for seed in range(4):
        made_up.save(tmp_path / f'lab{seed % 2}', made_up.record(BARE, seed, top(75 + seed / 10)))
    log = tmp_path / 'lab0/cat/resnet50_8xb32_in1k/seed0/start/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{}\n')
    (log.parents[2] / 'epoch_1.pth').write_bytes(b'weights')
    made = [tmp_path / f'{lab}.tar.gz' for lab in (0, 1)]
    assert [packs.export(tmp_path / f'lab{lab}', made[lab]) for lab in (0, 1)] == [2, 2]
    with tarfile.open(made[0]) as pack:
        names = pack.getnames()
    assert f'{log.relative_to(tmp_path / "lab0")}' in names
    assert not any(name.endswith('.pth') for name in names)
    board = boards('cat', [4], [packs.Pack(path) for path in made])[0]
    assert row_of(board, BARE).cells['top1'].ours == {0: 75, 1: 75.1, 2: 75.2, 3: 75.3}
    assert not board.faults
    before = made[0].read_bytes()
    packs.export(tmp_path / 'lab0', made[0])
    assert made[0].read_bytes() == before


def test_a_pack_is_never_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open('evil.tar.gz', 'w:gz') as pack:
        for name in ('../record.json', '/tmp/record.json', 'cat/a/seed0/record.json'):
            member = tarfile.TarInfo(name)
            member.size = 2
            pack.addfile(member, io.BytesIO(b'{}'))
        link = tarfile.TarInfo('cat/b/seed0/record.json')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        pack.addfile(link)
    before = sorted(tmp_path.parent.rglob('*'))
    runs, faults = collect([packs.Pack('evil.tar.gz')])
    assert not runs and len(faults) == 3
    assert sorted(tmp_path.parent.rglob('*')) == before


@pytest.mark.parametrize('damage', [b'', b'no pack', 'cut', 'changed'])
def test_a_damaged_pack(tmp_path, damage):
    made_up.save(tmp_path / 'runs', made_up.record(BARE, 0, top(75.0)))
    path = tmp_path / 'pack.tar.gz'
    packs.export(tmp_path / 'runs', path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damages = {
        'cut': whole[:-300],
        'changed': whole[:middle] + bytes(40) + whole[middle + 40 :],
    }
    path.write_bytes(damages.get(damage, damage))
    with pytest.raises(packs.PackError, match='is no pack'):
        collect([packs.Pack(path)])


def test_no_byte_of_a_packs_data_changes_unseen(tmp_path):
    made_up.save(tmp_path / 'runs', made_up.record(BARE, 0, top(75.0)))
    path = tmp_path / 'pack.tar.gz'
    packs.export(tmp_path / 'runs', path)
    whole = path.read_bytes()
    for at in range(20, len(whole), len(whole) // 60):  # past the head, which has a time and flags
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(packs.PackError, match='is no pack'):
            collect([packs.Pack(path)])


def logged(root, found):
    """The scalars that mmengine would have written for a record."""
    path = made_up.save(root, found)
    scalars = path.parent / 'start' / 'vis_data' / 'start.json'
    scalars.parent.mkdir(parents=True)
    lines = [{'lr': 0.1, 'loss': 1.0, 'step': 1}]
    lines += [dict(e['metrics'], step=e['epoch'] or e['iter']) for e in found['evaluations']]
    scalars.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path, scalars


def test_verify(tmp_path):
    path, scalars = logged(tmp_path, made_up.record(BARE, 0, top(75.0)))

    def faults():
        runs, found = collect([Folder(tmp_path)])
        assert not found
        return [fault.reason for fault in packs.verify(tmp_path, runs)]

    assert faults() == []
    # a record in which all numbers were raised together is consistent, but not what was logged
    better = made_up.record(BARE, 0, top(76.0))
    made_up.save(tmp_path, better)
    assert len(faults()) == 3 and faults()[0].startswith('no log has the evaluation of epoch')
    made_up.save(tmp_path, made_up.record(BARE, 0, top(75.0)))
    (path.parent / 'last.pth').write_bytes(b'other weights')
    assert faults() == ['last.pth has another hash']
    scalars.unlink()
    assert faults() == ['no log says what was evaluated']


def test_verify_what_a_training_wrote(tmp_path, monkeypatch):
    """Against mmengine's own logs, of a small training in the place of a row's."""
    pytest.importorskip('mmengine')
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'test_runs'))
    import test_record

    folder = tmp_path / 'cat' / 'resnet50_1xb128_cifar100' / 'seed1'
    backend = dict(type='Visualizer', name='logged', vis_backends=[dict(type='LocalVisBackend')])
    cfg = test_record.config(folder, visualizer=backend)
    cfg.default_hooks.logger = dict(type='LoggerHook')
    test_record.toy.runner(cfg.to_dict()).train()
    runs, faults = collect([Folder(tmp_path)])
    assert not faults and runs[0].state == 'done' and runs[0].modified
    assert packs.verify(tmp_path, runs) == []
    found = json.loads((folder / 'record.json').read_text())
    for item in (*found['evaluations'], {'metrics': found['final']['last']}):
        item['metrics']['score'] += 0.001
    found['final']['best'] = found['evaluations'][found['final']['best_epoch'] - 1]['metrics']
    rewrite(folder / 'record.json', **found)
    runs, faults = collect([Folder(tmp_path)])
    assert not faults and len(packs.verify(tmp_path, runs)) == 3


@pytest.mark.parametrize('config', [BARE, CIFAR, 'drtam/mask-rcnn_r50-ca-r32_fpn_4xb4-1x_coco.py'])
def test_a_rows_own_training_is_not_modified(tmp_path, monkeypatch, config):
    """What train.py would write of a row, with the data elsewhere and 3 for the seed."""
    pytest.importorskip('mmpretrain')
    pytest.importorskip('mmdet')
    from mmattn.runs import cli
    from mmattn.runs.record import digest, resolved

    spec = importlib.util.spec_from_file_location('train_tool', TOOL.with_name('train.py'))
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    words = ['train.py', str(entries_root() / config), '--seed', '3', '--record']
    words += ['--data-root', str(tmp_path), '--work-dir', str(tmp_path / 'run')]
    monkeypatch.setattr('sys.argv', words)
    args = train.parse_args()
    cfg = cli.load_config(args)
    train.merge_args(cfg, args)
    text = resolved(cfg, str(tmp_path))
    values = top(75.0) if 'resnet50_' in config else {'coco/bbox_mAP': 0.4}
    found = made_up.record(config, 3, values, config_text=text, config_sha256=digest(text))
    made_up.save(tmp_path / 'runs', found)
    runs, faults = collect([Folder(tmp_path / 'runs')])
    assert not faults and runs[0].modified == () and runs[0].counts


# --------------------------------------------------------------------------------- command line


def tool(*args):
    spec = importlib.util.spec_from_file_location('leaderboard', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(arg) for arg in args])


def test_the_tool(tmp_path, capsys):
    made_up.save(tmp_path / 'runs', made_up.record(BARE, 0, top(75.0)))
    work = ('--work-dir', tmp_path / 'runs')
    assert tool('cat', 4, *work) == 0
    assert 'CAT, Table 4' in capsys.readouterr().out
    for name, start in (('a.html', '<!doctype'), ('a.md', '###'), ('a.csv', 'paper_name')):
        assert tool('cat', 4, *work, '--out', tmp_path / 'new' / name) == 0
        assert (tmp_path / 'new' / name).read_text().startswith(start)
    assert tool('cat', 4, *work, '--format', 'json') == 0
    capsys.readouterr()
    assert tool('cat', '--export', tmp_path / 'pack.tar.gz', *work) == 0
    assert '1 records' in capsys.readouterr().out
    merged = ('--work-dir', tmp_path / 'none', '--merge', tmp_path / 'pack.tar.gz')
    assert tool('cat', 4, *merged, '--format', 'csv') == 0
    assert '0:75.0' in capsys.readouterr().out
    assert tool('cat', '--verify', tmp_path / 'runs') == 1
    assert 'no log says what was evaluated' in capsys.readouterr().out


def test_the_tool_starts_without_torch_and_the_codebases(tmp_path):
    made_up.save(tmp_path, made_up.record(BARE, 0, top(75.4)))
    arguments = [str(TOOL), 'cat', '4', '--work-dir', str(tmp_path), '--out', f'{tmp_path}/a.html']
    code = (
        f'import runpy, sys; sys.argv = {arguments}\n'
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        'except SystemExit as end: assert end.code == 0\n'
        "slow = {'torch', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'scipy.stats'} & {*sys.modules}\n"
        'assert not slow, slow'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
    assert 'ResNet50' in (tmp_path / 'a.html').read_text()


@pytest.mark.parametrize(
    'args, words',
    [
        (('cat', '4', '--work-dir', '/no/such'), 'there is no folder /no/such'),
        (('cat', '4', '--merge', '/no/such'), '/no/such'),
        (('cat', '4', '--tables', '/no/such'), '/no/such: No such file'),
        (('dog',), "paper must be one of cat, drtam, got 'dog'"),
        (('cat', '9'), 'cat has the tables 1, 2, 3, 4, 5, 6, got 9'),
        (('cat', '--verify', '/no/such'), 'there is no folder /no/such'),
        (('cat', '--export', '/no/such/x', '--work-dir', '/no/such'), '/no/such'),
    ],
)
def test_the_tool_says_what_is_wrong_in_a_line(args, words, capsys):
    assert tool(*args) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1


@pytest.mark.parametrize(
    'args, words',
    [
        (('cat', '--seeds', '0'), 'must be 1 or more'),
        (('cat', '--format', 'terminal', '--out', 'x'), '--out takes the formats'),
    ],
)
def test_bad_arguments(args, words, capsys):
    with pytest.raises(SystemExit) as error:
        tool(*args)
    assert error.value.code == 2 and words in capsys.readouterr().err


# ---------------------------------------------------------------------------------- the page, seen

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
PROBE = """
<script>
const say = {};
const lines = () => [...document.querySelectorAll('table.results tbody tr')];
const seen = () => lines().filter(line => line.offsetParent !== null);
const input = (name, value) => {
  const control = document.querySelector(name);
  control.value = value;
  control.dispatchEvent(new Event('input'));
};
say.first = seen().length;
const plots = [...document.querySelectorAll('.plot svg')].filter(plot => !plot.closest('details'));
say.plots = plots.map(plot => Math.round(plot.getBoundingClientRect().height)).filter(Boolean);
input('.metric', '');
say.all = seen().length;
input('.search', 'resnet101 cat');
say.found = seen().map(line => line.cells[1].textContent);
input('.search', '');
input('.metric', 'top1');
const head = [...document.querySelectorAll('table.results thead th')]
  .find(head => head.textContent === 'Paper');
const column = head.cellIndex;
const numbers = () => seen().map(line => Number(line.cells[column].textContent));
head.querySelector('button').click();
say.up = numbers();
head.querySelector('button').click();
say.down = numbers();
say.sort = head.getAttribute('aria-sort');
const link = document.querySelector('table.results a');
location.hash = link.getAttribute('href');
setTimeout(() => {
  say.opened = document.getElementById(link.getAttribute('href').slice(1)).open;
  say.wide = document.documentElement.scrollWidth > innerWidth;
  document.body.textContent = 'SAID' + JSON.stringify(say) + 'SAID';
}, 200);
</script>
"""


def seen(path, size):
    """What a page's probe says in a browser, which has no error to log."""
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
    command += ['--enable-logging=stderr', '--virtual-time-budget=3000', f'--window-size={size}']
    command += ['--disable-background-networking', f'--user-data-dir={path.parent / "profile"}']
    found = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert 'CONSOLE' not in found.stderr
    return json.loads(found.stdout.split('SAID')[1])


@pytest.mark.skipif(CHROMIUM is None, reason='looking at the page needs chromium')
def test_the_page_of_a_table_of_ones_own_in_a_browser(alone, tmp_path):
    """No column of a paper's; it filters by the verdicts that it has."""
    path = tmp_path / 'page.html'
    probe = (
        PROBE.split('say.first')[0]
        + """
    const heads = [...document.querySelectorAll('table.results thead th')];
    say.heads = heads.map(head => head.textContent);
    input('.verdict', 'one seed: no verdict');
    say.found = seen().map(line => line.cells[1].textContent);
    const plots = [...document.querySelectorAll('.plot > svg')];
    say.plots = plots.filter(plot => plot.getBoundingClientRect().height > 50
                                     && !plot.closest('details')).length;
    document.body.textContent = 'SAID' + JSON.stringify(say) + 'SAID';
    </script>"""
    )
    path.write_text(render([alone], 'html').replace('</body>', f'{probe}</body>'), encoding='utf-8')
    said = seen(path, '1280,900')
    names = ['Network', 'Method', 'State', 'Metric', 'Ours', 'n', 'Gain', 'Verdict']
    assert said['heads'] == names and said['found'] == ['+ CAT'] and said['plots'] == 1


@pytest.mark.skipif(CHROMIUM is None, reason='looking at the page needs chromium')
@pytest.mark.parametrize('size', ['1280,900', '500,900'])
def test_the_page_in_a_browser(full, tmp_path, size):
    """No errors, nothing fetched, plots visible; the table sorts and filters, also on a phone."""
    path = tmp_path / 'page.html'
    path.write_text(render([full], 'html').replace('</body>', f'{PROBE}</body>'), encoding='utf-8')
    said = seen(path, size)
    assert (said['first'], said['all']) == (10, 20)
    assert len(said['plots']) == 2 and min(said['plots']) > 100
    assert said['found'] == ['+ CAT', '+ CAT']
    assert said['up'] == sorted(said['up']) and len(said['up']) == 10
    assert said['down'] == said['up'][::-1] and said['sort'] == 'descending'
    assert said['opened'] and not said['wide']
