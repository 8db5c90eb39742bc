"""What stands in two files of the project says the same in both."""

import re
from pathlib import Path

import pytest
import yaml

import mmattn

ROOT = Path(__file__).parents[2]
if not (ROOT / 'CONTRIBUTING.md').exists():
    pytest.skip('not a checkout', allow_module_level=True)


def read(name):
    return (ROOT / name).read_text(encoding='utf-8')


def test_ruff_is_one_version():
    (wanted,) = re.findall(r'^ruff==.+$', read('requirements/tests.txt'), re.M)
    (repo,) = yaml.safe_load(read('.pre-commit-config.yaml'))['repos']
    assert {hook['entry'].partition(' --')[0] for hook in repo['hooks']} == {
        'ruff check',
        'ruff format',
    }
    for hook in repo['hooks']:
        assert hook['additional_dependencies'] == [wanted]


def test_versions():
    assert yaml.safe_load(read('CITATION.cff'))['version'] == mmattn.__version__
    assert re.search(r'^## \[(.+?)\]', read('CHANGELOG.md'), re.M).group(1) == mmattn.__version__


def test_the_papers_cited_are_those_of_the_metafiles():
    references = yaml.safe_load(read('CITATION.cff'))['references']
    cited = {(paper['title'], paper['url']) for paper in references if 'url' in paper}
    # DRTAM's later version, which its metafile tells of in words.
    (later,) = (paper for paper in references if 'url' not in paper)
    words = ' '.join(read('configs/drtam/metafile.yml').replace('#', '').split())
    assert f'"{later["title"]}", ICASSP 2024, pages {later["start"]}-{later["end"]}' in words
    told = set()
    for path in ROOT.glob('configs/*/metafile.yml'):
        (collection,) = yaml.safe_load(path.read_text(encoding='utf-8'))['Collections']
        told.add((collection['Paper']['Title'], collection['Paper']['URL']))
    assert cited == told and len(told) == 2


# (`NAME`s of the text before a link, the file it leads to)
LINKS = re.findall(r'([^\]]*)\[[^\]]+\]\(([\w./]+\.py)\)', read('CONTRIBUTING.md'))
NAMED = [(name, path) for text, path in LINKS for name in re.findall('`([A-Z_]+)`', text)]


def test_there_are_names_to_check():
    assert {'ABBRS', 'CASES', 'PAPERS'} <= {name for name, _ in NAMED}


@pytest.mark.parametrize('name, path', NAMED)
def test_a_recipe_names_what_its_file_has(name, path):
    """`NAME` of [file](path): it is there."""
    assert re.search(rf'\b{name}\b', read(path))
