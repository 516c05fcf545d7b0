"""Captions of lists, what they say as attributes, and which of them are held out."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concat_id.errors import UserError

HELD_OUT = 0.05  # share of captions without a split
MOST_CLASSES = 64  # an attribute with more values is a name or a number, not a choice
ABSENT = "absent"  # of an attribute that a shot does not have, as the second person's of a shot of one


@dataclass(frozen=True)
class Caption:
    """A caption, and the facts of its shot as name -> value: "people.0.clothes.color" -> "red"."""

    text: str
    attributes: dict[str, str] = field(default_factory=dict)
    held_out: bool = False


def read_captions(lists: Sequence[Path]) -> list[Caption]:
    """Read the captions of lists in JSON, each text once. Splits other than "train" are held out; without splits, some captions are."""
    captions = {}
    for path in lists:
        for number, entry in enumerate(read_entries(path)):
            text = entry.get("caption") if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text.strip():
                found = "no caption" if isinstance(entry, dict) else f"a {type(entry).__name__}"
                raise UserError(f'{path}: entry {number}: found {found}, expected {{"caption": text, ...}}; correct the list')
            caption = make_caption(text, entry.get("attributes") or {}, entry.get("split"))
            captions.setdefault(caption.text, caption)
    return list(captions.values())


def make_caption(text: str, facts: dict[str, Any], split: str | None = None) -> Caption:
    """Make a caption from an entry of a list."""
    text = " ".join(text.split())
    return Caption(text, dict(flat(facts)), is_held_out(text, split))


def is_held_out(text: str, split: str | None) -> bool:
    """Whether what `text` names is not learned from: by its split, or else by lot, the same whatever else is in a list."""
    if split is not None:
        return split != "train"
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT


def check_parts(captions: Sequence[Caption]) -> None:
    """Raise `UserError` unless there are captions to learn from and others to measure on."""
    held_out = sum(caption.held_out for caption in captions)
    if held_out in (0, len(captions)):
        found = f"{len(captions) - held_out} captions to learn from and {held_out} to measure on"
        raise UserError(f"command line: --lists and --world: found {found}, expected some of both; add entries or correct their splits")


def read_sentences(paths: Iterable[Path]) -> list[str]:
    """Read the lines of plain text files that are not empty."""
    sentences = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8"
            raise UserError(f"{path}: cannot be read ({reason}), expected plain text; correct --text") from error
        sentences += [" ".join(line.split()) for line in lines if line.strip()]
    return sentences


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """List nested facts as (name, value), the names joined by dots."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield name, "none" if value is None else str(value).lower()
        return
    for key, inner in items:
        yield from flat(inner, f"{name}.{key}" if name else str(key))


class AttributeTable:
    """The attributes that training captions have, with their values; what a shot lacks (`hat.kind` where nobody wears one) is absent."""

    def __init__(self, captions: Iterable[Caption]):
        values: dict[str, set[str]] = {}
        for caption in captions:
            for name, value in caption.attributes.items():
                values.setdefault(name, {ABSENT}).add(value)
        chosen = {name: sorted(found) for name, found in sorted(values.items()) if 2 < len(found) <= MOST_CLASSES}
        self.values: dict[str, list[str]] = chosen

    @property
    def sizes(self) -> list[int]:
        """Number of values of each attribute."""
        return [len(values) for values in self.values.values()]

    def labels(self, captions: Sequence[Caption]) -> Tensor:
        """Number the values (N, attributes), -100 for one that training never saw or a caption without any attributes."""
        rows = [[self._label(caption, name) for name in self.values] for caption in captions]
        return torch.tensor(rows, dtype=torch.long).reshape(len(captions), len(self.values))

    def _label(self, caption: Caption, name: str) -> int:
        value = caption.attributes.get(name, ABSENT)
        return self.values[name].index(value) if caption.attributes and value in self.values[name] else -100


def read_entries(path: Path) -> list[Any]:
    """Read a list in JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {str(error)[:80]}"
        raise UserError(f"{path}: cannot be read ({reason}), expected a list in JSON; correct the path or the file") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: found a {type(content).__name__}, expected a list of entries in JSON; correct the file")
    return content
