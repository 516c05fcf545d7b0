"""Mistakes of the user's, told in one line, and the exit code that goes with them."""

import sys
from collections.abc import Callable, Mapping
from typing import Any


class UserError(Exception):
    """Something the user can mend: what was found, what is expected, what to do, in one line."""


def warn(message: str) -> None:
    """Print one line that does not stop the run."""
    print(f"warning: {one_line(message)}", file=sys.stderr, flush=True)


def report(problem: object) -> None:
    """Print what went wrong, in one line."""
    print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)


def one_line(message: object) -> str:
    """Put a message that quotes a prompt, a path or a library on one line."""
    return " ".join(str(message).split())


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process: 0 or what it returned, 2 after a `UserError`, 130 after Ctrl-C."""
    try:
        code = main() or 0
    except UserError as error:
        report(error)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code)


def check_least(arguments: Any, least: Mapping[str, int]) -> None:
    """Raise `UserError` for the first option of a parsed command line that is less than `least` says."""
    for name, smallest in least.items():
        if getattr(arguments, name) < smallest:
            raise UserError(f"command line: --{name.replace('_', '-')}: found {getattr(arguments, name)}, expected at least {smallest}")
