"""The door for JSON: what people write, with the line and column of a mistake, and what this project wrote itself."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from concat_id.errors import UserError, warn
from concat_id.files.paths import read_text, write_text, written_whole

DEEPEST = 60  # brackets within brackets; no file of this project's needs ten
JSON_LINES = "one object a line (JSON Lines)"
DIGITS = 300  # of a number
# A string (the last one may lack its end), a comma before a closing bracket, a number too long, or a bracket: each character once.
TOKEN = re.compile(rf'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|,(?=\s*[}}\]])|[-+.\d]{{{DIGITS},}}|[\[\]{{}}]', re.DOTALL)


def read_json(path: Path, expected: str, remedy: str = "check the path") -> Any:
    """Read a JSON file of any kind. Raises `UserError` with what is found in place of `expected`, or line and column of a mistake."""
    return parse_json(read_text(path, expected, remedy), str(path), expected=expected)


def recall_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that this project wrote; None if it is absent, damaged or something else."""
    try:
        content = parse_json(read_text(path, "JSON"), str(path), told=False)
    except UserError:
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; names of files that are not text come back as they were."""
    write_text(path, _as_text(value) + "\n")


def write_json_list(path: Path, values: Iterable[Any]) -> None:
    """Write values as `write_json` writes a list of them, one after the other: there may be a million."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for number, value in enumerate(values):
            stream.write((",\n  " if number else "[\n  ") + _as_text(value).replace("\n", "\n  "))
        stream.write("\n]\n")


def _as_text(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def parse_json(text: str, name: str, told: bool = True, expected: str = "JSON") -> Any:
    """Parse JSON text; a comma before a closing bracket is accepted with a warning (where it is to be `told`).

    Raises `UserError` with line, column and the text found there.
    """
    text = _without_trailing_commas(text, name, told)
    try:
        return _decoder().decode(text)
    except json.JSONDecodeError as error:
        if kind := _other_kind(name, text):
            raise UserError(f"{name}: found {kind}, expected {expected}; convert it") from error
        raise _broken(name, text, error.pos, error.msg.lower()) from error
    except (RecursionError, ValueError) as error:
        raise _broken(name, text, 0, str(error)) from error


def parse_list(text: str, name: str) -> list[tuple[int, Any]]:
    """Parse a JSON list into (line, element). A comma before a closing bracket is accepted with a warning.

    Raises `UserError` with line, column and the text found there.
    """
    decoder, skip = _decoder(), re.compile(r"\s*").match
    start = skip(text).end()
    if text[start : start + 1] != "[":
        raise _no_list(name, text, start)
    text = _without_trailing_commas(text, name, told=True)
    elements, at = [], skip(text, start + 1).end()
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        try:
            element, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _broken(name, text, error.pos, error.msg.lower()) from error
        except (RecursionError, ValueError) as error:
            raise _broken(name, text, at, str(error)) from error
        line, counted = line + text.count("\n", counted, at), at
        elements.append((line, element))
        at = skip(text, end).end()
        if text[at : at + 1] == ",":
            at = skip(text, at + 1).end()
        elif text[at : at + 1] != "]":
            raise _broken(name, text, at, 'expected "," or "]" after an entry')
    rest = skip(text, at + 1).end()
    if rest < len(text):
        raise _broken(name, text, rest, "expected nothing after the list")
    return elements


def _other_kind(name: str, text: str) -> str | None:
    """Say what people write in place of one value of JSON, None for nothing of the kind."""
    text = text.lstrip()
    if re.match(r"\{.*\}[^\S\n]*\n\s*\{", text):
        return JSON_LINES
    return "a table" if Path(name).suffix.lower() in (".csv", ".tsv") or re.match(r"[\w ]+([,\t;][\w ]+)+\r?\n", text) else None


def _no_list(name: str, text: str, start: int) -> UserError:
    if kind := _other_kind(name, text):
        remedy = "put commas between the lines, [ before the first and ] behind the last" if kind == JSON_LINES else "convert it"
        return UserError(f"{name}: found {kind}, expected a JSON list of objects; {remedy}")
    if text[start : start + 1] == "{":
        return UserError(f"{name}: found an object, expected a list; put [ ] around it")
    return _broken(name, text, start, 'expected "[", the start of a list')


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for key, value in pairs:
        if key in entry:
            raise ValueError(f"the key {key!r} is given twice")
        entry[key] = value
    return entry


def _without_trailing_commas(text: str, name: str, told: bool) -> str:
    """Put spaces in their place; what would exhaust the parser is refused on the way."""
    parts, last, depth, commas = [], 0, 0, []
    before, end = "", 0  # the token before, and where it ended
    for token in TOKEN.finditer(text):
        kind = token[0][0]
        if kind == ",":
            if before not in ("[", "{") or text[end : token.start()].strip():  # else there is nothing that it could follow
                commas.append(token.start())
                parts += text[last : token.start()], " "
                last = token.end()
        elif kind in "[{":
            depth += 1
            if depth > DEEPEST:
                raise _broken(name, text, token.start(), f"more than {DEEPEST} brackets within one another")
        elif kind in "]}":
            depth -= 1
        elif kind != '"':
            raise _broken(name, text, token.start(), f"a number of {len(token[0])} digits")
        before, end = kind, token.end()
    if commas and told:
        more = f" (and {len(commas) - 1} more)" if len(commas) > 1 else ""
        place = _place(text, commas[0])
        warn(f"{name}: {place}: a comma before a closing bracket, which JSON does not allow, was left out{more}; remove it")
    return "".join(parts) + text[last:]


class Kind(NamedTuple):
    """What a value has to be: its name in messages, and whether a value is one."""

    name: str
    fits: Callable[[Any], bool]


LARGEST = 1e100  # of a number; comparing with it refuses NaN and infinity too
TEXT = Kind("text", lambda value: isinstance(value, str))
WORDS = Kind("text that can be written as UTF-8", lambda value: isinstance(value, str) and not re.search("[\ud800-\udfff]", value))
NUMBER = Kind("a number", lambda value: type(value) in (int, float) and -LARGEST < value < LARGEST)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def list_of(kind: Kind, count: int | None = None) -> Kind:
    """A list of values of one kind, `count` of them if that is given."""
    name = f"a list, each entry {kind.name}" if count is None else f"a list of {count}, each {kind.name}"
    return Kind(name, lambda value: isinstance(value, list) and count in (None, len(value)) and all(map(kind.fits, value)))


def one_of(*names: str) -> Kind:
    """One of some texts."""
    return Kind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def require(value: Any, kind: Kind, place: str, remedy: str = "correct it") -> Any:
    """Return a value of JSON if it is of a kind. Raises `UserError` that begins with `place`."""
    if not kind.fits(value):
        raise UserError(f"{place}: found {as_json(value)}, expected {kind.name}; {remedy}")
    return value


def take(entry: Any, key: str, kind: Kind, place: str, remedy: str = "correct it", *, optional: bool = False) -> Any:
    """Return what an object has under `key` if it is of a kind; None for what is `optional` and absent or null. Raises `UserError`."""
    if require(entry, OBJECT, place, remedy).get(key) is None and optional:
        return None
    if key not in entry:
        raise UserError(f"{place}: {key}: missing, expected {kind.name}; {remedy}")
    return require(entry[key], kind, f"{place}: {key}", remedy)


def as_json(value: Any, longest: int = 60) -> str:
    """Write a value of JSON for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _place(text: str, position: int) -> str:
    return f"line {text.count(chr(10), 0, position) + 1}, column {position - text.rfind(chr(10), 0, position)}"


def _broken(name: str, text: str, position: int, reason: str) -> UserError:
    if not text.strip():
        return UserError(f"{name}: the file is empty, expected JSON")
    found = " ".join(text[position : position + 40].split()) or "the end of the file"
    return UserError(f"{name}: {_place(text, position)}: not valid JSON: {reason}, found {found!r}; mend that line")
