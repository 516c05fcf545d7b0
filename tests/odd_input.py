"""What users' files hold that nobody expects: any JSON in any place, and paths that name no file."""

import os
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from in_process import Ended

from concat_id.errors import UserError, one_line
from concat_id.startup import run

FEW = settings(max_examples=40, deadline=None, derandomize=True)
ODD = ["", " ", "../../x", "/dev/zero", "~nosuchuser", "a\0b", "x" * 5000, "\udce9", "\ud800", "\x1b[31m", "²", "=1+1", "a\nb", "@@"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD) | st.text(max_size=4) | st.just(10**200)
SEVERAL = {"max_size": 3}
VALUES = st.recursive(SCALARS, lambda of: st.lists(of, **SEVERAL) | st.dictionaries(st.text(**SEVERAL), of, **SEVERAL), max_leaves=4)


def places(value, path=()):
    """Where a JSON document has values."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    """The document with another value at `path`."""
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@st.composite
def mutated(draw, document):
    """The document with something else in one place."""
    return replaced(document, draw(st.sampled_from(list(places(document)))), draw(VALUES))


def odd_paths(folder: Path) -> dict[str, str]:
    """A path of each kind that names no file and no folder."""
    os.mkfifo(folder / "pipe.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "nowhere.json").symlink_to("gone.json")
    here = {kind: str(folder / f"{kind}.json") for kind in ("pipe", "loop", "nowhere")}
    return here | {"long": "x" * 300, "deep": "/".join(["x" * 200] * 30), "zero": "a\0b", "user": "~nosuchuser/a", "device": "/dev/zero",
                   "bytes": "\udce9.json", "surrogate": "\ud800", "none": "none.json"}  # fmt: skip


def result_or_line(place: str, call, *arguments):
    """What a call gives, or None where it ends in one line for the user that begins with `place`, a regular expression."""
    try:
        return call(*arguments)
    except UserError as error:
        assert re.match(place, str(error)) and len(one_line(error)) < 2100, error


def start(script, *options) -> Ended:
    """Call a script's main with options, without fixtures, which cannot be used for generated input."""
    out, err = StringIO(), StringIO()
    with patch("sys.argv", [Path(script.__file__).name, *map(str, options)]), redirect_stdout(out), redirect_stderr(err):
        try:
            run(script.main)
        except SystemExit as stopped:
            return Ended(stopped.code or 0, out.getvalue(), err.getvalue())


def is_told(ended: Ended, *codes: int) -> bool:
    """Whether a failure is one line of one screen, without what a terminal obeys."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    return ended.code in codes and len(lines) == 1 and len(lines[0]) < 2100 and "\x1b" not in ended.err and "Traceback" not in ended.err
