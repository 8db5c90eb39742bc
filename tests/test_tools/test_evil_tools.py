"""tools/test.py with strangers' checkpoints of every kind: exit code 2 and one line."""

import os
from pathlib import Path

import pytest
from evil_checkpoints import CASES

CONFIG = Path(__file__).parents[2] / 'configs' / 'quickstart' / 'resnet18-cat_digits-cifar.py'
SOME = ('a stride too wide', 'INST', 'a name that a terminal obeys')
REFUSED = [case for case, (_, words) in CASES.items() if words is not None]


@pytest.mark.parametrize(
    'case',
    [case if case in SOME else pytest.param(case, marks=pytest.mark.slow) for case in REFUSED],
)
def test_one_line(run_tool, capfd, tmp_path, case):
    make, words = CASES[case]
    path = tmp_path / 'x.pth'
    path.write_bytes(make())
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_tool('test', CONFIG, path, '--work-dir', tmp_path / 'work')
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    (line,) = [line for line in err.splitlines() if line.startswith('error: ')]
    assert words in line and line.isprintable() and 'Traceback' not in err
    assert 'ran' not in out.split() and '\x1b]0;' not in out + err
    assert {*os.listdir(tmp_path)} <= {'x.pth', 'work'}
