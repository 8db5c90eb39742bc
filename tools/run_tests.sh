#!/usr/bin/env bash
# Runs the checks: `bash tools/run_tests.sh [--all] [--no-venv] [--compiled-mmcv] [pytest options]`.
# --all adds the tests that take longer, which are marked `slow`.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh" "$@"
cd "$ROOT"
mmattn_need tests

tests='not slow' options=()
for option in "${REST[@]}"; do
    case "$option" in
        --all) tests='slow or not slow' ;;
        *) options+=("$option") ;;
    esac
done
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# One thread a test process: they share the cores, and so do the processes that some tests start. Three
# keep two cores busy, as a sixth of the time is waiting for such processes.
# Each begins with a third of the tests, one after another, so that what a file's tests share is made
# once, and takes from the others what is left.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n 3 --dist worksteal -m "$tests" "${options[@]}"
