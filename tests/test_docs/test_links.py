"""Links of all pages lead to files and headings that are there."""

import re
from urllib.parse import unquote

import pytest

pytest.importorskip('markdown_it')

from doc_pages import ROOT, pages, tokens  # noqa: E402


def inline(text):
    for token in tokens(text):
        yield from token.children or ()


def targets(text):
    """What links and pictures of a page lead to."""
    for child in inline(text):
        for key in ('href', 'src'):
            if child.attrs and key in child.attrs:
                yield unquote(str(child.attrs[key]))
    yield from re.findall(r'<img [^>]*src="([^"]+)"', text)


def anchors(text):
    """The names that headings have as a link's end, as GitHub and the site make them."""
    found, heading = {}, False
    for token in tokens(text):
        if heading:
            words = ''.join(
                child.content for child in token.children if child.type in ('text', 'code_inline')
            )
            name = re.sub(r'[^\w\- ]', '', words.strip().lower()).replace(' ', '-')
            count = found[name] = found.get(name, -1) + 1
            yield f'{name}-{count}' if count else name
        heading = token.type == 'heading_open'


@pytest.mark.parametrize('page', [str(path.relative_to(ROOT)) for path in pages()])
def test_links_lead_somewhere(page):
    path = ROOT / page
    text = path.read_text(encoding='utf-8')
    for target in targets(text):
        if '://' in target or target.startswith('mailto:'):
            continue
        name, _, anchor = target.partition('#')
        there = (path.parent / name) if name else path
        assert there.exists(), f'{page} links to {target}'
        if anchor and there.suffix == '.md':
            assert anchor in [*anchors(there.read_text(encoding='utf-8'))], f'{page}: {target}'


def test_anchors():
    text = '# A `b` (c), d\n\n## What is, and *is not*\n\n## A\n\n## A\n'
    assert [*anchors(text)] == ['a-b-c-d', 'what-is-and-is-not', 'a', 'a-1']


def test_every_page_is_in_the_contents():
    """The site's menu is `docs/index.md`."""
    listed = []
    for path in (ROOT / 'docs').rglob('*.md'):
        for block in re.findall(r'```\{toctree\}\n(.*?)```', path.read_text('utf-8'), re.S):
            for line in block.splitlines():
                name = re.sub(r'.*<(.*)>$', r'\1', line.strip())
                if name and not name.startswith(':'):
                    listed.append((path.parent / name).with_suffix('.md').resolve())
    pages = {path for path in (ROOT / 'docs').rglob('*.md') if '_build' not in path.parts}
    pages = {path.resolve() for path in pages} - {ROOT / 'docs' / 'index.md'}
    assert pages == {*listed}, 'name a new page in a toctree of docs/index.md'
    assert len(listed) == len(pages), 'a page is named twice in docs/index.md'
