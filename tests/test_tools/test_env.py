"""tools/env.sh in a copy of the checkout, with an interpreter that only notes what it is told."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
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
        echo "pip's index: ${PIP_INDEX_URL:-none}"
        [ -z "${FAIL:-}" ] || case "$*" in *"$FAIL"*) echo "${SAYS:-bad luck}"; exit 1 ;; esac ;;
    *'print(*sys.version_info'*) echo "${VENV_VERSION:-3 11}" ;;
    *'import '*) case "$*" in *"${LACKS:-nothing}"*) exit 1 ;; esac ;;
    --version) echo 'Python 3.11.0' ;;
esac
"""
DF = r"""#!/usr/bin/env bash
echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'
case "$2" in
    "${TMPDIR:-/tmp}") echo "tmp 9 9 ${FREE_TMP:-99000000} 9% /tmp" ;;
    *) echo "disk 9 9 ${FREE:-99000000} 9% /" ;;
esac
"""
# What pip is told of, stage by stage.
CLASSIFICATION = ['build', 'torch', 'mmcv', 'classification', 'mmattn']
ALL = [*CLASSIFICATION, 'openmmlab']
TESTS = [*ALL, 'tests', 'visual']


def stage(told):
    """The stage of a command line of pip."""
    if '-e .' in told:
        return 'mmattn'
    return Path(next(word for word in told.split() if word.endswith('.txt'))).stem


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path):
    """The first folder on PATH."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    executable(folder / 'python3', FAKE)
    executable(folder / 'df', DF)
    executable(folder / 'nvidia-smi', '#!/bin/sh\nexit 9\n')  # as on a machine without a GPU
    return folder


@pytest.fixture
def checkout(tmp_path):
    checkout = tmp_path / 'check out'  # a space, as in many people's home directories
    shutil.copytree(ROOT / 'requirements', checkout / 'requirements')
    native = Path('mmattn', 'ops', 'native')
    shutil.copytree(ROOT / native, checkout / native)
    (checkout / 'tools').mkdir()
    for name in ('tools/env.sh', 'setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, checkout / name)
    return checkout


@pytest.fixture
def set_up(checkout, tmp_path, bin_folder):
    """Sources env.sh and asks for something; gives the result and what pip was told."""
    calls = tmp_path / 'calls'

    def run(*args, need='all', **environment):
        calls.write_text('')
        clean = {
            key: value
            for key, value in os.environ.items()
            if key not in ('VIRTUAL_ENV', 'CONDA_PREFIX', 'PYTHON')
            and not key.startswith(('PIP_', 'MMATTN_'))
        }
        environment = {
            **clean,
            'PATH': f'{bin_folder}:{os.environ["PATH"]}',
            'CALLS': str(calls),
            **environment,
        }
        ran = subprocess.run(
            [
                'bash', '-euc', 'cd /; need="$1"; shift; . "$0" "$@"; mmattn_need "$need"; '
                'echo "PYTHON=$PYTHON"; echo "no bytecode: ${PYTHONDONTWRITEBYTECODE:-kept}"',
                checkout / 'tools' / 'env.sh', need, *args,
            ],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        told = calls.read_text().splitlines()
        return ran, [stage(line) if line.startswith('-m pip') else line for line in told]

    return run


def test_stages_once_each(set_up, checkout):
    """The classifiers' part, then the rest: no stage twice."""
    ran, told = set_up(need='classification')
    assert ran.returncode == 0, ran.stderr
    assert told == ['venv', *CLASSIFICATION]
    assert f'PYTHON={checkout}/.venv/bin/python' in ran.stdout
    assert 'making .venv' in ran.stdout and 'torch: requirements/torch.txt' in ran.stdout
    assert 'torch: 3.1 GB to download, 5.6 GB on disk' in ran.stdout
    assert set_up(need='tests')[1] == ['openmmlab', 'tests', 'visual']
    for need in ('classification', 'all', 'tests'):
        ran, told = set_up(need=need)
        assert (ran.returncode, told) == (0, [])


def test_bytecode_is_kept_where_none_was_installed(set_up, bin_folder):
    assert 'no bytecode: kept' in set_up(PYTHONDONTWRITEBYTECODE='1')[0].stdout
    shutil.copy(bin_folder / 'python3', bin_folder / 'python')
    assert 'no bytecode: 1' in set_up('--no-venv', PYTHONDONTWRITEBYTECODE='1')[0].stdout


def test_every_package_by_its_hash(set_up):
    ran, told = set_up(need='classification', MMATTN_LOCKED='1')
    assert ran.returncode == 0, ran.stderr
    assert told == ['venv', 'locked', *CLASSIFICATION]
    ran, told = set_up('--compiled-mmcv', MMATTN_LOCKED='1')
    assert ran.returncode == 1 and told == []
    assert 'MMATTN_LOCKED=1 is for requirements/torch.txt' in ran.stderr


def test_a_package_with_another_hash(set_up):
    says = 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.'
    ran, _ = set_up(FAIL='locked.txt', SAYS=says, MMATTN_LOCKED='1')
    assert ran.returncode == 1
    assert 'not the one of requirements/locked.txt' in ran.stderr


def test_a_changed_file_repeats_its_stage(set_up, checkout):
    set_up(need='tests')
    with open(checkout / 'requirements' / 'tests.txt', 'a') as file:
        file.write('# newer\n')
    assert set_up(need='tests')[1] == ['tests']


@pytest.mark.parametrize(
    'says, words',
    [
        ('bad luck', ' (see above)'),
        ('ERROR: [Errno 28] No space left on device', ': the disk is full (99.0 GB free for'),
        ("ReadTimeoutError(HTTPSConnectionPool): Read timed out.", ': the download broke off'),
        (
            "urllib3.exceptions.ProtocolError: ('Connection broken: IncompleteRead(9 bytes read)')",
            ': the download broke off',
        ),
        ('Failed to establish a new connection: Temporary failure in name resolution',
         ': the download broke off'),
    ],
)  # fmt: skip
def test_goes_on_after_a_failure(set_up, says, words):
    ran, told = set_up(FAIL='openmmlab.txt', SAYS=says)
    assert ran.returncode == 1
    assert told == ['venv', *ALL]
    assert says in ran.stdout
    (error,) = ran.stderr.splitlines()
    assert error.startswith(f"[set-up] error: stage 'openmmlab' failed{words}")
    assert error.endswith('; the same command goes on from here')
    assert 'PYTHON=' not in ran.stdout
    assert set_up()[1] == ['openmmlab']


@pytest.mark.parametrize(
    'environment, words',
    [
        (dict(FREE='5000000'), 'check out has 5.0 GB free, 5.6 GB are needed'),
        (dict(FREE_TMP='3000000'), 'has 3.0 GB free, 3.1 GB are needed'),
    ],
)
def test_too_small_a_disk_is_seen_before_the_download(set_up, tmp_path, environment, words):
    ran, told = set_up(**environment)
    assert ran.returncode == 1
    assert told == ['venv', 'build']
    assert words in ran.stderr and 'start the same command again' in ran.stderr
    # Builds for CPUs alone take a tenth of that.
    ran, told = set_up(**environment, PIP_EXTRA_INDEX_URL='https://example.org/cpu')
    assert ran.returncode == 0, ran.stderr
    assert told == ALL[1:]
    assert words in ran.stdout and 'going on' in ran.stdout


def test_an_index_of_one_s_own_is_passed_on(set_up):
    ran, _ = set_up(PIP_INDEX_URL='https://example.org/cpu')
    assert ran.stdout.count("pip's index: https://example.org/cpu") == len(ALL)


def test_no_suitable_python(set_up, bin_folder):
    for name in ('python3.10', 'python3.11', 'python3.12', 'python3.13'):
        shutil.copy(bin_folder / 'python3', bin_folder / name)
    ran, told = set_up(WRONG_VERSION='1')
    assert ran.returncode == 1 and told == []
    assert 'Python 3.10, 3.11, 3.12 or 3.13 is needed' in ran.stderr


def test_venv_of_another_python(set_up):
    set_up()
    ran, told = set_up(VENV_VERSION='3 14')
    assert ran.returncode == 1 and told == []
    assert '.venv has Python 3.14' in ran.stderr


@pytest.mark.parametrize(
    'driver, file, words',
    [
        ('595.10.01', 'torch', ''),
        ('580.65.06', 'torch', ''),
        ('575.57.08', 'torch-cuda12', "the GPU's driver 575.57.08 runs CUDA 12"),
        ('525.60.13', 'torch-cuda12', "the GPU's driver 525.60.13 runs CUDA 12"),
        ('470.82.01', 'torch', "the GPU's driver 470.82.01 is too old"),
        ('NVIDIA-SMI has failed', 'torch', ''),
    ],
)
def test_the_driver_decides_about_torch(set_up, bin_folder, driver, file, words):
    executable(bin_folder / 'nvidia-smi', f'#!/bin/sh\necho "{driver}"\n')
    ran, told = set_up()
    assert ran.returncode == 0, ran.stderr
    assert told == ['venv', 'build', file, *ALL[2:]]
    assert words in ran.stderr
    assert ('driver' in ran.stderr) == bool(words)


class TestCompiled:
    """--compiled-mmcv."""

    def test_compiles_and_stays(self, set_up, bin_folder):
        for name in ('c++', 'nvidia-smi'):
            executable(bin_folder / name, '#!/bin/sh\nexit 1\n')
        executable(bin_folder / 'nvcc', '#!/bin/sh\n')
        ran, told = set_up('--compiled-mmcv', need='tests')
        assert ran.returncode == 0, ran.stderr
        compiled = ['build', 'torch-compiled', 'build-compiled', 'mmcv', *CLASSIFICATION[3:]]
        assert told == ['venv', *compiled, 'openmmlab', 'tests', 'visual']
        assert "compiling mmcv's operators" in ran.stdout
        # Not undone by the next command, which does not ask for them.
        assert set_up(need='tests')[1] == []

    def test_on_top_of_an_environment_without(self, set_up, bin_folder):
        executable(bin_folder / 'c++', '#!/bin/sh\n')
        executable(bin_folder / 'nvcc', '#!/bin/sh\n')
        assert set_up()[1] == ['venv', *ALL]
        assert set_up('--compiled-mmcv')[1] == ['torch-compiled', 'build-compiled', 'mmcv']

    def test_progress(self, set_up, bin_folder):
        executable(bin_folder / 'c++', '#!/bin/sh\n')
        executable(bin_folder / 'nvcc', '#!/bin/sh\n')
        line = '  [3/78] c++ -MMD -MF x.o.d -pthread ... -c nms.cpp'
        ran, _ = set_up('--compiled-mmcv', FAIL='--force-reinstall', SAYS=line)
        assert '[set-up] mmcv: file 3 of 78' in ran.stdout and '-pthread' not in ran.stdout
        assert ran.returncode == 1 and "stage 'mmcv' failed" in ran.stderr

    def test_without_a_compiler(self, set_up):
        ran, told = set_up('--compiled-mmcv', CXX='no-such-compiler')
        assert ran.returncode == 1 and told == ['venv', 'build', 'torch-compiled']
        # the stage's own output goes to stdout
        assert 'no C++ compiler' in ran.stdout and 'apt-get install g++' in ran.stdout

    def test_a_gpu_without_its_compiler(self, set_up, bin_folder):
        executable(bin_folder / 'c++', '#!/bin/sh\n')
        path = ':'.join(
            folder
            for folder in (str(bin_folder), *os.environ['PATH'].split(':'))
            if not Path(folder, 'nvcc').exists()
        )
        # `df` and the like may lie in the folder of nvcc.
        ran, _ = set_up('--compiled-mmcv', PATH=path, CUDA_HOME='')
        assert ran.returncode == 1
        assert 'a GPU but no CUDA compiler (nvcc)' in ran.stdout


def test_active_environment_is_left_alone(set_up, tmp_path):
    ran, told = set_up(VIRTUAL_ENV='/somewhere')
    assert 'the active environment (/somewhere) is left alone' in ran.stdout
    assert told == ['venv', *ALL]


@pytest.mark.parametrize(
    'args, environment', [([], {'MMATTN_PYTHON': 'python3'}), (['--no-venv'], {})]
)
def test_own_environment_is_used_and_not_changed(set_up, checkout, bin_folder, args, environment):
    shutil.copy(bin_folder / 'python3', bin_folder / 'python')
    ran, told = set_up(*args, **environment)
    assert (ran.returncode, told) == (0, [])
    assert f'PYTHON={bin_folder}/python' in ran.stdout
    assert not (checkout / '.venv').exists()
    ran, _ = set_up(*args, **environment, LACKS='mmseg')
    assert ran.returncode == 1
    assert 'cannot import: mmseg' in ran.stderr
    ran, _ = set_up(*args, need='classification', **environment, LACKS='mmseg')
    assert ran.returncode == 0


def test_options_are_the_script_s_own():
    ran = subprocess.run(
        ['bash', ROOT / 'tools' / 'quickstart.sh', '--compile'], capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr == (
        '[set-up] error: unknown option: --compile (allowed: --no-venv, --compiled-mmcv)\n'
    )


def compiled_here(name):
    """Whether a distribution was built on this machine, for it: its tag names no standard."""
    wheel = importlib.metadata.distribution(name).read_text('WHEEL') or ''
    tags = [line.split(': ')[1] for line in wheel.splitlines() if line.startswith('Tag: ')]
    return any(tag.split('-')[2].startswith('linux_') for tag in tags)


@pytest.mark.skipif(
    not Path(sys.prefix, '.mmattn').is_dir() or Path(sys.prefix, '.mmattn', 'compiled').exists(),
    reason='not an environment that tools/env.sh made without --compiled-mmcv',
)
def test_nothing_in_the_environment_was_compiled():
    names = [dist.metadata['Name'] for dist in importlib.metadata.distributions()]
    assert {'torch', 'onedl-mmcv'} <= set(names)
    # mmattn has its kernels compiled where there is a compiler, and does without one.
    assert [name for name in names if compiled_here(name) and name != 'mmattn'] == []


@pytest.mark.slow
def test_set_up_calls_no_compiler(tmp_path):
    """What the set-up builds from source, with compilers that leave a note."""
    note = tmp_path / 'called'
    compilers = 'c++ clang clang++ cmake cc g++ gcc ld make ninja nvcc x86_64-linux-gnu-gcc'
    for name in compilers.split():
        executable(tmp_path / name, f'#!/bin/sh\necho "{name} $*" >>{note}\nexit 1\n')
    pins = [
        line
        for file in ('mmcv', 'classification', 'openmmlab')
        for line in (ROOT / 'requirements' / f'{file}.txt').read_text().splitlines()
        if line.startswith('onedl-')
    ]
    assert len(pins) == 5
    done = subprocess.run(
        [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '--no-deps',
         '--no-cache-dir', '-w', tmp_path / 'wheels', *pins],
        env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CC': f'{tmp_path}/cc',
             'CXX': f'{tmp_path}/c++'},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wheels = sorted(path.name for path in (tmp_path / 'wheels').iterdir())
    assert len(wheels) == 5 and all(name.endswith('-none-any.whl') for name in wheels)
    assert not note.exists(), note.read_text()
