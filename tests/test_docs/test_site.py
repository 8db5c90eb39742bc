"""The documentation builds as a site, without a warning."""

import importlib.util
import os
import subprocess
import sys

import pytest
from doc_pages import ROOT

NEEDED = [
    name for name in ('sphinx', 'myst_parser', 'furo') if importlib.util.find_spec(name) is None
]


@pytest.mark.slow
@pytest.mark.skipif(bool(NEEDED), reason='no sphinx, myst_parser, furo (requirements/docs.txt)')
@pytest.mark.parametrize('repository', ['', 'https://example.org/mmattn'])
def test_it_builds(tmp_path, repository):
    ran = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', 'docs', tmp_path / 'site'],
        cwd=ROOT,
        env={**os.environ, 'MMATTN_REPOSITORY': repository},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    start = (tmp_path / 'site' / 'index.html').read_text(encoding='utf-8')
    gate = (tmp_path / 'site' / 'gates' / 'cat.html').read_text(encoding='utf-8')
    assert 'href="gates/cat.html"' in start
    assert (f'href="{repository}/blob/main/mmattn/attention/cat.py"' in gate) == bool(repository)
    # A page of another folder, and a link from it to a page of the site.
    configs = (tmp_path / 'site' / 'project' / 'configs.html').read_text(encoding='utf-8')
    assert 'href="../studies/digits.html"' in configs and 'href="cat.html"' in configs


def test_how_links_are_turned():
    """Without sphinx: the rules themselves."""
    import runpy

    conf = runpy.run_path(str(ROOT / 'docs' / 'conf.py'))
    docs, relinked = ROOT / 'docs', conf['relinked']
    pages = conf['included']()
    assert pages[ROOT / 'CONTRIBUTING.md'] == docs / 'project' / 'contributing.md'
    contributing = docs / 'project' / 'contributing.md'

    def turned(text):
        return relinked(text, ROOT, contributing, pages)

    assert turned('[a](docs/faq.md#weights)') == '[a](../faq.md#weights)'
    assert turned('[a](configs/cat/README.md)') == '[a](cat.md)'
    assert turned('[se.py](mmattn/attention/se.py)') == 'se.py'
    assert turned('[here](mmattn/attention/se.py)') == 'here (`mmattn/attention/se.py`)'
    assert turned('[a](https://x.org) [b](#c)') == '[a](https://x.org) [b](#c)'
    assert turned('```\n[a](docs/faq.md)\n```') == '```\n[a](docs/faq.md)\n```'
