"""Every command of the documentation is run, or says why not and is held to its tool's options."""

import importlib.util
import re
import subprocess
from collections import OrderedDict

import pytest

pytest.importorskip('markdown_it')
for codebase in ('mmpretrain', 'mmdet', 'mmseg'):
    pytest.importorskip(codebase)

from doc_commands import Wrong, check, check_harmless, check_words, commands, parse  # noqa: E402
from doc_pages import ROOT, blocks, blocks_of, commands_in_lines, pages  # noqa: E402

BASH, PYTHON = blocks('bash'), blocks('python')
SECONDS = 1200


def named(found):
    return pytest.mark.parametrize('block', found, ids=[block.name for block in found])


def test_there_are_blocks():
    assert len(BASH) > 20 and len(PYTHON) > 10
    assert {'README.md', 'docs/install.md', 'docs/data.md'} <= {block.page for block in BASH}
    assert {'README.md', 'docs/faq.md', 'docs/gates/cat.md'} <= {block.page for block in PYTHON}


@named(BASH + PYTHON)
def test_a_block_that_is_not_run_says_why(block):
    assert block.mark in ('run', 'no', 'example', *(['slow'] if block.language == 'bash' else []))
    if block.mark == 'no':
        assert len(block.words.split()) > 1
        for test in re.findall(r'tests/[\w/]+\.py', block.words):
            assert (ROOT / test).is_file()


@named(BASH)
def test_files_are_there_and_options_are_right(block):
    for words in commands(block.text):
        check(words)


@pytest.mark.parametrize('page', [str(path.relative_to(ROOT)) for path in pages()])
def test_commands_in_sentences(page):
    for command in commands_in_lines((ROOT / page).read_text(encoding='utf-8')):
        for words in commands(command):
            check_words(words)


@named([block for block in PYTHON if block.mark == 'no'])
def test_python_that_is_not_run_is_python(block):
    compile(block.text, block.name, 'exec')


@named([block for block in BASH if block.mark in ('run', 'slow')])
def test_what_is_run_is_harmless(block):
    for words in commands(block.text):
        check_harmless(words)


def run(block, checkout, environment):
    for words in commands(block.text):
        check_harmless(words)
    (checkout / '.block').write_text(block.text)
    ran = subprocess.run(
        ['bash', '-euo', 'pipefail', '.block'],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, f'{block.text}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}'


@named([block for block in BASH if block.mark == 'run'])
def test_commands_run(block, checkout, environment):
    run(block, checkout, environment)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize('page', sorted({b.page for b in BASH if b.mark == 'slow'}))
def test_slow_commands_run(page, checkout, environment):
    """All of a page in one folder, one after the other, as a reader has them."""
    left_out = []
    for block in BASH:
        if block.page == page and block.mark in ('run', 'slow'):
            needed = block.words.removeprefix('needs ')
            if needed and importlib.util.find_spec(needed) is None:
                left_out.append(needed)
            else:
                run(block, checkout, environment)
    if left_out:
        pytest.skip(f'{", ".join(left_out)} for a command of {page}, whose others passed')


@pytest.fixture
def fresh(monkeypatch):
    """No scope is set, as in a new process; what a block registers is forgotten after it."""
    from mmengine.registry import MODELS, DefaultScope

    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
    yield
    for registry in (MODELS, *MODELS.children.values()):
        for name, value in [*registry.module_dict.items()]:
            if value.__module__ == 'a_block':
                del registry.module_dict[name]


@named([block for block in PYTHON if block.mark == 'run'])
def test_python_runs(block, checkout, monkeypatch, fresh):
    """In this process, where what it imports is there already."""
    monkeypatch.chdir(checkout)
    exec(compile(block.text, block.name, 'exec'), {'__name__': 'a_block'})


@named(PYTHON)
def test_mmattn_comes_first(block):
    """Before what needs mmcv's operators, which mmattn may have to supply."""
    needs = re.search(r'import mmdet$|(mmdet|mmseg|mmcv)\.(?!registry)\w+', block.text)
    if needs:
        assert re.search(r'(import|from) mmattn', block.text[: needs.start()])


def test_variables_are_those_of_the_code():
    """MMATTN_... of a page is read somewhere."""
    code = ''.join(
        path.read_text(encoding='utf-8')
        for folder, kind in (('mmattn', '*.py'), ('tools', '*.sh'), ('tests', '*.py'))
        for path in (ROOT / folder).rglob(kind)
    )
    for path in pages():
        for name in set(re.findall(r'MMATTN_[A-Z_]+', path.read_text(encoding='utf-8'))):
            assert name in code, f'{path} tells of {name}'


@pytest.mark.parametrize(
    'command, reason',
    [
        ('python tools/train.py configs/none.py', 'configs/none.py is not there'),
        ('python tools/train.py CONFIG --resum x --sed 1', 'exit code 2'),
        ('python tools/reproduce.py cat 1 --gpus-per-runs 4', 'exit code 2'),
        ('bash tools/quickstart.sh --fast', 'has no --fast'),
        ('bash tools/dist_train.sh CONFIG 4 --amp-level 1', 'exit code 2'),
        ("pip install 'mmattn[everything]'", 'no extra everything'),
        ('python -m mmattn.docter', 'no module'),
        ('frobnicate --now', 'frobnicate is not known'),
    ],
)
def test_a_wrong_command_is_seen(command, reason, capsys):
    (words,) = commands(command)
    with pytest.raises(Wrong, match=reason):
        check(words)


def test_how_blocks_are_read():
    text = (
        'a\n\n```bash\nx="python tools/train.py"\n$x CONFIG \\\n  --amp  # why\n```\n\n'
        '<!-- run: no, needs a GPU -->\n```python\n1\n```\n\n    python -m mmattn.doctor\n\n'
        '<!-- run: slow -->\n\n    pip list\n'
    )
    found = blocks_of(text, 'p.md')
    assert [(b.language, b.mark, b.words) for b in found] == [
        ('bash', 'run', ''),
        ('python', 'no', 'needs a GPU'),
        ('bash', 'run', ''),
        ('bash', 'slow', ''),
    ]
    *_, last = commands(found[0].text)
    assert last == ['python', 'tools/train.py', 'CONFIG', '--amp']
    assert parse('tools/train.py', last[2:]).amp


@pytest.mark.parametrize(
    'command',
    ['pip install -e .', 'bash tools/quickstart.sh', 'python -m pip list', 'git pull', 'rm -r x'],
)
def test_no_test_runs_what_installs(command):
    (words,) = commands(command)
    with pytest.raises(Wrong, match='no test may run'):
        check_harmless(words)


def test_a_wrong_command_in_a_sentence_is_seen():
    text = 'Try `tools/train.py CONFIG --sed 1`, not `tools/train.py`.\n'
    (command,) = commands_in_lines(text)
    assert command == 'python tools/train.py CONFIG --sed 1'
    with pytest.raises(Wrong, match='has no --sed'):
        check_words(command.split())
    check_words(['python', 'tools/train.py', '--seed', 'K'])
