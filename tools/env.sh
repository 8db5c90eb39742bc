# Sets up the environment the project was tested in. Source it from bash; it leaves the interpreter in
# $PYTHON and the checkout in $ROOT:
#
#     . tools/env.sh [--no-venv]
#
# By default it fills .venv in the checkout, stage by stage. A finished stage leaves a stamp with the
# hash of its requirements, so an interrupted set-up goes on where it stopped and a finished one is
# recognised in a second, without network. MMATTN_PYTHON=/path/to/python, or --no-venv (the `python`
# on PATH), uses an existing environment instead, which is only looked at, never changed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON=
MMATTN_STAMPS="$ROOT/.venv/.mmattn"

mmattn_say() { printf '[set-up] %s\n' "$*"; }
mmattn_die() { printf '[set-up] error: %s\n' "$*" >&2; exit 1; }

# Prints the first interpreter that can make the environment, or nothing.
mmattn_find_python() {
    local name
    for name in python3 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' \
                >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
}

# mmattn_stage NAME "FILES" COMMAND...: runs COMMAND unless it already succeeded with these FILES.
mmattn_stage() {
    local name="$1" files="$2" key started="$SECONDS"
    shift 2
    # The files' contents without their names: the stamp survives a move of the checkout.
    # shellcheck disable=SC2086  # FILES is a list
    key="$( (cd "$ROOT" && cat $files; printf '%s ' "${@//$ROOT/}" "$MMATTN_VERSION") | cksum)"
    if [ "$(cat "$MMATTN_STAMPS/$name" 2>/dev/null)" = "$key" ]; then
        return
    fi
    mmattn_say "$name: $files"
    (cd "$ROOT" && set -o pipefail && "$@" 2>&1 | sed -u '/^Requirement already satisfied/d') ||
        mmattn_die "stage '$name' failed (see above); run the same command again to go on from here"
    mkdir -p "$MMATTN_STAMPS"
    printf '%s\n' "$key" >"$MMATTN_STAMPS/$name"
    mmattn_say "$name: done in $((SECONDS - started)) s"
}

mmattn_pip() { "$PYTHON" -m pip --disable-pip-version-check --no-input "$@"; }

# Compiles mmcv's operators with what is there, or says what is missing before a long build starts.
mmattn_install_openmmlab() {
    if ! "$PYTHON" -c 'import mmcv._ext' >/dev/null 2>&1; then
        command -v "${CXX:-c++}" >/dev/null ||
            mmattn_die "no C++ compiler: mmcv's operators are compiled here (Debian, Ubuntu:" \
                'apt-get install g++; Fedora: dnf install gcc-c++)'
        "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
            mmattn_die "the headers of $PYTHON are missing (Debian, Ubuntu: apt-get install" \
                'python3-dev; Fedora: dnf install python3-devel)'
        if command -v nvidia-smi >/dev/null && ! command -v nvcc >/dev/null &&
                [ -z "${CUDA_HOME:-}" ]; then
            mmattn_say 'a GPU but no CUDA compiler (nvcc): building mmcv for CPU only.' \
                'Detectors on the GPU need it: install CUDA 12.8, remove .venv and start again.'
            export CUDA_VISIBLE_DEVICES=''
        fi
        # One compiler process needs up to 1.5 GB.
        local jobs memory
        jobs="$(nproc)"
        memory="$(awk '/MemAvailable/ {print int($2 / 1.5e6)}' /proc/meminfo)"
        [ "$memory" -ge "$jobs" ] || jobs="$((memory > 0 ? memory : 1))"
        export MAX_JOBS="${MAX_JOBS:-$jobs}"
        mmattn_say "compiling mmcv's operators unless pip has them in its cache, $MAX_JOBS files at a" \
            'time: about 13 minutes on 2 cores'
    fi
    MMCV_WITH_OPS=1 mmattn_pip install --no-build-isolation -r requirements/openmmlab.txt
}

# opencv-python links against libGL, which a machine without a screen often lacks.
mmattn_install_tests() {
    mmattn_pip install -r requirements/runtime.txt -r requirements/tests.txt || return
    if ! "$PYTHON" -c 'import cv2' >/dev/null 2>&1; then
        mmattn_say 'no libGL here: replacing opencv-python by opencv-python-headless'
        mmattn_pip uninstall -y opencv-python &&
            mmattn_pip install --force-reinstall --no-deps opencv-python-headless
    fi
}

mmattn_set_up_venv() {
    local base
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] &&
            [ "${VIRTUAL_ENV:-}" != "$ROOT/.venv" ] && [ ! -d "$MMATTN_STAMPS" ]; then
        mmattn_say "the active environment (${VIRTUAL_ENV:-${CONDA_PREFIX:-}}) is left alone;" \
            '--no-venv uses it instead'
    fi
    mkdir -p "$ROOT/.venv"
    if command -v flock >/dev/null; then
        exec 9>"$ROOT/.venv/.lock"
        if ! flock -n 9; then
            mmattn_say 'another set-up of this checkout is running; waiting for it'
            flock 9
        fi
    fi
    PYTHON="$ROOT/.venv/bin/python"
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        base="$(mmattn_find_python)"
        [ -n "$base" ] || mmattn_die 'Python 3.10, 3.11 or 3.12 is needed; none of python3,' \
            'python3.12, python3.11, python3.10 on PATH is one'
        mmattn_say "making .venv with $("$base" --version) ($base)"
        "$base" -m venv "$ROOT/.venv" ||
            mmattn_die "$base cannot make virtual environments (Debian, Ubuntu:" \
                'apt-get install python3-venv)'
    fi
    MMATTN_VERSION="$("$PYTHON" -c 'import sys; print(*sys.version_info[:2])')"
    case "$MMATTN_VERSION" in
        '3 10' | '3 11' | '3 12') ;;
        *) mmattn_die ".venv has Python ${MMATTN_VERSION/ /.}; 3.10, 3.11 or 3.12 is needed:" \
            'remove .venv and start again' ;;
    esac
    mmattn_stage build requirements/build.txt mmattn_pip install -r requirements/build.txt
    mmattn_stage torch requirements/torch.txt mmattn_pip install -r requirements/torch.txt
    mmattn_stage openmmlab requirements/openmmlab.txt mmattn_install_openmmlab
    mmattn_stage tests 'requirements/runtime.txt requirements/tests.txt' mmattn_install_tests
    mmattn_stage mmattn 'setup.py pyproject.toml' \
        mmattn_pip install --no-deps --no-build-isolation -e .
    if command -v flock >/dev/null; then
        flock -u 9
        exec 9>&-
    fi
}

# Looks whether an environment somebody else made has what the project needs.
mmattn_check_python() {
    local name missing=()
    for name in torch mmengine mmcv.ops mmdet mmpretrain mmseg; do
        "$PYTHON" -c "import $name" >/dev/null 2>&1 || missing+=("$name")
    done
    [ "${#missing[@]}" -eq 0 ] || mmattn_die "$PYTHON cannot import: ${missing[*]}." \
        'Install them there, or run without MMATTN_PYTHON / --no-venv to get a .venv'
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
}

if [ -n "${MMATTN_PYTHON:-}" ]; then
    PYTHON="$(command -v "$MMATTN_PYTHON")" || mmattn_die "MMATTN_PYTHON=$MMATTN_PYTHON not found"
elif [ "${1:-}" = --no-venv ]; then
    PYTHON="$(command -v python || command -v python3)" || mmattn_die 'no python on PATH'
fi
if [ -n "${PYTHON:-}" ] && [ "$PYTHON" != "$ROOT/.venv/bin/python" ]; then
    mmattn_check_python
else
    mmattn_set_up_venv
fi
export PYTHON
