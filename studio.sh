#!/usr/bin/env bash
# A web page to work in, at http://127.0.0.1:7860; bash studio.sh --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/setup.sh"
set_up studio
exec "$PYTHON" "$ROOT/sat/studio.py" "$@"
