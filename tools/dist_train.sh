#!/usr/bin/env bash
# Trains in NPROC processes of this machine, one a GPU, or on CPUs if there is no GPU:
#     tools/dist_train.sh CONFIG NPROC [options of train.py]
# Several machines: NNODES, NODE_RANK (0 ... NNODES - 1), MASTER_ADDR and PORT as environment variables.
# A run of which a process dies starts again and trains on from its last checkpoint, RESTARTS (3) times.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG NPROC [options of train.py]" >&2; exit 2; }

TOOLS="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$TOOLS/../mmattn/runs/launch.py" "$2" \
    "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
