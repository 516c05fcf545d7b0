"""How an entry script sets the project up before it needs more than the standard library."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from concat_id.errors import UserError, reason_of
from concat_id.files.paths import PROJECT_ROOT

LIBRARIES = ("torch", "diffusers", "transformers", "sentencepiece", "ftfy", "insightface", "onnxruntime", "omegaconf", "imageio_ffmpeg")
OLDEST_TORCH = {"diffusers": (2, 6), "torchao": (2, 11)}  # as requirements.txt says; transformers imports torchao wherever it is installed
ENTERED = "CONCAT_ID_ENTERED"  # tells the interpreter that is started that it is the one
SET_UP = 'source "$0"; set_up "$@"; printf %s "$PYTHON"'


def set_up(*parts: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the interpreter to use: CONCAT_ID_PYTHON, or that of .venv, which scripts/setup.sh makes once with the `parts` asked for.

    Prepares the face detector too. Leaves the process where set-up fails.
    """
    command = ["bash", "-euo", "pipefail", "-c", SET_UP, str(PROJECT_ROOT / "scripts" / "setup.sh"), *parts]
    try:
        done = subprocess.run(command, env=dict(environment), stdout=subprocess.PIPE, check=False)
    except OSError as error:
        raise UserError(f"bash: cannot be started ({error.strerror}), expected it for scripts/setup.sh; install it") from error
    if done.returncode:
        sys.exit(done.returncode)
    return os.fsdecode(done.stdout)


def parts_for(words: Sequence[str]) -> tuple[str, ...]:
    """Which parts of requirements.txt a command line needs besides the base."""
    acceleration = any(word.startswith("--quantize") or word.endswith("dbcache") for word in words)
    neighbours = any(word in ("consisid", "--model=consisid") or word.endswith("consisid.yaml") for word in words)
    return ("acceleration",) * acceleration + ("neighbours",) * neighbours


def enter_environment() -> None:
    """Go on in CONCAT_ID_PYTHON, in this interpreter if it has the libraries, or else in .venv; does not return if another takes over."""
    if os.environ.pop(ENTERED, None):
        return
    environment = dict(os.environ)
    if not environment.get("CONCAT_ID_PYTHON") and all(map(find_spec, LIBRARIES)):
        environment["CONCAT_ID_PYTHON"] = sys.executable
    python = set_up(*parts_for(sys.argv), environment=environment)
    if Path(python) != Path(sys.executable):
        sys.stdout.flush()
        os.execve(python, [python, *sys.argv], {"PYTHONUTF8": "1", **os.environ, ENTERED: "1"})


def enter_made_environment() -> None:
    """Go on in .venv where it is whole and this interpreter lacks the libraries, unless CONCAT_ID_PYTHON is set. Nothing is set up."""
    made = PROJECT_ROOT / ".venv"
    python = made / "bin" / "python"
    if os.environ.get("CONCAT_ID_PYTHON") or all(map(find_spec, LIBRARIES)) or not python.exists():
        return
    whole = (made / ".installed-base").exists() or not (made / ".incomplete").exists()  # a part may just be added to it
    if whole and not made.samefile(sys.prefix):
        sys.stdout.flush()
        os.execv(python, [str(python), *sys.argv])


def check_torch() -> None:
    """Raise `UserError` where this interpreter's torch is older than its libraries can do with; what is missing is told elsewhere."""
    for library, oldest in OLDEST_TORCH.items():
        try:
            found, _ = version("torch"), version(library)
        except PackageNotFoundError:
            continue
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < oldest:
            raise UserError(f"{sys.executable}: torch: found {found}, expected {oldest[0]}.{oldest[1]} or newer beside {library}; "
                            f"{'uninstall torchao, or ' * (library == 'torchao')}install a newer torch there, or use .venv "
                            "(bash scripts/setup.sh)")  # fmt: skip


def has_libraries() -> bool:
    """Tell whether the libraries are here. Raises `UserError` for a torch that cannot be imported."""
    ready = all(map(find_spec, LIBRARIES))
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # of what it is linked to
        if ready:
            raise UserError(f"torch: cannot be imported ({reason_of(error)}); install it again: bash scripts/setup.sh") from error
    return ready
