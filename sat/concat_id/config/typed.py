"""Typed values from raw ones: dataclasses filled from plain mappings, with errors that name the file and the key."""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from concat_id.errors import UserError

LARGEST_FLOAT = 1e30  # float32 ends at 3e38
MANY = 2**16  # more than any size of a network
LARGEST = 2**63 - 1  # of whole numbers
UNIONS = (Union, types.UnionType)  # origins of annotations such as `int | None`
WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")  # a whole number as text; also where Python's own int() would take more


def setting(default: Any = dataclasses.MISSING, text: str = "", **more: Any) -> Any:
    """Declare a dataclass field that is a key of the YAML files: its default (required without one), what it says, its inclusive bounds
    `low` and `high`.

    `path` "read" or "write" says what happens at the path that it is; `group` and `metavar` are for its option's help. `shared` and
    `training` say who reads it.
    """
    return dataclasses.field(default=default, metadata={"text": text, **more})


def size(default: Any = dataclasses.MISSING, text: str = "", high: float = MANY, **more: Any) -> Any:
    """Declare a number of a network or a clip, none of which are larger than `MANY`."""
    return setting(default, text, high=high, **more)


def with_default(section: type, name: str, default: Any) -> Any:
    """Declare a key of another section once more, with another default."""
    return setting(default, **section.__dataclass_fields__[name].metadata)


class Origins:
    """Where every value came from: dotted key -> (file or "command line", the key as it is written there)."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, str]] = {}

    def record(self, key: str, source: str, label: str | None = None) -> None:
        """Note that `key` was read from `source`, where it is called `label`."""
        self._places[key] = (source, label or key)

    def alias(self, key: str, other: str) -> None:
        """Let messages about `key` name the place of `other`, from which it was made."""
        self._places[key] = self._nearest(other)

    def place(self, key: str) -> str:
        """Return "source: key as written" for messages; an ungiven key takes the source of what contains it."""
        return ": ".join(self._nearest(key))

    def source(self, key: str) -> str | None:
        """Return the file (or "command line") that gives `key` itself."""
        return self._places[key][0] if key in self._places else None

    def _nearest(self, key: str) -> tuple[str, str]:
        parent = key
        while parent:
            if parent in self._places:
                source, label = self._places[parent]
                return source, label + key[len(parent) :]
            parent = parent.rpartition(".")[0]
        return "configuration", key


def within(section: Any, key: str) -> Any:
    """Return what nested mappings have under a dotted key, None where there is nothing."""
    for name in key.split("."):
        section = section.get(name) if isinstance(section, dict) else None
    return section


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the member of `known` that reads most like `name`."""
    known = sorted(known)
    plain = {item.replace("-", "_").lower(): item for item in known}
    found = difflib.get_close_matches(name.replace("-", "_").lower(), plain, n=1, cutoff=0.0)
    return plain[found[0]] if found else "none"


def unknown_key(key: str, known: Iterable[str], origins: Origins) -> UserError:
    """Make the error for a key that nothing reads."""
    name = key.rpartition(".")[2]
    odd = "" if name.isprintable() else f" {name!r}"  # as after a full-width space, which a terminal does not show
    return UserError(f"{origins.place(key)}: unknown key{odd}; the nearest known key is {nearest(name, known)}")


def shown(value: Any, most: int = 80) -> str:
    """Quote any value, of any size, in at most so many characters."""
    try:
        text = "null" if value is None else repr(value)
    except (ValueError, RecursionError):  # Python does not write integers of more than 4,300 digits
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def mismatch(key: str, value: Any, expected: str, origins: Origins, remedy: str = "") -> UserError:
    """Make the error for a value of the wrong type or size."""
    return UserError(f"{origins.place(key)}: found {shown(value)}, expected {expected}{remedy and '; ' + remedy}")


def build(cls: type, raw: Any, key: str, origins: Origins) -> Any:
    """Fill the dataclass `cls` from the mapping `raw` found under the dotted `key`.

    Raises `UserError` for unknown and missing keys, values of another type and values outside a field's bounds.
    """
    if not isinstance(raw, dict):
        raise mismatch(key, raw, "a mapping of keys to values", origins)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in raw:
        if name not in fields:
            raise unknown_key(f"{key}.{name}", fields, origins)
    hints, values = get_type_hints(cls), {}
    for name, field in fields.items():
        path = f"{key}.{name}"
        if name in raw:
            more = "true, false or auto" if "auto" in str(field.metadata.get("metavar")) else ""  # which the loading takes
            values[name] = convert(raw[name], hints[name], path, origins, more)
            _check_bounds(values[name], field.metadata, path, origins)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{origins.place(path)}: missing, expected {_describe(hints[name])}")
    return cls(**values)


def convert(value: Any, hint: Any, key: str, origins: Origins, expected: str = "") -> Any:
    """Return `value` as the annotated type `hint`; `expected` says it in place of the type's own words.

    Numbers may be written as text ("1e-5", "8."), whole floats count as integers, lists stand for tuples and a single
    value for a list of one.
    """
    origin = get_origin(hint)
    if origin in UNIONS:
        return None if value is None else convert(value, without_none(hint), key, origins, expected)
    if origin is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise mismatch(key, value, _describe(hint), origins, f"the nearest is {nearest(shown(value), get_args(hint))}")
        return value
    if origin is tuple:
        return _convert_tuple(value, hint, key, origins)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key, origins)
    converted = _SCALARS[hint](value)
    if converted is None:
        remedy = "put it in quotes" if hint is str and isinstance(value, int | float) else ""
        raise mismatch(key, value, expected or _describe(hint), origins, remedy)
    return converted


def _convert_tuple(value: Any, hint: Any, key: str, origins: Origins) -> tuple:
    inner = get_args(hint)
    items = list(value) if isinstance(value, list | tuple) else [value]
    size = None if inner[-1] is Ellipsis else len(inner)
    if isinstance(value, dict) or value is None or (size is not None and len(items) != size):
        raise mismatch(key, value, _describe(hint), origins)
    return tuple(convert(item, inner[0], key, origins) for item in items)


def _to_int(value: Any) -> int | None:
    number = to_float(value)
    if number is None or number != int(number):
        return None
    whole = value if isinstance(value, int) else int(value) if isinstance(value, str) and WHOLE.fullmatch(value) else int(number)
    return whole if abs(whole) <= LARGEST else None


def to_float(value: Any) -> float | None:
    """Return the number that a value is or that text says; None for anything else, and for one too large for any use."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not (len(value) <= 300 and value.isascii() and "_" not in value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST_FLOAT else None


def _to_bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _to_str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_SCALARS = {int: _to_int, float: to_float, bool: _to_bool, str: _to_str}
_NAMES = {int: "an integer", float: f"a number up to {LARGEST_FLOAT:g}", bool: "true or false", str: "text"}


def without_none(hint: Any) -> Any:
    """Return what an annotation such as `int | None` allows besides None."""
    return next(inner for inner in get_args(hint) if inner is not types.NoneType) if get_origin(hint) in UNIONS else hint


def _describe(hint: Any) -> str:
    hint = without_none(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is tuple:
        inner = get_args(hint)
        kind = {int: "integers", float: "numbers", str: "texts"}[inner[0]]
        return f"a list of {kind}" if inner[-1] is Ellipsis else f"a list of {len(inner)} {kind}"
    return _NAMES.get(hint, "a mapping of keys to values")


def _check_bounds(value: Any, metadata: Any, key: str, origins: Origins) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    for number in value if isinstance(value, tuple) else (value,):
        if number is None or ((low is None or number >= low) and (high is None or number <= high)):
            continue
        if low == high:
            expected = f"{low}"
        else:
            expected = f"{low} or more" if high is None else f"{high} or less" if low is None else f"{low} to {high}"
        raise mismatch(key, value, expected, origins)
