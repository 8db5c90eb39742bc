"""tools/env.sh in a copy of the checkout, with an interpreter that only notes what it is told."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = r"""#!/usr/bin/env bash
case "$*" in
    *'sys.exit(not (3, 10)'*) exit "${WRONG_VERSION:-0}" ;;
    '-m venv '*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo venv >>"$CALLS" ;;
    '-m pip --version') ;;
    '-m pip '*)
        echo "$*" >>"$CALLS"
        [ -z "${FAIL:-}" ] || case "$*" in *"$FAIL"*) echo "no network"; exit 1 ;; esac ;;
    *'print(*sys.version_info'*) echo "${VENV_VERSION:-3 11}" ;;
    *'import '*) case "$*" in *"import ${LACKS:-nothing}"*) exit 1 ;; esac ;;
    --version) echo 'Python 3.11.0' ;;
esac
"""
STAGES = ['build.txt', 'torch.txt', 'openmmlab.txt', 'tests.txt', '-e .']


@pytest.fixture
def checkout(tmp_path):
    checkout = tmp_path / 'check out'  # a space, as in many people's home directories
    shutil.copytree(ROOT / 'requirements', checkout / 'requirements')
    (checkout / 'tools').mkdir()
    for name in ('tools/env.sh', 'setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, checkout / name)
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python3').write_text(FAKE)
    (tmp_path / 'bin' / 'python3').chmod(0o755)
    return checkout


@pytest.fixture
def set_up(checkout, tmp_path):
    """Sources env.sh; gives the result and what pip was told since the last time."""
    calls = tmp_path / 'calls'

    def run(*args, **environment):
        calls.write_text('')
        clean = {
            key: value
            for key, value in os.environ.items()
            if key not in ('MMATTN_PYTHON', 'VIRTUAL_ENV', 'CONDA_PREFIX', 'PYTHON')
        }
        ran = subprocess.run(
            [
                'bash',
                '-euc',
                'cd /; . "$0" "$@"; echo "PYTHON=$PYTHON"',
                checkout / 'tools' / 'env.sh',
                *args,
            ],
            env={
                **clean,
                'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
                'CALLS': str(calls),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        told = calls.read_text().splitlines()
        return ran, [next((stage for stage in STAGES if stage in line), line) for line in told]

    return run


def test_stages_once_each(set_up, checkout):
    ran, told = set_up()
    assert ran.returncode == 0, ran.stderr
    assert told == ['venv', *STAGES]
    assert f'PYTHON={checkout}/.venv/bin/python' in ran.stdout
    assert 'making .venv' in ran.stdout and 'torch: requirements/torch.txt' in ran.stdout
    ran, told = set_up()
    assert (ran.returncode, told) == (0, [])


def test_a_changed_file_repeats_its_stage(set_up, checkout):
    set_up()
    with open(checkout / 'requirements' / 'tests.txt', 'a') as file:
        file.write('# newer\n')
    assert set_up()[1] == ['tests.txt']


def test_goes_on_after_a_failure(set_up):
    ran, told = set_up(FAIL='openmmlab.txt')
    assert ran.returncode == 1
    assert told == ['venv', *STAGES[:3]]
    assert 'no network' in ran.stdout
    assert "stage 'openmmlab' failed" in ran.stderr and 'PYTHON=' not in ran.stdout
    assert set_up()[1] == STAGES[2:]


def test_no_suitable_python(set_up, tmp_path):
    for name in ('python3.10', 'python3.11', 'python3.12'):
        shutil.copy(tmp_path / 'bin' / 'python3', tmp_path / 'bin' / name)
    ran, told = set_up(WRONG_VERSION='1')
    assert ran.returncode == 1 and told == []
    assert 'Python 3.10, 3.11 or 3.12 is needed' in ran.stderr


def test_venv_of_another_python(set_up):
    set_up()
    ran, told = set_up(VENV_VERSION='3 13')
    assert ran.returncode == 1 and told == []
    assert '.venv has Python 3.13' in ran.stderr


def test_no_compiler(set_up):
    ran, told = set_up(LACKS='mmcv._ext', CXX='no-such-compiler')
    assert ran.returncode == 1 and told == ['venv', *STAGES[:2]]
    # the stage's own output goes to stdout
    assert 'no C++ compiler' in ran.stdout and 'apt-get install g++' in ran.stdout


def test_active_environment_is_left_alone(set_up, tmp_path):
    ran, told = set_up(VIRTUAL_ENV='/somewhere')
    assert 'the active environment (/somewhere) is left alone' in ran.stdout
    assert told == ['venv', *STAGES]


@pytest.mark.parametrize(
    'args, environment', [([], {'MMATTN_PYTHON': 'python3'}), (['--no-venv'], {})]
)
def test_own_environment_is_used_and_not_changed(set_up, checkout, tmp_path, args, environment):
    shutil.copy(tmp_path / 'bin' / 'python3', tmp_path / 'bin' / 'python')
    ran, told = set_up(*args, **environment)
    assert (ran.returncode, told) == (0, [])
    assert f'PYTHON={tmp_path}/bin/python' in ran.stdout
    assert not (checkout / '.venv').exists()
    ran, _ = set_up(*args, **environment, LACKS='mmseg')
    assert ran.returncode == 1
    assert 'cannot import: mmseg' in ran.stderr
