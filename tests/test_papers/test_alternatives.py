"""What the papers' rows might have been: listed, merged, kept apart."""

import fnmatch
import inspect
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmattn import papers
from mmattn.papers import alternatives, tables
from mmattn.papers.alternatives import AlternativeError, Difference

ROOT = papers.config_root()
NAMES = sorted({item.name for item in alternatives.listed()})


def test_every_file_is_listed_and_says_what_it_is():
    there = sorted(path.stem for path in alternatives.folder().glob('*.py'))
    assert there == NAMES
    for name in NAMES:
        lines = (alternatives.folder() / f'{name}.py').read_text(encoding='utf-8').splitlines()
        assert lines[0].startswith('# ') and not any(line.startswith('_base_ =') for line in lines)
        assert max(map(len, lines)) <= 100, name


@pytest.mark.parametrize(
    'item', alternatives.listed(), ids=lambda item: f'{item.paper}{item.table}-{item.name}'
)
def test_each_changes_a_row_that_it_fits(item):
    assert item.configs
    for glob in item.rows:  # each for something
        assert fnmatch.filter([Path(path).name for path in item.configs], glob), glob
    assert item.changes and item.evidence.endswith('.') and not item.changes.endswith('.')
    assert alternatives.changes(item.configs[0], [item.name])


def test_what_a_run_reads_is_what_the_runner_takes():
    assert {*inspect.signature(Runner.__init__).parameters, 'custom_imports'} == alternatives.READ


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder of configs with one table and alternatives of its own."""
    rows = ''.join(
        f'   {{group: g, method: m{n}, config: cat/{n}.py, paper: {{AP: 1}}}},\n' for n in 'ab'
    )
    items = ''.join(
        f'   {{name: {name}, rows: {rows_}, changes: c, evidence: e}},\n'
        for name, rows_ in dict(
            low="'*'", high="'*'", wide="'*'", twice="'*'", only="'a*'", new='[a.py, b.py]'
        ).items()
    )
    head = 'caption: c, task: object-detection, dataset: d, metrics: [AP], checkpoint: last, '
    head += 'checkpoint_evidence: e, proven: p, platform: q'
    table = f'- {{id: 1, {head}, alternatives: [\n{items}   ], rows: [\n{rows}   ]}}'
    for paper in papers.PAPERS:
        (tmp_path / paper).mkdir()
        text = f'tables:\n{table}' if paper == 'cat' else 'tables: []'
        (tmp_path / paper / 'paper_tables.yml').write_text(text)
    (tmp_path / 'cat' / 'base.py').write_text(
        "optim_wrapper = dict(lr=1)\nmodel = dict(type='M', depth=50)\n"
        "custom_hooks = [dict(type='A', size=(2, 3))]\n"
    )
    for name in 'ab':
        (tmp_path / 'cat' / f'{name}.py').write_text(f"_base_ = './base.py'\nname = '{name}'\n")
    bodies = dict(
        low='rate = 0.5\noptim_wrapper = dict(lr=rate)',
        high='optim_wrapper = dict(lr=2)',
        wide='rate = 2\nmodel = dict(width=rate)',
        twice='optim_wrapper = dict(lr=_base_.optim_wrapper.lr * 2)',
        only="custom_hooks = [*_base_.custom_hooks, dict(type='B')]",
        new="model = dict(_delete_=True, type='N')",
    )
    (tmp_path / 'alternatives').mkdir()
    for name, body in bodies.items():
        (tmp_path / 'alternatives' / f'{name}.py').write_text(f'# {name}\n{body}\n')
    for module in (tables, alternatives):
        monkeypatch.setattr(module, 'config_root', lambda: tmp_path)
    caches = (tables.load, alternatives.listed)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_alternatives_are_merged_as_children(house):
    row = house / 'cat' / 'a.py'
    cfg = alternatives.combine(row, ['wide', 'twice', 'only', 'wide'])
    assert cfg.to_dict() == dict(
        optim_wrapper=dict(lr=2),
        name='a',
        rate=2,
        model=dict(type='M', depth=50, width=2),
        custom_hooks=[dict(type='A', size=(2, 3)), dict(type='B')],
    )
    assert Path(cfg.filename) == row.with_name('a+only+twice+wide.py')
    assert alternatives.combine(row, ['new']).model == dict(type='N')
    assert alternatives.combine(row, []).to_dict() == Config.fromfile(row).to_dict()


def test_a_row_is_known_by_any_path(house, monkeypatch):
    monkeypatch.chdir(house / 'cat')
    assert alternatives.row_of('../cat/a.py') == 'cat/a.py'
    assert alternatives.combine('a.py', ['low']).optim_wrapper.lr == 0.5


def test_variables_of_their_own_do_not_come_between_them(house):
    cfg = alternatives.combine(house / 'cat' / 'a.py', ['low', 'wide'])
    assert (cfg.optim_wrapper.lr, cfg.model.width) == (0.5, 2)


@pytest.mark.parametrize(
    'row, names, words',
    [
        (
            'a',
            ['hihg'],
            "cat/a.py has no alternative 'hihg' (allowed: high, low, new, only, twice,",
        ),
        ('a', ['hihg'], 'did you mean high?'),
        ('b', ['only'], 'the alternative only is for a* of CAT 1, not cat/b.py (allowed: high,'),
        ('base', ['low'], 'base.py is in no table'),
        (
            'a',
            ['low', 'high'],
            'high and low do not go together: they set optim_wrapper.lr to 2 and to 0.5',
        ),
        # the order would matter: 2 * 0.5 or 0.5
        (
            'a',
            ['wide', 'twice', 'low'],
            'low and twice do not go together: they set optim_',
        ),
        ('a', ['new', 'wide'], 'they set model.width to nothing and to 2'),
    ],
)
def test_what_does_not_fit_is_refused(house, row, names, words):
    with pytest.raises(AlternativeError) as raised:
        alternatives.combine(house / 'cat' / f'{row}.py', names)
    assert words in str(raised.value) and '\n' not in str(raised.value)


def test_a_body_that_fails_after_another_is_refused(house):
    (house / 'alternatives' / 'wide.py').write_text('depth = _base_.model.depth\n')
    with pytest.raises(AlternativeError, match='new and wide do not go together: .*depth'):
        alternatives.combine(house / 'cat' / 'a.py', ['wide', 'new'])


def test_what_cannot_be_merged_at_all_is_refused(house):
    (house / 'alternatives' / 'wide.py').write_text('optim_wrapper = None\n')
    with pytest.raises(AlternativeError, match='low and wide do not go together: both set optim_w'):
        alternatives.combine(house / 'cat' / 'a.py', ['wide', 'low'])


def test_an_alternative_without_a_file(house):
    (house / 'alternatives' / 'wide.py').unlink()
    with pytest.raises(FileNotFoundError, match='the alternative wide has no file'):
        alternatives.listed()


def test_the_listing(house):
    assert alternatives.render_alternatives('drtam').count('\n') == 2
    assert '| 1 | p | q | `high`, `low`, `new`, `only`, `twice`, `wide` | last: e |' in (
        alternatives.render_evidence('cat')
    )
    text = alternatives.render_alternatives('cat')
    assert '| 1 | `low` | all | c | e |\n' in text
    assert '| 1 | `new` | `a.py`, `b.py` | c | e |\n' in text


@pytest.mark.parametrize('block', ['evidence', 'alternatives'])
@pytest.mark.parametrize('paper', papers.PAPERS)
def test_the_readme_lists_them(paper, block):
    """`render_evidence(paper)` and `render_alternatives(paper)` of mmattn.papers.alternatives."""
    text = (ROOT / paper / 'README.md').read_text(encoding='utf-8')
    written = text.split(f'<!-- {block} -->\n')[1].split('<!-- end -->')[0]
    assert written == getattr(alternatives, f'render_{block}')(paper)


def test_differences():
    before = dict(a=1, b=dict(c=[dict(d=1), 2]), e=(1, 2), f=0)
    after = dict(a=1, b=dict(c=[dict(d=3), 2]), e=(1, 2, 3), g=None)
    found = alternatives.differences(before, after)
    assert found == [
        Difference('b.c.0.d', 1, 3),
        Difference('e', (1, 2), (1, 2, 3)),
        Difference('f', 0, alternatives.MISSING),
        Difference('g', alternatives.MISSING, None),
    ]
    assert [str(difference) for difference in found][2:] == [
        'f: 0 -> nothing',
        'g: nothing -> None',
    ]
