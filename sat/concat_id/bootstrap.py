"""How a Python script at the top of the project sets itself up, as the launchers do; needs the standard library alone."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from concat_id.errors import UserError
from concat_id.files import PROJECT_ROOT

LIBRARIES = ("torch", "diffusers", "transformers", "sentencepiece", "ftfy", "insightface", "onnxruntime", "yaml", "imageio_ffmpeg")
ENTERED = "CONCAT_ID_ENTERED"  # tells the interpreter that is started that it is the one
SET_UP = 'source "$0"; set_up; printf %s "$PYTHON"'


def enter_environment() -> None:
    """Go on in CONCAT_ID_PYTHON, in this interpreter if it has the libraries, or else in .venv, which scripts/setup.sh makes once.

    Prepares the face detector too. Does not return where another interpreter takes over or set-up fails.
    """
    if os.environ.pop(ENTERED, None):
        return
    environment = dict(os.environ)
    if not environment.get("CONCAT_ID_PYTHON") and all(map(find_spec, LIBRARIES)):
        environment["CONCAT_ID_PYTHON"] = sys.executable
    command = ["bash", "-euo", "pipefail", "-c", SET_UP, str(PROJECT_ROOT / "scripts" / "setup.sh")]
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise UserError(f"bash: cannot be started ({error.strerror}), expected it for scripts/setup.sh; install it") from error
    if done.returncode:
        sys.exit(done.returncode)
    python = done.stdout
    if Path(python) == Path(sys.executable):
        return
    sys.stdout.flush()
    os.execve(python, [python, *sys.argv], {**os.environ, ENTERED: "1"})
