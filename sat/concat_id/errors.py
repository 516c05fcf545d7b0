"""Mistakes of the user's, told in one line."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 2000  # characters of a line; names and values quoted in it may have millions
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # what a terminal obeys or cannot show
SPACES = re.compile(r"[ \t\n\v\f\r]+")  # no others, which names of files have


class UserError(Exception):
    """Something the user can mend: what was found, what is expected, what to do, in one line."""


def warn(*messages: str) -> None:
    """Print a line each that does not stop the run, above a progress bar if there is one."""
    for message in messages:
        tell(f"warning: {message}")


def tell(message: str) -> None:
    """Print one line beside the results, as `warn` does, that is no warning."""
    progress = sys.modules.get("tqdm")
    write = progress.tqdm.write if progress else print
    write(one_line(message), file=sys.stderr)
    sys.stderr.flush()


def report(*problems: object) -> int:
    """Print what went wrong, in a line each; returns the exit code, 1 if anything did."""
    for problem in problems:
        print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)
    return int(bool(problems))


@contextmanager
def silence() -> Iterator[None]:
    """Hide what libraries write to standard error past Python."""
    with open(os.devnull, "w") as nowhere, open(os.dup(2), "w") as kept:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept.fileno(), 2)


def printable(text: object) -> str:
    """Write a name so that a terminal obeys nothing in it; any other name stays as it is."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def one_line(message: object) -> str:
    """Put a message that quotes a prompt, a path or a library on one line; a terminal obeys nothing in it, and it ends somewhere."""
    text = str(message)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return printable(SPACES.sub(" ", text).strip(" "))


def shortened(text: str, limit: int = 200) -> str:
    """Cut text that is quoted in a message, if it is long."""
    return text if len(text) <= limit else f"{text[:limit]} ..."


def counted(**counts: int) -> str:
    """Say how many there are of each noun: "1 problem, 2 notes"."""
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())


def finer(dtype: object) -> str:
    """What to try against overflow in a torch dtype, as the end of a message."""
    tries = {"torch.bfloat16": "or try --bf16 false", "torch.float16": "or try --bf16 false --fp16 false"}
    return tries.get(str(dtype), "or download them again")


def is_text(value: str) -> bool:
    """Whether UTF-8 can write it: no half of a pair of surrogates, no byte of a file's name that is no text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def reason_of(error: BaseException, limit: int = 200) -> str:
    """Say what an exception of a library says, or else what it is called."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:limit] or type(error).__name__
