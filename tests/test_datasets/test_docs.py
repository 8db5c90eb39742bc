"""The commands of docs/data.md do what is said there."""

import glob
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import official
import pytest

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmattn.datasets import prepare  # noqa: E402
from mmattn.datasets.prepare import counts, parts  # noqa: E402
from mmattn.datasets.progress import amount  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/data.md').read_text()
COMMANDS = ''.join(re.findall(r'```bash\n(.*?)```', PAGE, re.S)).splitlines()


def test_every_command_runs(published, tmp_path, monkeypatch, capsys):
    from mmpretrain.datasets import CIFAR100

    monkeypatch.setattr(parts, 'verify', lambda archive, path, record: None)
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', None]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', None]])
    (tmp_path / 'Downloads').symlink_to(published / 'downloads')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('MMATTN_DATA', raising=False)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for command in COMMANDS:
        words = [os.path.expanduser(word) for word in shlex.split(command, comments=True)]
        if words[0] == 'export':
            name, _, value = words[1].partition('=')
            monkeypatch.setenv(name, os.path.expanduser(value))
            continue
        assert words[0] == 'python'
        words = [path for word in words[2:] for path in sorted(glob.glob(word)) or [word]]
        script = shlex.split(command)[1]
        monkeypatch.setattr(sys, 'argv', [script, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        assert ended.value.code == 0, (command, capsys.readouterr())
        ran += 1
    assert ran == 6 and (tmp_path / 'report.json').is_file()


@pytest.mark.parametrize('name', prepare.DATA_SETS)
def test_the_table_of_archives(name, papers_numbers):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f'| `{name}` |')]
    for part in prepare.DATA_SETS[name].parts:
        for archive in part.archives:
            if not (name == 'sbd' and part.target.endswith('VOC2012')):
                assert archive.name in row and archive.page in row
                size = archive.size
                assert size is None or amount(size) in row
    train, test = (papers_numbers[split] for split in official.SPLITS[name])
    assert row.endswith(f'| {train} + {test} |')


def test_kinds_of_problems(papers_numbers):
    """Each kind that the code reports is in the table, and no other."""
    told = set(re.findall(r'^\| `(\w+)` \| [a-zA-Z ,]', PAGE, re.M)) - {*prepare.DATA_SETS}
    code = ''.join(path.read_text() for path in (ROOT / 'mmattn/datasets/check').glob('*.py'))
    assert set(re.findall(r"(?:error|warning)\)?\(\s*'(\w+)'", code)) == told
    assert counts.PAPERS.keys() == papers_numbers.keys()
