#!/usr/bin/env bash
# Runs all the checks: `bash tools/run_tests.sh [--no-venv] [pytest options]`.
set -euo pipefail

venv=()
if [ "${1:-}" = --no-venv ]; then
    venv=(--no-venv)
    shift
fi
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${venv[@]}"
cd "$ROOT"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# One thread a test process: they share the cores, and so do the processes that some tests start.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n 2 "$@"
