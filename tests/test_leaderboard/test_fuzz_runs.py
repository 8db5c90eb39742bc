"""Records, logs, packs, tables and folders at random: what is wrong is named, nothing is lost."""

import contextlib
import copy
import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import tarfile
import warnings
from pathlib import Path

import pytest

pytest.importorskip('scipy.stats')

import synthetic as made_up  # noqa: E402
import yaml  # noqa: E402
from fuzzing import CHANGES, ODD, cases, changed, places, put, tree  # noqa: E402
from hypothesis import example, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rich.console import Console  # noqa: E402

from mmattn.leaderboard import packs  # noqa: E402
from mmattn.leaderboard.build import boards  # noqa: E402
from mmattn.leaderboard.collect import collect  # noqa: E402
from mmattn.leaderboard.render import render, show  # noqa: E402
from mmattn.leaderboard.sources import Folder  # noqa: E402
from mmattn.papers import config_root, own, plan  # noqa: E402
from mmattn.runs import needs, record, watch  # noqa: E402

BARE = 'cat/resnet50_8xb32_in1k.py'
PLACE = 'cat/resnet50_8xb32_in1k/seed0/record.json'
METRICS = {'accuracy/top1': 75.0, 'accuracy/top5': 93.0}
WHOLE = made_up.record(BARE, 0, METRICS, machines=['host'], progress=None)
WHOLE['progress'] = dict(epoch=1, iter=2, max_iters=9, loss=0.5, at=3.0)
PLACES = [path for path in places(WHOLE) if path != ('config_text',)]
CONFIG = json.loads(WHOLE['config_text'])
CONFIG_PLACES = list(places(CONFIG))
STATES = st.sampled_from(('done', 'running', 'stopped', 'failed'))
VALUES = st.lists(st.tuples(st.sampled_from(PLACES), ODD), max_size=3)
BAD = re.compile(r'[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]')
TOOL = Path(__file__).parents[2] / 'tools' / 'leaderboard.py'


@pytest.fixture(scope='module')
def main():
    spec = importlib.util.spec_from_file_location('leaderboard', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@pytest.fixture(scope='module', autouse=True)
def utf8():
    """What is said of surrogates in files is not about the locale of a test."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ResourceWarning)
        yield


@contextlib.contextmanager
def fresh(folder):
    """An empty folder in which everything may be left."""
    root = folder / 'x'
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    yield root


def run_tool(main, *args):
    """Exit code and what was said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue()


def said_well(code, out, err):
    assert code in (0, 1, 2)
    (out + err).encode()
    assert not BAD.search(out + err)
    if code == 2:
        assert err.count('\n') == 1 and err.startswith('error: ')


def see(root, sources=None):
    """All that is made of records: boards in each format, and the watch of their runs."""
    found = boards('cat', [4], sources or [Folder(root)])
    for style in ('markdown', 'csv', 'json', 'html'):
        render(found, style).encode()
    text = io.StringIO()
    show(found, Console(file=text, width=200))
    runs = [plan.Run(BARE, (), 0, config_root())]
    for terminal in (True, False):
        watch.show(
            runs, root, Console(file=text, width=200, force_terminal=terminal, no_color=True)
        )
    needs.estimate(runs, root)
    plain = re.sub(r'\x1b\[[\d;]*m', '', text.getvalue())  # rich's own colours
    assert not BAD.search(plain)
    return found


@cases(40)
@given(
    VALUES,
    STATES,
    st.lists(st.tuples(st.sampled_from(CONFIG_PLACES), ODD), max_size=2),
    st.none() | CHANGES,
)
@example([(('config',), '\ud800')], 'done', [], None)
def test_records(folder, values, state, config, changes):
    found = copy.deepcopy(WHOLE)
    found['state'] = state
    if config:
        other = copy.deepcopy(CONFIG)
        put(other, config)
        found['config_text'] = json.dumps(other)
        found['config_sha256'] = record.digest(found['config_text'])
    put(found, values)
    data = json.dumps(found).encode()
    if changes:
        data = changed(data, changes)
    with fresh(folder) as root:
        path = root / PLACE
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        board = see(root)[0]
        runs = sum(len(row.runs) for row in board.rows)
        assert runs + len(board.faults) == 1
        for fault in board.faults:
            assert not BAD.search(fault.reason) and len(fault.reason) < 3000
        try:
            again = record.read(path.parent)
        except record.RecordError as error:
            assert '\n' not in str(error)
        else:
            record.write(path.parent, again)
        assert [str(name) for name in tree(root) if name.suffix] == [PLACE]


LINES = st.one_of(
    st.dictionaries(
        st.sampled_from(('step', 'epoch', 'iter', *METRICS, 'loss', '\x1b[2J')), ODD, max_size=4
    ).map(json.dumps),
    st.sampled_from(('{', '[]', 'NaN', '{"step": 1e999}', '[' * 2000, '"\\ud800"', '\x1b[2J')),
    st.text(max_size=9),
)


@cases(20)
@given(st.lists(LINES, max_size=6), CHANGES | st.none(), st.sampled_from(('failed', 'done')))
def test_logs(folder, main, lines, changes, state):
    data = '\n'.join(lines).encode(errors='surrogatepass')
    data = changed(data, changes) if changes else data
    with fresh(folder) as root:
        runs = root / 'runs'
        path = made_up.save(runs, dict(copy.deepcopy(WHOLE), state=state))
        for name in ('start/start.log', 'start/vis_data/scalars.json'):
            (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / name).write_bytes(data)
        before = tree(root)
        said_well(*run_tool(main, 'cat', '--verify', runs))
        see(runs)
        pack = folder / 'y.tar.gz'
        assert packs.export(runs, pack) == 1
        see(runs, [packs.Pack(pack)])
        assert tree(root) == before


NAMES = st.one_of(
    st.sampled_from(
        (PLACE, '../record.json', '/tmp/record.json', 'record.json', 'a/../../record.json')
        + ('x' * 300 + '/record.json', 'cat/\x1b[2J/seed0/record.json', 'cat/\udcff/record.json')
        + ('cat/a/seed0/x.log', PLACE.replace('record.json', 'start/start.log'), '', '.', '\n')
    ),
    st.text(max_size=6),
)
KINDS = st.sampled_from(
    (tarfile.REGTYPE,) * 4
    + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    + (tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b'\xff')
)
RECORD = json.dumps(WHOLE).encode()
CONTENTS = st.sampled_from(
    (b'', b'{}', RECORD, RECORD[:-9], b'[' * 5000, b'9 path=x\n', b'\0' * 512)
)
SIZES = st.sampled_from((None,) * 8 + (0, 1, 511, 10**6, 2**40, -1, -512, -(2**40)))
MEMBERS = st.lists(st.tuples(NAMES, KINDS, CONTENTS, SIZES), max_size=4)


def packed(members):
    """A tar, with sizes that may lie."""
    file = io.BytesIO()
    for name, kind, contents, size in members:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, '/etc/passwd'
        info.size = len(contents) if size is None else size
        form = (
            tarfile.GNU_FORMAT if kind in (tarfile.GNUTYPE_SPARSE, b'\xff') else tarfile.PAX_FORMAT
        )
        if size is not None and (size < 0 or size >= 2**33):
            form = tarfile.GNU_FORMAT
        file.write(info.tobuf(form, 'utf-8', 'surrogateescape'))
        file.write(contents + b'\0' * (-len(contents) % 512))
    return file.getvalue() + bytes(10240)


@cases(120)
@given(MEMBERS, CHANGES | st.none(), CHANGES | st.none())
def test_packs(folder, main, members, inside, outside):
    data = packed(members)
    data = changed(data, inside) if inside else data
    data = gzip.compress(data, 1, mtime=0)
    data = changed(data, outside) if outside else data
    with fresh(folder) as root:
        (root / 'p.tar.gz').write_bytes(data)
        before = tree(folder)
        try:
            runs, faults = collect([packs.Pack(root / 'p.tar.gz')])
        except packs.PackError as error:
            assert '\n' not in str(error)
        else:
            assert len(runs) <= 1
            for fault in faults:
                assert not BAD.search(fault.reason)
            see(root, [packs.Pack(root / 'p.tar.gz')])
        assert tree(folder) == before


ROW = dict(group='ResNet50', method='+ Mine', config='mine/mine_8xb32_in1k.py')
OWN = dict(tables=[dict(joins='cat 4', rows=[ROW])])
OWN_PLACES = list(places(OWN))
YAML = st.sampled_from(
    (
        'tables: &a [*a]',
        'tables: [{joins: cat 4, rows: &a [*a]}]',
        '[' * 3000,
        'tables: 2001-99-99',
        'table: !!python/object/apply:os.system [echo ran]\nrows: []',
        '? {a: b}\n: c\ntable: 4\nrows: []',
        'table: .inf\nrows: []',
        'table: 0x' + 'f' * 9000 + '\nrows: []',
        'table: 1_0e9_9:30\nrows: 5',
        'a: &a [x, x, x]\nb: &b [*a, *a, *a]\ntable: 4\nrows: *b',
        '{table: 4, table: 5, rows: []}',
        '\0',
        '%YAML 9.9\n---\ntable: 4',
        '"' + 'x' * 10**5,
    )
)


@cases(60)
@given(
    st.lists(st.tuples(st.sampled_from(OWN_PLACES), ODD), max_size=2),
    CHANGES | st.none(),
    YAML | st.none(),
)
def test_own_rows(folder, main, values, changes, text):
    if text is None:
        listed = copy.deepcopy(OWN)
        put(listed, values)
        text = yaml.safe_dump(listed, allow_unicode=True)
    data = text.encode(errors='surrogatepass')
    data = changed(data, changes) if changes else data
    with fresh(folder) as root:
        path = root / 'mine' / 'mine.yml'
        path.parent.mkdir()
        path.write_bytes(data)
        path.with_name('mine_8xb32_in1k.py').write_text('model = dict(type="x")\n')
        before = tree(folder)
        code, out, err = run_tool(main, 'cat', 4, '--work-dir', root, '--tables', path)
        assert code in (0, 2)
        if code == 2:
            said_well(code, out, err)
            with pytest.raises((ValueError, OSError)):
                own.select('cat', [4], [path])
        assert tree(folder) == before


PARTS = st.one_of(
    st.sampled_from(
        (b'cat', b'resnet50_8xb32_in1k', b'seed0', b'seed0 ', b'record.json', b'start')
    ),
    st.sampled_from(
        (b'\xff\xfe', b'a\nb', b'\x1b[2J', b'-rf', b'$(touch x)', b'*', b'\xe2\x80\xae')
    ),
    st.binary(min_size=1, max_size=6).map(
        lambda data: data.replace(b'/', b'-').replace(b'\0', b'0')
    ),
    st.just(b'n' * 255),
).filter(lambda part: part not in (b'.', b'..'))
FILES = st.sampled_from(('record', 'half', 'log', 'link', 'loop', 'folder', 'pipe'))


def plant(path, kind):
    """A file of a kind at a path of bytes, where there is room for it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == 'folder':
            os.makedirs(path + b'/record.json')
        elif kind == 'pipe':
            os.mkfifo(path)
        elif kind in ('link', 'loop'):
            os.symlink(b'/etc/passwd' if kind == 'link' else os.path.dirname(path), path)
        else:
            with open(path, 'wb') as file:
                file.write({'record': RECORD, 'half': RECORD[:99], 'log': b'\x1b[2J\n'}[kind])
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError):
        pass  # another one is there
    except OSError as error:
        assert error.errno == 36, error  # too long


@cases(60)
@given(
    st.lists(
        st.tuples(
            st.lists(PARTS, max_size=4),
            st.sampled_from((b'record.json', b'record.json.tmp', b'x.log', b'\xff.log')),
            FILES,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_folders(folder, main, files):
    with fresh(folder) as root:
        runs = root / 'runs'
        runs.mkdir()
        for parts, name, kind in files:
            plant(b'/'.join([os.fsencode(runs), *parts, name]), kind)
        before = sorted(os.walk(os.fsencode(root)))
        for style in ('terminal', 'markdown', 'csv', 'json', 'html'):
            code, out, err = run_tool(main, 'cat', 4, '--work-dir', runs, '--format', style)
            assert code == 0
            (out + err).encode()
            assert style in ('html', 'json') or not BAD.search(out + err)
        said_well(*run_tool(main, 'cat', '--verify', runs))
        code, out, err = run_tool(main, 'cat', '--work-dir', runs, '--export', folder / 'p.tar.gz')
        said_well(code, out, err)
        assert sorted(os.walk(os.fsencode(root))) == before
