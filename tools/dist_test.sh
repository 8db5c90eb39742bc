#!/usr/bin/env bash
# Tests in NPROC processes of this machine, one a GPU, or on CPUs if there is no GPU:
#     tools/dist_test.sh CONFIG CHECKPOINT NPROC [options of test.py]
# Several machines: NNODES, NODE_RANK (0 ... NNODES - 1), MASTER_ADDR and PORT as environment variables.
# A run of which a process dies starts again and tests anew, RESTARTS (3) times.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT NPROC [options of test.py]" >&2; exit 2; }

TOOLS="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$TOOLS/../mmattn/runs/launch.py" "$3" \
    "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"
