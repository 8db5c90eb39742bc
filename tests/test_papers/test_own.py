"""Tables of a user's own, and rows that join a paper's: one form for what runs and is shown."""

import pytest
import yaml

from mmattn.papers import config_root, own, plan
from mmattn.papers.collect import Known

BARE = 'cat/resnet50_8xb32_in1k.py'
ROW = dict(group='ResNet50', method='+ Mine', config='mine/gate.py')
TABLE = dict(
    id=1,
    caption='Mine.',
    task='image-classification',
    dataset='ImageNet-1K',
    metrics=['top1'],
    checkpoint='best',
    rows=[dict(ROW, method='bare', config=BARE), ROW],
)


def write(folder, *tables, name='mine'):
    (folder / name).mkdir(parents=True)
    (folder / name / 'gate.py').write_text(f'_base_ = {str(config_root() / BARE)!r}\n')
    path = folder / name / 'tables.yml'
    path.write_text(yaml.safe_dump(dict(tables=list(tables))))
    return path


def test_rows_join_a_papers_table(tmp_path):
    path = write(tmp_path, dict(joins='cat 4', rows=[ROW]))
    (table,) = own.select('cat', [4], [path])
    (entry,) = table.joined
    assert (entry.paper, entry.table, entry.values) == ('cat', 4, {})
    assert entry.root_of(entry.config) == tmp_path
    assert len(table.entries) == 10 and all(e.near is None for e in table.entries)
    runs = plan.make('cat', [4], files=[path])
    assert len(runs) == 11 and runs[-1].path == tmp_path / 'mine' / 'gate.py'
    (run,) = plan.make('cat', [4], rows=['+ Mine'], files=[path])
    assert run.config == 'mine/gate.py' and run.rows == ('cat 4: ResNet50, + Mine',)
    # The next reader has the paper's rows alone.
    assert own.select('cat', [4])[0].joined == []


def test_a_table_of_ones_own_needs_no_paper(tmp_path):
    path = write(tmp_path, TABLE, dict(joins='cat 4', rows=[ROW]))
    (table,) = own.select('mine', [], [path])
    assert (table.paper, table.number, table.joined) == ('mine', 1, [])
    assert [entry.config for entry in table.entries] == [BARE, 'mine/gate.py']
    assert [entry.root_of(entry.config) for entry in table.entries] == [config_root(), tmp_path]
    assert [run.config for run in plan.make('mine', [1], files=[path])] == [BARE, 'mine/gate.py']
    # One file for both.
    assert len(own.select('cat', [4], [path])[0].joined) == 1


def test_printed_numbers_of_another_paper(tmp_path):
    row = dict(ROW, paper=dict(top1=77.5))
    path = write(tmp_path, dict(TABLE, rows=[row]))
    assert own.select('mine', [], [path])[0].entries[0].values == dict(top1=77.5)


def test_records_of_own_rows_are_known_and_what_they_start_from(tmp_path):
    path = write(tmp_path, dict(TABLE, rows=[dict(ROW, pretrained=BARE)]))
    known = Known.with_files([path])
    assert known.roots['mine/gate.py'] == tmp_path and known.roots[BARE] == config_root()
    assert known.fitting('mine/gate.py') == ('pretrained',)
    assert 'mine/gate.py' not in Known.of_papers().roots


@pytest.mark.parametrize(
    'item, words',
    [
        (dict(joins='cat 9', rows=[]), 'cat has the tables 1, 2, 3, 4, 5, 6, got 9'),
        (dict(joins='dog 4', rows=[]), 'joins must name a table of cat or drtam'),
        (dict(joins='cat 4', row=[]), 'has the keys joins and rows, got .*joins.*row'),
        (dict(joins='cat 4', rows=[{'group': 'a'}]), 'expected the keys .*config'),
        (dict(joins='cat 4', rows=[dict(ROW, config='../x/y.py')]), 'lie in the folder of configs'),
        (dict(joins='cat 4', rows=[dict(ROW, config='a/b/c.py')]), 'as mine/x.py for x.py beside'),
        (dict(joins='cat 4', rows=[dict(ROW, config='mine/none.py')]), 'config not found: mine/no'),
        (dict(joins='cat 4', rows=[dict(ROW, config=BARE)]), 'is a row of cat 4 already'),
        (dict(joins='cat 4', rows=[ROW, ROW]), 'is a row of cat 4 already'),
        (dict(TABLE, alternatives=[]), 'expected the keys'),
        (dict(TABLE, metrics=['AP']), "has the columns top1, .*, got 'AP'"),
        (dict(TABLE, rows=[dict(ROW, config={'a': 'b'})]), 'config must be of str'),
        (dict(TABLE, rows=[dict(ROW, paper={'top5': 1.0})]), 'has the metrics'),
        ([], 'a table or row must be of dict'),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, item, words):
    path = write(tmp_path, item)
    with pytest.raises(ValueError, match=words) as error:
        own.select('cat', [4], [path])
    assert '\n' not in str(error.value)


def test_files_that_are_none(tmp_path):
    path = tmp_path / 'x.yml'
    with pytest.raises(ValueError, match='x.yml: No such file'):
        own.read(path)
    for text, words in (
        ('{', 'no YAML'),
        ('a: 1', 'tables must be of list'),
        ('tables: 3', 'list'),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            own.read(path)


def test_papers_and_files_that_have_nothing_to_do_with_each_other(tmp_path):
    path = write(tmp_path, TABLE)
    with pytest.raises(ValueError, match='tables.yml has mine 1, nothing for cat'):
        own.select('cat', [], [path])
    with pytest.raises(ValueError, match='paper must be one of cat, drtam, got .mine.'):
        own.select('mine')
    with pytest.raises(ValueError, match='mine has the tables 1, got 2'):
        own.select('mine', [2], [path])
    with pytest.raises(ValueError, match='two tables are called mine 1'):
        own.select('mine', [], [path, write(tmp_path / 'other', TABLE)])


def test_names_of_the_papers_are_taken(tmp_path):
    path = write(tmp_path, dict(TABLE, rows=[dict(ROW, config=BARE)]), name='cat')
    with pytest.raises(ValueError, match='need a folder that is not called'):
        own.read(path)
    path.write_text(
        yaml.safe_dump(dict(tables=[dict(joins='cat 3', rows=[dict(ROW, config=BARE)])]))
    )
    (path.parent / BARE.split('/')[1]).write_text('x = 1\n')
    with pytest.raises(ValueError, match='is there twice'):
        own.read(path)
