"""Starting a script of the project inside the tests' process, as a user starts it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from concat_id.errors import run


class Ended(NamedTuple):
    """How a script ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


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
