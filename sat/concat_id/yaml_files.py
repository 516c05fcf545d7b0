"""The door for YAML: what people write, with the line of a mistake, how files are merged, and what they refer to in one another."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from concat_id.errors import UserError
from concat_id.files import read_text
from concat_id.typed import Origins, mismatch

DEEPEST = 40  # brackets or indentations within one another; no file of this project's needs ten
MOST_NODES = 20_000  # keys and values, those that aliases and references repeat counted each time
LARGEST, LONGEST = 2**21, 2**16  # characters of a file, and of a text that references make
DIGITS = 300  # of a number
CORE = "null", "bool", "int", "float", "str", "seq", "map", "merge"
TAG = "tag:yaml.org,2002:"
FLOAT = re.compile(
    r"""(?:[-+]?\d+(?:_\d+)*\.[\d_]*(?:[eE][-+]?\d+)? | [-+]?\d+(?:_\d+)*[eE][-+]?\d+ | \.\d+(?:_\d+)*(?:[eE][-+]\d+)?
    | [-+]?\d+(?:_\d+)*(?::[0-5]?\d)+\.[\d_]* | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN))\Z""",
    re.VERBOSE | re.ASCII,
)
REFERENCE = re.compile(r"(?<!\\)\$\{([^${}]*)\}")
ENVIRONMENT = "oc.env:"


class _Loader(yaml.SafeLoader):
    """Builds plain values alone: 1e-5 is a number, a date is text, keys are text and come once."""

    yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in [TAG + name for name in CORE]}
    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in known if tag.removeprefix(TAG) in CORE and tag != f"{TAG}float"]
        for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.tag in (f"{TAG}int", f"{TAG}float") and len(node.value) > DIGITS:
            raise _wrong(node, f"a number of {len(node.value):,} characters")
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, OverflowError, TypeError, AttributeError) as error:
            raise _wrong(node, f"{node.value!r}, which is no {node.tag.removeprefix(TAG)}") from error

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{TAG}str", f"{TAG}merge"):
                found = repr(key.value) if isinstance(key, yaml.ScalarNode) else "that is a list or a mapping"
                raise _wrong(key, f"the key {found}, expected text (in quotes if need be)")
            if key.value in seen:
                raise _wrong(key, f"the duplicate key {key.value!r}")
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+0123456789."))
_Loader.add_constructor(None, lambda _, node: _refuse_tag(node))


def _refuse_tag(node: yaml.Node) -> None:
    raise _wrong(node, f"the tag {node.tag.replace(TAG, '!!')}, which is not read here")


def _wrong(node: yaml.Node, found: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=f"found {found[:200]}", problem_mark=node.start_mark)


def read_yaml(path: Path, name: str, remedy: str = "check the path") -> Any:
    """Read a YAML file of plain values. Raises `UserError`, which calls the file `name`, with line and column of a mistake."""
    text = read_text(path, "a YAML file", remedy)
    if len(text) > LARGEST:
        raise UserError(f"{name}: found {len(text):,} characters, expected a YAML file of at most {LARGEST:,}; {remedy}")
    try:
        _check_size(text)
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown line"
        raise UserError(f"{name}: {where}: not valid YAML ({error.problem or error.context}); mend that line") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}: line {line}: not valid YAML (the character U+{error.character:04X}); mend that line") from error


def _events(text: str) -> Iterator[yaml.Event]:
    loader = _Loader(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    except (ValueError, OverflowError) as error:  # \UFFFFFFFF, or the version of YAML in 5,000 digits
        raise yaml.MarkedYAMLError(problem=f"found no character: {error}", problem_mark=loader.get_mark()) from error


def _check_size(text: str) -> None:
    """Raise where building the values would exhaust stack or memory, before anything is built."""
    sizes: dict[str, int] = {}  # of what has an anchor
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and how many nodes there were before it
    count = 0
    for event in _events(text):
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = "" if event.anchor in sizes else f"the alias {event.anchor!r} of nothing, or of what it stands in"
            count += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
            problem = f"more than {DEEPEST} lists and mappings within one another" if len(open_nodes) > DEEPEST else ""
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if count > MOST_NODES:
            problem = f"more than {MOST_NODES:,} keys and values"
        if problem:
            raise yaml.MarkedYAMLError(problem=f"found {problem}", problem_mark=event.start_mark)


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Put the mapping `second` over `first`: mappings are merged key by key, anything else replaces."""
    both = dict(first)
    for key, value in second.items():
        both[key] = merge(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


def resolve_references(tree: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Replace `${section.key}`, `${.neighbour}` and `${oc.env:NAME,default}` by what they stand for, as OmegaConf does.

    Raises `UserError` for what stands for nothing or for itself, and for ???, a value that must still be given.
    """
    return _References(tree, origins).resolve(tree, "")


class _References:
    def __init__(self, tree: dict[str, Any], origins: Origins):
        self.tree, self.origins, self.nodes, self.open = tree, origins, 0, []

    def resolve(self, value: Any, key: str) -> Any:
        self.nodes += 1
        if self.nodes > 2 * MOST_NODES:
            raise self._wrong(key, "references to fewer values", value)
        if isinstance(value, dict | list):
            inner = f"{key}." if key else ""
            if isinstance(value, list):
                return [self.resolve(item, f"{inner}{number}") for number, item in enumerate(value)]
            return {name: self.resolve(item, f"{inner}{name}") for name, item in value.items()}
        if value == "???":
            raise self._wrong(key, "a value in its place", value)
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = REFERENCE.fullmatch(value)
        if whole:
            return self._look_up(whole[1], key, value)
        text = REFERENCE.sub(lambda found: self._text(found[1], key, value), value)
        if len(text) > LONGEST or re.search(r"(?<!\\)\$\{", text):
            raise self._wrong(key, "references such as ${args.save}, none within another", value)
        return text.replace("\\${", "${")

    def _text(self, name: str, key: str, written: str) -> str:
        value = self._look_up(name, key, written)
        if isinstance(value, dict | list):
            raise self._wrong(key, f"a single value in {name}", written)
        return str(value).replace("${", "\\${")

    def _look_up(self, name: str, key: str, written: str) -> Any:
        if name.startswith(ENVIRONMENT):
            variable, comma, default = name.removeprefix(ENVIRONMENT).partition(",")
            value = os.environ.get(variable.strip(), default.strip() if comma else None)
            if value is None:
                raise self._wrong(key, f"the environment variable {variable.strip()} to be set", written)
            return value
        steps = len(name) - len(name.lstrip("."))
        path = key.split(".")[:-steps] if steps else []
        path += [part for part in re.split(r"[.\[\]]+", name.lstrip(".")) if part]
        target, full = self.tree, ".".join(path)
        for part in path:
            entries = dict(enumerate(target)) if isinstance(target, list) else target if isinstance(target, dict) else {}
            part = int(part) if isinstance(target, list) and re.fullmatch("[0-9]{1,6}", part) else part
            if part not in entries:
                raise self._wrong(key, f"the name of another key, which {name!r} is not", written)
            target = entries[part]
        if not path or full in self.open or len(self.open) >= DEEPEST:
            raise self._wrong(key, "a reference that does not lead in a circle", written)
        self.open.append(full)
        value = self.resolve(target, full)
        self.open.pop()
        return value

    def _wrong(self, key: str, expected: str, value: Any) -> UserError:
        return mismatch(key, value, expected, self.origins)
