#!/usr/bin/env bash
# Looks all packages of requirements/locked.txt (or of the files given) up among known vulnerabilities:
#     bash tools/audit.sh [requirements ...]
# Exit code 0 if there are none, 1 if there are any, 2 for an error, 3 if nobody could be asked; a line says which.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
base="$(mmattn_find_python)"
[ -n "$base" ] || mmattn_die "Python $MMATTN_PYTHONS is needed"
# Of its own: what the audit brings must not change what is audited.
venv="$ROOT/.venv/.audit"
if ! { "$base" -m venv "$venv" &&
        "$venv/bin/python" -m pip --disable-pip-version-check --no-input install -q --require-hashes \
            -r "$ROOT/requirements/audit.txt"; } >/dev/null 2>&1; then
    echo 'not audited: pip-audit could not be installed (is the network up?)'
    exit 3
fi
exec "$venv/bin/python" "$ROOT/tools/audit.py" "${@:-$ROOT/requirements/locked.txt}"
