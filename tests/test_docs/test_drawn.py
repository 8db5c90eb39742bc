"""Pictures and tables of the documentation are what the code draws and counts today."""

import ast
import inspect
import re
import runpy

import pytest

pytest.importorskip('mmpretrain')

from doc_pages import ROOT  # noqa: E402

import mmattn  # noqa: E402
from mmattn.hosts.slots import Plugin  # noqa: E402

DOCS = ROOT / 'docs'


@pytest.fixture(scope='module')
def slots():
    return runpy.run_path(str(DOCS / 'draw_slots.py'))


def test_pictures_of_slots(slots):
    """Again: python docs/draw_slots.py"""
    folder = DOCS / 'images' / 'slots'
    assert {path.stem for path in folder.glob('*.svg')} == set(slots['HOSTS'])
    page = (DOCS / 'slots.md').read_text(encoding='utf-8')
    for name, host in slots['HOSTS'].items():
        assert (folder / f'{name}.svg').read_text(encoding='utf-8') == slots['draw'](name)
        assert f'images/slots/{name}.svg' in page and f'`{host.cls.__name__}`' in page


def test_every_slot_is_in_its_picture(slots):
    for name, host in slots['HOSTS'].items():
        text = (DOCS / 'images' / 'slots' / f'{name}.svg').read_text(encoding='utf-8')
        for position in (*host.positions, 'after_stage', 'after_stem'):
            assert f'>{position}<' in text


@pytest.fixture(scope='module')
def tables():
    return runpy.run_path(str(DOCS / 'write_tables.py'))


def test_printed_numbers(tables):
    found = 0
    for page in (DOCS / 'gates').glob('*.md'):
        for _, kind, gate, body, _ in tables['TABLE'].findall(page.read_text(encoding='utf-8')):
            if kind == 'printed':
                assert body == tables['printed']([gate]), f'python docs/write_tables.py: {page}'
                found += 1
    assert found == sum(name is not None for name in tables['GATES'].values())


@pytest.mark.slow
def test_counted_costs(tables):
    for page in (DOCS / 'gates').glob('*.md'):
        text = page.read_text(encoding='utf-8')
        assert tables['written'](text) == text, f'python docs/write_tables.py: {page}'


def rows(text):
    """(names, defaults) of the lines of a gate's table of arguments, of each name one."""
    for names, defaults in re.findall(r'^\| (`.*?) \| (.*?) \|', text, re.M):
        names = re.findall(r'`(\w+)`', names)
        try:
            values = ast.literal_eval(defaults.replace('`', ''))
        except (SyntaxError, ValueError):  # another table
            continue
        yield from zip(names, values if len(names) > 1 else [values], strict=len(names) == 1)


def test_every_argument_is_on_its_gates_page(tables):
    pages = {}
    for path in (DOCS / 'gates').glob('*.md'):
        text = path.read_text(encoding='utf-8')
        pages[text.splitlines()[0].removeprefix('# ')] = text
    for gate in tables['GATES']:
        parameters = inspect.signature(getattr(mmattn, gate)).parameters
        wanted = {k: p.default for k, p in parameters.items() if k not in ('in_channels', 'impl')}
        assert dict(rows(pages[gate])) == wanted, gate


def test_every_key_of_an_entry_is_on_the_page_of_slots():
    page = (DOCS / 'slots.md').read_text(encoding='utf-8')
    told = re.findall(r'^\| `(\w+)` \|', page, re.M)
    assert {*told, 'cfg', 'position'} == {*Plugin.keys}
