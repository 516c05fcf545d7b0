"""The training pairs of the three stages: which crops of a person go with a clip."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from concat_id.curation.identities import NamedClip, Others
from concat_id.curation.thresholds import Band, Thresholds, similarities
from concat_id.data.manifest import Appearance

Pairing = Literal["random", "minimum"]
MOST: dict[Pairing, int] = {"random": 64, "minimum": 1000}  # other clips of a person that are looked at; of more, so many are drawn
AT_LEAST = 2  # people of a clip of three or more who need a crop of another clip


class Crop(NamedTuple):
    """Whose image stands for a person, its number (None: any), and its cosine with the clip if that is another one's."""

    source: Appearance
    number: int | None = None
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip and, for each of its people from left to right, whose images go with it: one by its number, or all.

    `cosines` are those of crops that other clips show.
    """

    clip: NamedClip
    sources: tuple[Appearance, ...]
    numbers: tuple[int | None, ...]
    cosines: tuple[float, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """An image or a folder of them for each person."""
        return tuple(source.image(number) for source, number in zip(self.sources, self.numbers, strict=True))

    @property
    def masks(self) -> tuple[Path, ...]:
        """Their masks."""
        return tuple(source.mask(number) for source, number in zip(self.sources, self.numbers, strict=True))


@dataclass
class Stage:
    """Pairs of a stage, and why the other clips have none: reason -> number."""

    pairs: list[Pair] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)


def choose(cosines: np.ndarray, band: Band, pairing: Pairing, random: np.random.Generator) -> int | None:
    """Choose one of the candidates with low <= cosine < high: any, or the one least like the clip; None if there is none."""
    inside = np.flatnonzero((cosines >= band[0]) & (cosines < band[1]))
    if not len(inside):
        return None
    return int(random.choice(inside) if pairing == "random" else inside[cosines[inside].argmin()])


def pretraining_pairs(clips: Sequence[NamedClip]) -> Stage:
    """Stage I: the crops are the clip's own, of which training draws one."""
    return Stage([Pair(clip, clip.clip.people, (None,) * len(clip.clip.people)) for clip in clips])


def cross_video_pairs(clips: Sequence[NamedClip], thresholds: Thresholds, seed: int) -> Stage:
    """Stage II: a crop of the same person from another clip, any in the band; several people have a band of their own."""
    return _paired(clips, lambda clip: thresholds.cross if len(clip.identities) == 1 else thresholds.cross_two, "random", seed)


def trade_off_pairs(clips: Sequence[NamedClip], thresholds: Thresholds, most_per_person: int, seed: int) -> Stage:
    """Stage III: the crop of the same person from another clip that is least like the clip within the high band.

    The set is small: of each person (or group of people), the `most_per_person` clips with the lowest cosine.
    """
    stage = _paired(clips, lambda clip: thresholds.trade_off, "minimum", seed)
    kept: list[Pair] = []
    counts: Counter = Counter()
    for pair in sorted(stage.pairs, key=lambda pair: min(pair.cosines)):
        group = tuple(sorted(pair.clip.identities))  # in whatever order they stand
        counts[group] += 1
        if counts[group] <= most_per_person:
            kept.append(pair)
    if len(kept) < len(stage.pairs):
        stage.dropped[f"more than {most_per_person} pairs of a person"] += len(stage.pairs) - len(kept)
    return Stage(kept, stage.dropped)


def _paired(clips: Sequence[NamedClip], band: Callable[[NamedClip], Band], pairing: Pairing, seed: int) -> Stage:
    others, stage = Others(clips), Stage()
    for index, clip in enumerate(clips):
        _add(stage, clip, others, band(clip), pairing, np.random.default_rng([seed, index]))
    return stage


def _add(stage: Stage, clip: NamedClip, others: Others, band: Band, pairing: Pairing, random: np.random.Generator) -> None:
    """Add a clip's pair to a stage, or the reason why it has none to `dropped`.

    One or two people all need a crop of another clip; of more, two do, and the others show the clip's own (the paper's supplement).
    """
    found = [_crop(clip, place, others, band, pairing, random) for place in range(len(clip.clip.people))]
    crops = [crop if isinstance(crop, Crop) else Crop(own) for crop, own in zip(found, clip.clip.people, strict=True)]
    cosines = tuple(crop.cosine for crop in crops if crop.cosine is not None)
    if len(cosines) < min(len(found), AT_LEAST):
        stage.dropped[next(reason for reason in found if isinstance(reason, str))] += 1
        return
    stage.pairs.append(Pair(clip, tuple(crop.source for crop in crops), tuple(crop.number for crop in crops), cosines))


def _crop(clip: NamedClip, place: int, others: Others, band: Band, pairing: Pairing, random: np.random.Generator) -> Crop | str:
    """Choose a crop of the person at `place` from another clip, or say why there is none."""
    found = others.of(clip, place, MOST[pairing], random)
    if not found:
        return "no other clip of a person"
    similar = similarities(found, clip.clip.people[place].mean)
    chosen = choose(similar, band, pairing, random)
    if chosen is None:
        low, high = (f"{limit:.3f}" for limit in band)
        side = f"from {high} on" if (similar >= band[1]).all() else f"below {low}" if (similar < band[0]).all() else "on both sides"
        return f"all cosines of a person's crops in other clips are {side}, expected {low} to {high}"
    ends = np.cumsum([len(other.names) for other in found])
    source = int(np.searchsorted(ends, chosen, side="right"))
    return Crop(found[source], chosen - int(ends[source]), float(similar[chosen]))  # numbered from the end
