"""Command lines whose mistakes are told in one line: options that are known, paths that can be, numbers that are numbers."""

import argparse
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from concat_id.config.typed import LARGEST, WHOLE, nearest, shown, to_float
from concat_id.errors import UserError
from concat_id.files.paths import path_argument

MOST = {"seed": LARGEST, "workers": 256}  # of whole numbers, by option; of any other
MOST_OTHERWISE = 10**6
__all__ = ["Namespace", "Parser", "finite_number", "number_within", "whole_number"]


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors are `UserError`s that suggest the nearest option.

    Options are spelled with underscores; dashes are accepted in their place. Of options with type=int, float and Path it takes whole
    numbers from 0 and numbers, both up to a million, and paths with `~` expanded.
    """

    def __init__(self, *args: Any, formatter_class: Any = argparse.RawDescriptionHelpFormatter, **settings: Any):
        self.elsewhere: dict[str, str] = {}  # options of another script, by name
        super().__init__(*args, formatter_class=formatter_class, **{"allow_abbrev": False} | settings)
        for kind, read in ((int, whole_number), (float, finite_number), (Path, path_argument)):
            self.register("type", kind, read)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        message = re.sub(r"^argument ([^:/]+)(?:/[^:]+)?: ", r"\1: ", message)  # of several spellings the first
        message = re.sub(r"^the following arguments are required: ([^,/]+).*", r"\1: missing", message)
        raise UserError(f"command line: {message}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse, refusing what is not an option before what is missing."""
        args = [self._spelled(word) for word in (sys.argv[1:] if args is None else args)]
        words = args[: args.index("--")] if "--" in args else args
        self._refuse([word for word in words if re.fullmatch(r"--[^ ]+", word)])
        parsed, unknown = self.parse_known_args(args, namespace)
        self._refuse([word for word in unknown if word.startswith("-")])
        if unknown:
            raise UserError(f"command line: found {shown(unknown[0])}, expected an option; put text with spaces in quotes")
        for action in (action for action in self._actions if action.type is int):
            value, most = getattr(parsed, action.dest, None), MOST.get(action.dest, MOST_OTHERWISE)
            if max(value if isinstance(value, list | tuple) else [value or 0]) > most:
                raise UserError(f"command line: {action.option_strings[0]}: found {shown(value)}, expected at most {most}")
        return parsed

    def _spelled(self, word: str) -> str:
        """Put underscores for the dashes of an option."""
        name, equals, value = word.partition("=")
        spelled = "--" + name[2:].replace("-", "_")
        return f"{spelled}{equals}{value}" if name.startswith("--") and spelled in self._option_string_actions else word

    def _refuse(self, words: list[str]) -> None:
        known = self._option_string_actions
        for name in (word.partition("=")[0] for word in words):
            if name not in known:
                if script := self.elsewhere.get(name.replace("-", "_").removeprefix("__")):
                    raise UserError(f"command line: {name}: is an option of {script}, not of this script; see --help")
                options = [option for option, action in known.items() if option.startswith("--") and action.help != argparse.SUPPRESS]
                raise UserError(f"command line: {name}: unknown option; the nearest is {nearest(name, options)}; see --help")


def _read_whole(text: str) -> int | None:
    """Return the whole number that `text` is; None if it is something else or too large for any use."""
    return int(text) if len(text) < 40 and WHOLE.fullmatch(text) and abs(int(text)) <= LARGEST else None


def number_within(name: str, text: str, low: int, high: int = MOST_OTHERWISE) -> int:
    """Read a whole number of a command line or an environment. Raises `UserError` with its `name` where it is out of bounds."""
    number = _read_whole(text)
    if number is None or not low <= number <= high:
        raise UserError(f"{name}: found {shown(text)}, expected a whole number from {low} to {high}")
    return number


def whole_number(text: str) -> int:
    """Read a whole number, 0 or more, of a command line."""
    number = _read_whole(text)
    if number is None or number < 0:
        raise argparse.ArgumentTypeError(f"found {shown(text)}, expected a whole number, 0 or more")
    return number


def finite_number(text: str) -> float:
    """Read a number of a command line."""
    number = to_float(text)
    if number is None or abs(number) > MOST_OTHERWISE:
        raise argparse.ArgumentTypeError(f"found {shown(text)}, expected a number up to {MOST_OTHERWISE}")
    return number
