#!/usr/bin/env bash
# Sets up, checks the style and runs the tests; further arguments go to pytest: bash tests/run.sh -k schedule
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../scripts/setup.sh"
set_up training studio acceleration curation ray people tests
if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "Installing chromium, in which the page is tested ..." >&2
  { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; } >>"$SETUP_LOG" 2>&1 || tail -n 3 "$SETUP_LOG" >&2
fi
cd "$ROOT"
"$PYTHON" -m ruff check .
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two processes of one thread take half the time of one process of two
exec "$PYTHON" -m pytest -n 2 "$@"
