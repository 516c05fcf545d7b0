#!/usr/bin/env bash
# Everything that a machine with one GPU can prove in ten minutes: bash tests/gpu/run.sh [--parts ...]; --help tells more.
# Takes .venv, or the Python of CONCAT_ID_PYTHON; wheels that tests/gpu/fetch.sh has brought come before what that has installed, in
# data/gpu_site, which PYTHONPATH gives to other benches.
set -euo pipefail
HERE="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
PYTHON="${CONCAT_ID_PYTHON:-$HERE/../../.venv/bin/python}"
if compgen -G "$HERE/wheels/*.whl" > /dev/null; then
  SITE="$HERE/../../data/gpu_site"
  rm -rf "$SITE"
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SITE" "$HERE"/wheels/*.whl
  export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1
"$PYTHON" "$HERE/suite.py" "$@"
