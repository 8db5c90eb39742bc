#!/usr/bin/env bash
# Sets up the environment, then trains and tests every kind of model on handwritten digits:
#     bash tools/quickstart.sh [--no-venv] [--compiled-mmcv]
# It may be interrupted at any point; the same command goes on from there.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh" "$@"
[ "${#REST[@]}" -eq 0 ] || mmattn_die "unknown option: ${REST[*]} (allowed: --no-venv, --compiled-mmcv)"
cd "$ROOT"
# The first numbers do not wait for what only detectors need.
mmattn_need classification
"$PYTHON" -m mmattn.runs.quickstart classification
mmattn_need all
"$PYTHON" -m mmattn.runs.quickstart
