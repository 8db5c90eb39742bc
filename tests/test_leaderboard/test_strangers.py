"""What fuzzing and a look at the sources found in records, packs and tables of strangers."""

import gzip
import io
import json
import tarfile

import pytest

pytest.importorskip('scipy.stats')

import synthetic as made_up  # noqa: E402
from rich.console import Console  # noqa: E402

from mmattn.leaderboard import packs  # noqa: E402
from mmattn.leaderboard.collect import Known, RecordError, collect  # noqa: E402
from mmattn.leaderboard.expected import expected_config  # noqa: E402
from mmattn.leaderboard.sources import Folder  # noqa: E402
from mmattn.lines import indented, one_line  # noqa: E402
from mmattn.papers import config_root, plan, tables  # noqa: E402
from mmattn.papers.metrics import is_number  # noqa: E402
from mmattn.runs import record, watch  # noqa: E402

BARE = 'cat/resnet50_8xb32_in1k.py'
WHOLE = made_up.record(BARE, 0, {'accuracy/top1': 75.0})
PROGRESS = dict(epoch=1, iter=2, max_iters=9, loss=0.5, at=3.0)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(progress={}), 'progress must have the keys'),
        (dict(progress=dict(PROGRESS, iter='2')), 'iter must be of int'),
        (dict(progress=dict(PROGRESS, max_iters=10**400)), "'max_iters' must be a number of 64"),
        (dict(batch=10**400), "'batch' must be a number of 64 bits"),
        (dict(lr=float('inf')), "'lr' must be a number of 64 bits"),
        (dict(evaluations=[dict(epoch=1, iter=1, at=1, metrics={'\x1b[2J': 10**400})]), '64 bits'),
        (dict(more=1, **{'\x1b[2J': 2}), 'it must have the keys'),
    ],
)
def test_records(changes, words):
    with pytest.raises(record.RecordError, match=words) as error:
        record.check({**WHOLE, 'state': 'running', **changes})
    assert str(error.value).isprintable()


def test_infinity_by_a_large_number(tmp_path):
    path = made_up.save(tmp_path, WHOLE)
    path.write_text(path.read_text().replace('75.0', '1e999'))
    runs, faults = collect([Folder(tmp_path)])
    assert not runs and '64 bits' in faults[0].reason
    assert not is_number(10**400) and not is_number(float('inf')) and is_number(2**60)


def test_a_terminal_shows_what_is_there(tmp_path):
    """Rich takes brackets for markup, terminals control characters for orders."""
    name = '[/b][link=x]\x1b[2J\u202egnp'
    found = made_up.record(BARE, 0, {name: 75.0}, state='running', progress=PROGRESS)
    made_up.save(tmp_path, found)
    runs = [plan.Run(BARE, (), 0, config_root())]
    for terminal in (False, True):
        text = io.StringIO()
        watch.show(runs, tmp_path, Console(file=text, width=200, force_terminal=terminal))
        assert '[/b][link=x]' in text.getvalue()
        assert '\x1b[2J' not in text.getvalue() and '\u202e' not in text.getvalue()


def test_one_line():
    assert one_line('a\x1b[2J\n\tb\u2028c\udcff') == 'a [2J b c\\udcff'
    assert one_line('x' * 3000) == 'x' * 2000 + '...'
    assert indented('    a  b\r') == '    a b'


def header(**changes):
    info = tarfile.TarInfo('cat/a/seed0/record.json')
    vars_of = {'size': 2, **changes}
    for name, value in vars_of.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    'data',
    [
        header() + b'{}' + bytes(510) + header(size=-512) + bytes(1024),
        header(type=tarfile.XHDTYPE, size=2**33) + bytes(4096),
        header(type=tarfile.GNUTYPE_LONGNAME, size=2**33) + bytes(4096),
        header(size=2**62) + bytes(4096),
    ],
    ids=['a size below zero', 'a header of 8 GB', 'a name of 8 GB', 'a record of an exabyte'],
)
def test_sizes_in_packs(tmp_path, data):
    (tmp_path / 'p.tar.gz').write_bytes(gzip.compress(data))
    with pytest.raises(packs.PackError, match='is no pack'):
        collect([packs.Pack(tmp_path / 'p.tar.gz')])


def test_a_pack_that_does_not_end(tmp_path, monkeypatch):
    """After the archive's own end as well, where only the checksum is looked for."""
    monkeypatch.setattr(packs, 'MOST_PACKED', 10**6)
    (tmp_path / 'p.tar.gz').write_bytes(gzip.compress(bytes(2 * 10**6)))
    with pytest.raises(packs.PackError, match='more than 1000000 bytes when unpacked'):
        collect([packs.Pack(tmp_path / 'p.tar.gz')])


def test_a_config_of_ones_own_that_raises(tmp_path):
    path = tmp_path / 'mine' / 'x.py'
    path.parent.mkdir()
    path.write_text('raise KeyError("x\\ny")\n')
    with pytest.raises(RecordError, match='cannot be read') as error:
        expected_config(str(path), ())
    assert '\n' not in str(error.value)
    assert Known.of_papers().roots


LAUGHS = ''.join(
    f'- &{b} [{", ".join([f"*{a}"] * 20)}]\n' for a, b in zip('abcde', 'bcdef', strict=True)
)


@pytest.mark.parametrize(
    'text',
    ['tables: &a [*a]', f'tables:\n- &a [x]\n{LAUGHS}', '[' * 5000, 'tables: 2001-99-99', '\0'],
)
def test_yaml(text):
    with pytest.raises(ValueError, match='x.yml: no YAML') as error:
        tables.parse(text, 'x.yml')
    assert str(error.value).isprintable()


def test_an_unhashable_task():
    table = dict.fromkeys(tables.TABLE_KEYS, 'x') | dict(id=1, task={}, metrics=[], rows=[])
    with pytest.raises(ValueError, match='task must be one of'):
        tables.parse(json.dumps(dict(tables=[table])), 'x.yml')
