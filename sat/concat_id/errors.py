"""Mistakes of the user's, told in one line, and the exit code that goes with them."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend: what was found, what is expected, what to do, in one line."""


def warn(message: str) -> None:
    """Print one line that does not stop the run."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process: 0 or what it returned, 2 after a `UserError`, 130 after Ctrl-C."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code)
