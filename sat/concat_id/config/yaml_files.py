"""The door for YAML: what people write, with the line of a mistake, how files are merged, and what they refer to in one another."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from concat_id.config.typed import Origins, mismatch, within
from concat_id.errors import UserError, reason_of
from concat_id.files.paths import kind_of, read_text

RUN_FILE = "training_config.yaml"  # in the folder of a training run: what it was started with
DEEPEST = 40  # brackets or indentations within one another; no file of this project's needs ten
MOST_NODES = 20_000  # keys and values, those that aliases and references repeat counted each time
LARGEST = 2**21  # characters of a file
MOST_REFERENCES, LONGEST = 20, 2**16  # `${...}` in all files together, and characters of a text that they may repeat
MOST_PLAIN, SHORT = 200, 200  # of those that lead to a value as it stands, and characters of such a value
PLAIN = re.compile(r"\$\{([^\W\d][\w.]*)\}")
DIGITS = 300  # of a number
CORE = "null", "bool", "int", "float", "str", "seq", "map", "merge"
TAG = "tag:yaml.org,2002:"
FLOAT = re.compile(
    r"""(?:[-+]?\d+(?:_\d+)*\.[\d_]*(?:[eE][-+]?\d+)? | [-+]?\d+(?:_\d+)*[eE][-+]?\d+ | \.\d+(?:_\d+)*(?:[eE][-+]\d+)?
    | [-+]?\d+(?:_\d+)*(?::[0-5]?\d)+\.[\d_]* | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN))\Z""",
    re.VERBOSE | re.ASCII,
)


def run_configuration(path: Path) -> Path | None:
    """The configuration that a training run recorded, if `path` is its folder, a checkpoint of it or a file in that."""
    candidates = (folder / RUN_FILE for folder in (path, *path.parents[:2]))
    return next((file for file in candidates if kind_of(file) == "a file"), None)


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


def merge(first: dict[str, Any], second: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Put the mapping `second` over `first`: mappings are merged key by key, anything else replaces. Raises `UserError`."""
    _check_kinds(first, second, "", origins)
    with _told(second, origins):
        return OmegaConf.to_container(OmegaConf.merge(first, second))


def _check_kinds(first: Any, second: Any, key: str, origins: Origins) -> None:
    """Refuse a list over a mapping and the other way round, which OmegaConf does not merge."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in first.keys() & second.keys():
            _check_kinds(first[name], second[name], f"{key}.{name}" if key else name, origins)
    elif isinstance(first, dict) and isinstance(second, list) or isinstance(first, list) and isinstance(second, dict):
        raise mismatch(key, second, "a mapping as before" if isinstance(first, dict) else "a list as before", origins)


def resolve_references(tree: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Replace `${section.key}`, `${.neighbour}` and `${oc.env:NAME,default}` by what they stand for.

    Raises `UserError` for what stands for nothing, for itself or for too much, and for ???, a value that must still be given.
    """
    _check_references(tree, origins)
    with _told(tree, origins):
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)


@contextmanager
def _told(tree: dict[str, Any], origins: Origins) -> Iterator[None]:
    """Turn what OmegaConf raises into the key of `tree` and its value."""
    try:
        yield
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None) or ""
        found = within(tree, key.partition("[")[0])
        reason = reason_of(error).partition(" full_key:")[0]
        raise mismatch(key, found, "a value, or a reference to one such as ${args.save} or ${oc.env:HOME}", origins, reason) from error


def _check_references(tree: dict[str, Any], origins: Origins) -> None:
    """Refuse references to references that multiply what they stand for; a few of them cannot."""
    count, length, waiting = 0, 0, [("", tree)]
    while waiting:
        key, value = waiting.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += [(f"{key}.{name}" if key else str(name), inner) for name, inner in items]
        if isinstance(value, str):
            plain = sum(_leads_to_a_value(tree, name) for name in PLAIN.findall(value))
            count += (value.count("${") - plain) * (MOST_PLAIN // MOST_REFERENCES) + plain
            length = max(length, len(value))
        if count > MOST_PLAIN or count and length > LONGEST:
            expected = f"at most {MOST_REFERENCES} references to more than values, {MOST_PLAIN} to values, and {LONGEST:,} letters a text"
            raise mismatch(key, value, expected, origins)


def _leads_to_a_value(tree: Any, name: str) -> bool:
    """Tell whether `${name}` is a short value as it stands: no section or list, and no reference in turn."""
    value = within(tree, name)
    return not isinstance(value, dict | list) and "${" not in str(value) and len(str(value)) <= SHORT
