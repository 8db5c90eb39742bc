"""The documentation as a site: `sphinx-build -W docs build/site` (requirements/docs.txt).

Pages are plain Markdown that reads as well on a code host. So a page of another folder, such as
CONTRIBUTING.md, is put in where it is included, and links are what they are in the repository: they
are turned here, before a page is read, into links to the site's pages or, for files that are no
pages, into links to the repository (if `MMATTN_REPOSITORY` has its address) or the file's name.
"""

import os
import re
from pathlib import Path

from mmattn.version import __version__

project = 'mmattn'
copyright = 'The mmattn contributors'
version = release = __version__

extensions = ['myst_parser']
exclude_patterns = ['_build']
# tools/leaderboard.py writes these tables below headings of the third level.
TITLES = {'studies/digits/leaderboard': '# Tables of the digits study\n\n'}
suppress_warnings = ['myst.header']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
html_theme = 'furo'
html_title = 'mmattn'
html_static_path = ['static']
html_css_files = ['wide.css']

DOCS = Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = os.environ.get('MMATTN_REPOSITORY', '').rstrip('/')
INCLUDE = re.compile(r'^```\{include\} (\S+)\n```$', re.M)
# Blocks of code, which are left alone, and [words](target) with a target in this repository.
LINK = re.compile(
    r'^```.*?^```|(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)', re.M | re.S
)


def included():
    """File of the repository -> the page it is in."""
    pages = {}
    for page in DOCS.rglob('*.md'):
        for name in INCLUDE.findall(page.read_text(encoding='utf-8')):
            pages[(page.parent / name).resolve()] = page
    return pages


def relinked(text, folder, page, pages):
    """Markdown of a file in `folder`, with links as they have to be in `page`."""

    def link(match):
        if match[3] is None:
            return match[0]
        picture, words, target, anchor = *match.groups()[:3], match[4] or ''
        path = (folder / target).resolve()
        path = pages.get(path, path)
        if path.suffix in ('.md', '.png', '.svg') and path.is_relative_to(DOCS):
            return f'{picture}[{words}]({os.path.relpath(path, page.parent)}{anchor})'
        name = path.relative_to(ROOT)
        if REPOSITORY:
            return f'[{words}]({REPOSITORY}/{"tree" if path.is_dir() else "blob"}/main/{name})'
        plain = words.replace('`', '').replace('\\', '')
        return words if plain in (str(name), name.name) else f'{words} (`{name}`)'

    return LINK.sub(link, text)


def setup(app):
    pages = included()

    def read(app, docname, source):
        page = DOCS / f'{docname}.md'

        def include(match):
            path = (page.parent / match[1]).resolve()
            return relinked(path.read_text(encoding='utf-8'), path.parent, page, pages)

        parts = INCLUDE.split(source[0])  # text, name, text, ...
        parts[::2] = [relinked(part, page.parent, page, pages) for part in parts[::2]]
        names = iter(INCLUDE.finditer(source[0]))
        parts[1::2] = [include(next(names)) for _ in parts[1::2]]
        source[0] = TITLES.get(docname, '') + ''.join(parts)

    app.connect('source-read', read)
    return {'parallel_read_safe': True}
