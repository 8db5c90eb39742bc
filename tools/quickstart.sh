#!/usr/bin/env bash
# Sets up the environment, then trains and tests every kind of model on handwritten digits:
#     bash tools/quickstart.sh [--no-venv]
# It may be interrupted at any point; the same command goes on from there.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh" "$@"
cd "$ROOT"
"$PYTHON" -m mmattn.runs.quickstart
