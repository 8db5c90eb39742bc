#!/usr/bin/env bash
# Trains on a Slurm cluster:
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are environment variables; with
# GPUS_PER_NODE=0, GPUS counts processes without a GPU.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]" >&2; exit 2; }

TOOLS="$(cd "$(dirname "$0")" && pwd)"
for name in GPUS GPUS_PER_NODE CPUS_PER_TASK; do
    # bash would say so and start the training all the same.
    case "${!name:-0}" in
        *[!0-9]*) printf 'error: %s must be a number, got %q\n' "$name" "${!name}" >&2; exit 2 ;;
    esac
done
GPUS="${GPUS:-8}"
GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
resources=(--ntasks="$GPUS" --cpus-per-task="${CPUS_PER_TASK:-5}")
if [ "$GPUS_PER_NODE" -gt 0 ]; then
    resources+=(--gres="gpu:$GPUS_PER_NODE" --ntasks-per-node="$GPUS_PER_NODE")
fi
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
# shellcheck disable=SC2086  # SRUN_ARGS is a list
exec srun -p "$1" --job-name="$2" "${resources[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$TOOLS/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}"
