# shellcheck shell=bash
# Sets up the environment the project was tested in. Source it from bash, then ask for what is needed:
#
#     . tools/env.sh [--no-venv] [--compiled-mmcv]
#     mmattn_need classification     # torch, mmengine, mmcv, mmpretrain, mmattn
#     mmattn_need all                # and mmdet, mmsegmentation
#     mmattn_need tests              # and what the tests use
#
# It leaves the interpreter in $PYTHON, the checkout in $ROOT, the caller's other arguments in "${REST[@]}".
#
# By default it fills .venv in the checkout, stage by stage. A finished stage leaves a stamp with the
# hash of its requirements, so an interrupted set-up goes on where it stopped and a finished one is
# recognised in a second, without network. Nothing of mmcv is compiled: mmattn supplies the operators that mmcv
# would compile (docs/operators.md). --compiled-mmcv compiles them all the same, for good: that .venv
# keeps them. MMATTN_LOCKED=1 takes every package from requirements/locked.txt, each held against its
# SHA-256 (from PyPI: an index of CPU builds has other files). MMATTN_PYTHON=/path/to/python, or --no-venv (the `python` on PATH), uses an existing
# environment instead, which is only looked at, never changed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MMATTN_STAMPS="$ROOT/.venv/.mmattn"
MMATTN_PYTHONS='3.10, 3.11, 3.12 or 3.13'

mmattn_say() { printf '[set-up] %s\n' "$*"; }
mmattn_die() { printf '[set-up] error: %s\n' "$*" >&2; exit 1; }

# Prints the first interpreter that can make the environment, or nothing.
mmattn_find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' \
                >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
}

# mmattn_stage NAME "FILES" COMMAND...: runs COMMAND unless it already succeeded with these FILES.
mmattn_stage() {
    local name="$1" files="$2" key started="$SECONDS" log="$ROOT/.venv/.mmattn.log"
    shift 2
    # The files' contents without their names: the stamp survives a move of the checkout.
    # shellcheck disable=SC2086  # FILES is a list
    key="$( (cd "$ROOT" && cat $files; printf '%s ' "${@//$ROOT/}" "$MMATTN_VERSION") | cksum)"
    if [ "$(cat "$MMATTN_STAMPS/$name" 2>/dev/null)" = "$key" ]; then
        return
    fi
    mmattn_say "$name: $files"
    mmattn_check_disk "$name"
    if ! (cd "$ROOT" && set -o pipefail && "$@" 2>&1 | tee "$log" |
            sed -u '/^Requirement already satisfied/d'); then
        mmattn_die "stage '$name' failed$(mmattn_reason "$log"); the same command goes on from here"
    fi
    mkdir -p "$MMATTN_STAMPS"
    printf '%s\n' "$key" >"$MMATTN_STAMPS/$name"
    mmattn_say "$name: done in $((SECONDS - started)) s"
}

# What a failed command's output says about a full disk or a broken line, else where to look.
mmattn_reason() {
    if grep -qiE 'No space left on device|Errno 28' "$1"; then
        printf ': the disk is full (%s free for %s)' "$(mmattn_free_gb "$ROOT") GB" "$ROOT"
    elif [ -n "${MMATTN_LOCKED:-}" ] && grep -qi 'do not match the hashes' "$1"; then
        printf ': a package is not the one of requirements/locked.txt (an index with other builds?)'
    elif grep -qiE 'Read timed out|ReadTimeout|ConnectTimeout|Connection (broken|reset|refused|aborted)|NewConnectionError|IncompleteRead|name resolution|Name or service not known|Network is unreachable|ProxyError|Could not fetch URL|do not match the hashes' "$1"; then
        printf ': the download broke off (is the network up?)'
    else
        printf ' (see above)'
    fi
}

mmattn_free_gb() { df -Pk "$1" | awk 'NR == 2 {printf "%.1f", $4 / 1e6}'; }

# Says what a stage downloads and takes on disk, in GB, and stops before a disk that is too small.
mmattn_check_disk() {
    local download disk need free tmp="${TMPDIR:-/tmp}"
    case "$1" in
        torch) download=3.1 disk=5.6 ;;
        locked) download=3.7 disk=7.2 ;;
        classification) download=0.3 disk=0.7 ;;
        openmmlab) download=0.2 disk=0.5 ;;
        tests) download=0.1 disk=0.4 ;;
        *) return 0 ;;
    esac
    mmattn_say "$1: $download GB to download, $disk GB on disk (as the packages on PyPI are)"
    need="$disk"
    # pip unpacks from a temporary folder.
    if [ "$(df -Pk "$tmp" | awk 'NR == 2 {print $6}')" = "$(df -Pk "$ROOT" | awk 'NR == 2 {print $6}')" ]; then
        need="$(awk "BEGIN {print $disk + $download}")"
    elif awk "BEGIN {exit !($(mmattn_free_gb "$tmp") < $download)}"; then
        mmattn_no_room "$tmp" "$download" "$(mmattn_free_gb "$tmp")"
    fi
    free="$(mmattn_free_gb "$ROOT")"
    if awk "BEGIN {exit !($free < $need)}"; then
        mmattn_no_room "$ROOT" "$need" "$free"
    fi
}

# mmattn_no_room PLACE NEEDED FREE: an end, unless packages come from an index of the user's, where
# they may be smaller.
mmattn_no_room() {
    local text="$1 has $3 GB free, $2 GB are needed"
    if [ -n "${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-}" ]; then
        mmattn_say "$text for PyPI's packages; going on, as your own index may have smaller ones"
    else
        mmattn_die "$text: free some (or TMPDIR=/a/larger/place), then start the same command again"
    fi
}

mmattn_pip() { "$PYTHON" -m pip --disable-pip-version-check --no-input "$@"; }

# Python compiles what is imported when it is imported: compiling all of torch takes half a minute.
mmattn_pip_install() { mmattn_pip install --no-compile "$@"; }

# Prints the requirements of the newest torch that the GPU's driver runs and that can do what is asked.
mmattn_torch_file() {
    local driver
    if [ -n "$MMATTN_COMPILED" ]; then
        echo requirements/torch-compiled.txt
        return
    fi
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" ||
        driver=
    case "${driver%%.*}" in
        '' | *[!0-9]*) echo requirements/torch.txt ;;  # no GPU
        *) if [ "${driver%%.*}" -ge 580 ]; then
               echo requirements/torch.txt
           elif [ "${driver%%.*}" -ge 525 ]; then
               mmattn_say "the GPU's driver $driver runs CUDA 12: taking the newest torch for it" \
                   '(the newest of all wants driver 580)' >&2
               echo requirements/torch-cuda12.txt
           else
               mmattn_say "the GPU's driver $driver is too old for every torch that mmattn runs on: the" \
                   'GPU will not be used until there is driver 525, better 580' >&2
               echo requirements/torch.txt
           fi ;;
    esac
}

# mmcv from its sources. Where its build sees no torch, in an environment of pip's own, it leaves its
# operators out. No cache: a wheel with operators, built for another torch, could lie there.
mmattn_install_mmcv() (
    unset PYTHONPATH PIP_NO_BUILD_ISOLATION
    mmattn_pip_install --no-deps --no-cache-dir -r requirements/mmcv.txt
)

# Compiles mmcv's operators, or says what is missing before a long build starts.
mmattn_compile_mmcv() {
    command -v "${CXX:-c++}" >/dev/null ||
        mmattn_die "no C++ compiler, which --compiled-mmcv needs (Debian, Ubuntu: apt-get install g++;" \
            'Fedora: dnf install gcc-c++)'
    "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        mmattn_die "the headers of $PYTHON are missing, which --compiled-mmcv needs (Debian, Ubuntu:" \
            'apt-get install python3-dev; Fedora: dnf install python3-devel)'
    if command -v nvidia-smi >/dev/null && ! command -v nvcc >/dev/null && [ -z "${CUDA_HOME:-}" ]; then
        mmattn_die 'a GPU but no CUDA compiler (nvcc): --compiled-mmcv would build operators for the' \
            'CPU only. Install CUDA 12.8, or leave --compiled-mmcv away: then torchvision serves the GPU'
    fi
    # One compiler process needs up to 1.5 GB.
    local jobs memory
    jobs="$(nproc)"
    memory="$(awk '/MemAvailable/ {print int($2 / 1.5e6)}' /proc/meminfo)"
    [ "$memory" -ge "$jobs" ] || jobs="$((memory > 0 ? memory : 1))"
    export MAX_JOBS="${MAX_JOBS:-$jobs}"
    mmattn_say "compiling mmcv's operators, $MAX_JOBS files at a time: about 10 minutes on 2 cores"
    mmattn_pip install -r requirements/build-compiled.txt &&
        # Without Python's own flags, which these replace: they ask for debug information, half of
        # the compiler's work.
        CFLAGS="${CFLAGS:--O3 -g0}" MMCV_WITH_OPS=1 mmattn_pip install -v --no-cache-dir --no-deps \
            --force-reinstall --no-build-isolation -r requirements/mmcv.txt 2>&1 |
        sed -unE 's/^ *\[([0-9]+)\/([0-9]+)\] .*/[set-up] mmcv: file \1 of \2/p; /^ *(error|ERROR|Success)|FAILED/p'
}

# opencv-python links against libGL, which a machine without a screen often lacks.
mmattn_install() {
    mmattn_pip_install "$@" || return
    if ! "$PYTHON" -c 'import cv2' >/dev/null 2>&1; then
        mmattn_say 'no libGL here: replacing opencv-python by opencv-python-headless'
        mmattn_pip uninstall -y opencv-python &&
            mmattn_pip_install --force-reinstall --no-deps \
                "$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements/classification.txt)"
    fi
}

# The CPU kernels now, so that no training begins with a minute of compiling. Without a compiler the
# equations run, and `python -m mmattn.doctor` says so.
mmattn_compile_kernels() {
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        mmattn_say 'no C++ compiler: the gates run as equations on the CPU, slower'
    "$PYTHON" -W ignore -c 'from mmattn.ops.native import build; build.library()'
}

# Makes .venv where it is not there yet.
mmattn_make_venv() {
    local base
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] &&
            [ "${VIRTUAL_ENV:-}" != "$ROOT/.venv" ] && [ ! -d "$MMATTN_STAMPS" ]; then
        mmattn_say "the active environment (${VIRTUAL_ENV:-${CONDA_PREFIX:-}}) is left alone;" \
            '--no-venv uses it instead'
    fi
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        base="$(mmattn_find_python)"
        [ -n "$base" ] || mmattn_die "Python $MMATTN_PYTHONS is needed; none of python3," \
            'python3.13 ... python3.10 on PATH is one'
        mmattn_say "making .venv with $("$base" --version) ($base)"
        "$base" -m venv "$ROOT/.venv" ||
            mmattn_die "$base cannot make virtual environments (Debian, Ubuntu:" \
                'apt-get install python3-venv)'
    fi
    MMATTN_VERSION="$("$PYTHON" -c 'import sys; print(*sys.version_info[:2])')"
    case "$MMATTN_VERSION" in
        '3 10' | '3 11' | '3 12' | '3 13') ;;
        *) mmattn_die ".venv has Python ${MMATTN_VERSION/ /.}; $MMATTN_PYTHONS is needed:" \
            'remove .venv and start again' ;;
    esac
}

# The stages of .venv up to the one that is needed.
mmattn_fill_venv() {
    local torch
    torch="$(mmattn_torch_file)"
    if [ -n "${MMATTN_LOCKED:-}" ]; then
        [ "$torch" = requirements/torch.txt ] ||
            mmattn_die "MMATTN_LOCKED=1 is for requirements/torch.txt; this set-up takes $torch"
        # What the stages below ask for is then there, and nothing else is downloaded but what pip
        # builds mmcv with.
        mmattn_stage locked requirements/locked.txt \
            mmattn_install --require-hashes --no-deps -r requirements/locked.txt
    fi
    mmattn_stage build requirements/build.txt mmattn_pip install -r requirements/build.txt
    mmattn_stage torch "$torch" mmattn_pip_install -r "$torch"
    if [ -n "$MMATTN_COMPILED" ]; then
        mmattn_stage mmcv "requirements/mmcv.txt requirements/build-compiled.txt $torch" \
            mmattn_compile_mmcv
    else
        mmattn_stage mmcv requirements/mmcv.txt mmattn_install_mmcv
    fi
    mmattn_stage classification 'requirements/classification.txt requirements/runtime.txt' \
        mmattn_install -r requirements/classification.txt -r requirements/runtime.txt
    mmattn_stage mmattn 'setup.py pyproject.toml' \
        mmattn_pip install --no-deps --no-build-isolation -e .
    mmattn_stage kernels 'mmattn/ops/native/*.cpp mmattn/ops/native/*.h mmattn/ops/native/*.py' \
        mmattn_compile_kernels
    [ "$1" != classification ] || return 0
    mmattn_stage openmmlab requirements/openmmlab.txt mmattn_install -r requirements/openmmlab.txt
    [ "$1" != all ] || return 0
    mmattn_stage tests 'requirements/tests.txt requirements/docs.txt' \
        mmattn_install -r requirements/tests.txt -r requirements/docs.txt
    # Without its dependencies, which are there: for them pip might take another OpenCV or torch.
    mmattn_stage visual requirements/visual.txt \
        mmattn_pip_install --no-deps --no-build-isolation -r requirements/visual.txt
}

# Looks whether an environment somebody else made has what is needed.
mmattn_check_python() {
    local name missing=()
    for name in torch torchvision mmengine mmcv mmpretrain $([ "$1" = classification ] || echo mmdet mmseg); do
        # mmattn first: it supplies mmcv's operators where they are not compiled.
        PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -W ignore -c "import mmattn, $name" \
            >/dev/null 2>&1 || missing+=("$name")
    done
    [ "${#missing[@]}" -eq 0 ] || mmattn_die "$PYTHON cannot import: ${missing[*]}." \
        'Install them there, or run without MMATTN_PYTHON / --no-venv to get a .venv;' \
        "$PYTHON $ROOT/tools/doctor.py says more"
}

# mmattn_need classification|all|tests: does what is still to be done for it.
mmattn_need() {
    if [ -n "$MMATTN_FOREIGN" ]; then
        mmattn_check_python "$1"
        return
    fi
    # .venv comes without bytecode (mmattn_pip_install): not kept, every process would compile
    # torch and the codebases again, 10 seconds each time.
    unset PYTHONDONTWRITEBYTECODE
    mkdir -p "$ROOT/.venv"
    if command -v flock >/dev/null; then
        exec 9>"$ROOT/.venv/.lock"
        if ! flock -n 9; then
            mmattn_say 'another set-up of this checkout is running; waiting for it'
            flock 9
        fi
    fi
    if [ -n "$MMATTN_COMPILED" ]; then
        mkdir -p "$MMATTN_STAMPS"
        touch "$MMATTN_STAMPS/compiled"
    elif [ -e "$MMATTN_STAMPS/compiled" ]; then
        MMATTN_COMPILED=yes
    fi
    mmattn_make_venv
    mmattn_fill_venv "$1"
    if command -v flock >/dev/null; then
        flock -u 9
        exec 9>&-
    fi
}

MMATTN_COMPILED='' MMATTN_FOREIGN='' REST=()
for argument in "$@"; do
    case "$argument" in
        --no-venv) MMATTN_FOREIGN=yes ;;
        --compiled-mmcv) MMATTN_COMPILED=yes ;;
        *) REST+=("$argument") ;;
    esac
done
PYTHON="$ROOT/.venv/bin/python"
if [ -n "${MMATTN_PYTHON:-}" ]; then
    PYTHON="$(command -v "$MMATTN_PYTHON")" || mmattn_die "MMATTN_PYTHON=$MMATTN_PYTHON not found"
    [ "$PYTHON" = "$ROOT/.venv/bin/python" ] || MMATTN_FOREIGN=yes
elif [ -n "$MMATTN_FOREIGN" ]; then
    PYTHON="$(command -v python || command -v python3)" || mmattn_die 'no python on PATH'
    [ "$PYTHON" != "$ROOT/.venv/bin/python" ] || MMATTN_FOREIGN=
fi
if [ -n "$MMATTN_FOREIGN" ]; then
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHON
