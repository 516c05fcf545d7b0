"""Starting a script of the project inside the tests' process, as a user starts it."""

import importlib.util
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import imageio_ffmpeg
import pytest

from concat_id.errors import UserError
from concat_id.startup import run


class Ended(NamedTuple):
    """How a script ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def done(self) -> str:
        """What a script that ended well printed."""
        assert self.code == 0, self.err
        return self.out


class Call:
    """A pickle that calls a function with arguments, and sets a state, when it is loaded."""

    def __init__(self, function, *arguments, state=None):
        self.value = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.value


def refused(message: str, call, *arguments, **options) -> str:
    """Check that a call ends in one line for the user that has `message`, as it stands or as a regular expression; returns the line."""
    with pytest.raises(UserError) as refusal:
        call(*arguments, **options)
    told = str(refusal.value)
    assert (message in told or re.search(message, told)) and "\n" not in told and len(told) < 700, told
    return told


@contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen]:
    """Run Python code that prints a line and waits; yield the process once the line, `.line`, is there, and kill it at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "sat")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        process.line = process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def no_file_larger_than(limit: int = 64 * 1024) -> Iterator[None]:
    """Let the system cut off what is written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


LOCKING = """import sys; from pathlib import Path; from concat_id.files.locks import locked
with locked(Path(sys.argv[1]), "a test"): print("locked", flush=True); sys.stdin.read()
"""


def write_program(path: Path, text: str) -> Path:
    """Write a program that a shell can start, with the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def ffmpeg(*arguments: object, data: bytes | None = None) -> None:
    """Run ffmpeg, which overwrites what is there."""
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], input=data, check=True)


def load_script(file: Path) -> ModuleType:
    """Import a script that is not on the path."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def call_main(script: ModuleType, options, monkeypatch, capture) -> Ended:
    """Call the script's main with options; `capture` is capsys or capfd."""
    monkeypatch.setattr(sys, "argv", [Path(script.__file__).name, *map(str, options)])
    with pytest.raises(SystemExit) as stopped:
        run(script.main)
    return Ended(stopped.value.code or 0, *capture.readouterr())
