"""Captions, what they say as attributes, and which of them are held out."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HELD_OUT = 0.05  # share of captions
MOST_CLASSES = 64  # an attribute with more values is a name or a number, not a choice
ABSENT = "absent"  # of an attribute that a shot does not have, as the second person's of a shot of one


@dataclass(frozen=True)
class Caption:
    """A caption, and the facts of its shot as name -> value: "people.0.clothes.color" -> "red"."""

    text: str
    attributes: dict[str, str]
    held_out: bool


def make_caption(text: str, facts: dict[str, Any]) -> Caption:
    """Make a caption of a shot with these facts."""
    return Caption(text, dict(flat(facts)), is_held_out(text))


def is_held_out(text: str) -> bool:
    """Whether a caption is not learned from, by lot, the same whatever else is in a list."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT


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
        """Number the values (N, attributes), -100 for one that training never saw."""
        rows = [[self._label(caption, name) for name in self.values] for caption in captions]
        return torch.tensor(rows, dtype=torch.long).reshape(len(captions), len(self.values))

    def _label(self, caption: Caption, name: str) -> int:
        value = caption.attributes.get(name, ABSENT)
        return self.values[name].index(value) if value in self.values[name] else -100
