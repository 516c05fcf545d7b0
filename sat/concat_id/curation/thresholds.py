"""From which similarity two pictures make a pair: the paper's figures, and the same for another recogniser's scores.

The paper's figures belong to ArcFace. Another recogniser spreads the same faces differently, so its thresholds are taken where they keep
the same share of pairs: as quantiles of what it says of one person's pictures in different clips, and of everybody's nearest stranger.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from concat_id.curation.identities import NamedClip, Others
from concat_id.data.manifest import Appearance
from concat_id.errors import UserError
from concat_id.json_files import NUMBER, OBJECT, TEXT, list_of, read_json, take

# What share of one person's pairs lies below ArcFace's 0.7, 0.9 and 0.99. These are set, not measured: the middle of the distribution for
# cross-video pairs, its upper end for trade-off pairs, and near-duplicates beyond. Cosines between them are read off linearly.
ANCHORS = (0.7, 0.9, 0.99)
QUANTILES = (0.1, 0.9, 0.999)
STRANGERS = 0.95  # share of people to whom no picture of anybody else is as close as a test person may be to training; set as well
BY_KIND = "trade_off by kind"  # in thresholds.json: {"words": [...], "bands": {kind: [low, high]}}
LEAST_PAIRS = 20
MOST_PAIRS = 200_000
MOST_PICTURES, MOST_PEOPLE = 20_000, 500  # among which, and for how many, the nearest stranger is looked for
CALIBRATE = "make them with `python sat/make_pairs.py ... --calibrate`"

Band = tuple[float, float]
PAIR = list_of(NUMBER, 2)


@dataclass(frozen=True)
class Thresholds:
    """Bands low <= cosine < high, and the largest cosine allowed of a test person's picture and one of training.

    Source of the defaults: the paper's supplement.
    """

    recognizer: str = "ArcFace"
    cross: Band = (0.7, 0.9)
    cross_two: Band = (0.87, 0.97)
    trade_off: Band = (0.9, 0.99)
    hygiene: float = 0.45

    @classmethod
    def read(cls, file: Path) -> "Thresholds":
        """Read thresholds.json of sat/make_pairs.py. Raises `UserError`."""
        place = f"--thresholds: {file}"
        given = take(read_json(file, "thresholds", CALIBRATE), "thresholds", OBJECT, place, CALIBRATE)
        kinds = {"recognizer": TEXT, "cross": PAIR, "cross_two": PAIR, "trade_off": PAIR, "hygiene": NUMBER}
        read = {name: take(given, name, kind, f"{place}: thresholds", CALIBRATE) for name, kind in kinds.items()}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in read.items()})


@dataclass(frozen=True)
class Distribution:
    """Similarities (N,) of a picture and a clip: of the same person, of different people; and of each person and the nearest stranger."""

    same: np.ndarray
    different: np.ndarray
    nearest: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Counts, means and quantiles."""
        return {name: _describe(getattr(self, name)) for name in ("same", "different", "nearest")}


def measure(clips: Sequence[NamedClip], seed: int) -> Distribution:
    """Compare pictures with clips: mean cosine of a picture and the pictures of another clip.

    Raises `UserError` when there are too few to tell anything.
    """
    same = _same_person(clips, Others(clips))
    names = np.array([name for clip in clips for name in clip.identities])
    people = [person for clip in clips for person in clip.clip.people]
    random = np.random.default_rng(seed)
    pairs = random.integers(len(people), size=(min(MOST_PAIRS, len(people) ** 2 * 2), 2))
    pairs = np.unique(pairs[names[pairs[:, 0]] != names[pairs[:, 1]]], axis=0)
    different = np.concatenate([np.zeros(0), *(people[a].vectors @ people[b].mean for a, b in pairs)])
    if min(len(same), len(different)) < LEAST_PAIRS:
        raise UserError(f"--calibrate: found {len(same)} pairs of one person in different clips and {len(different)} of different people, "
                        f"expected {LEAST_PAIRS} of each; prepare more clips")  # fmt: skip
    return Distribution(same, different, _nearest_strangers(names, people, random))


def _same_person(clips: Sequence[NamedClip], others: Others) -> np.ndarray:
    """Similarities (N,) of the people in clips to the pictures of the same people in other clips."""
    found = [np.zeros(0)]
    for clip in clips:
        for place, person in enumerate(clip.clip.people):
            found += [other.vectors @ person.mean for other in others.of(clip, place)]
    return np.concatenate(found)


def _nearest_strangers(names: np.ndarray, people: Sequence[Appearance], random: np.random.Generator) -> np.ndarray:
    owners = np.concatenate([[name] * len(person.vectors) for name, person in zip(names, people, strict=True)])
    vectors = np.concatenate([person.vectors for person in people])
    pool = random.permutation(len(vectors))[:MOST_PICTURES]
    asked = random.permutation(np.unique(names))[:MOST_PEOPLE]
    return np.array([float((vectors[owners == name] @ vectors[pool[owners[pool] != name]].T).max()) for name in asked])


def calibrate(found: Distribution, recognizer: str, quantiles: Sequence[float] = QUANTILES) -> Thresholds:
    """Bring the paper's thresholds to another recogniser's scores; `quantiles` belong to 0.7, 0.9 and 0.99."""

    def bring(band: Band) -> Band:
        low, high = np.quantile(found.same, np.interp(band, ANCHORS, quantiles))
        return float(low), float(high)

    paper = Thresholds()
    return Thresholds(recognizer, bring(paper.cross), bring(paper.cross_two), bring(paper.trade_off),
                      float(np.quantile(found.nearest, STRANGERS)))  # fmt: skip


@dataclass(frozen=True)
class ByKind:
    """Bands of stage III for each kind of clip, which `NamedClip.kind` tells by `words`.

    A head that moves or wears something is less like any picture of it, so a band for all leaves out most of what moves or is worn.
    """

    words: tuple[str, ...]
    bands: Mapping[str, Band]

    @classmethod
    def read(cls, file: Path) -> "ByKind | None":
        """Read what `described` wrote; None if there is nothing of it. Raises `UserError`."""
        place, remedy = f"--thresholds: {file}", "make them with `sat/make_pairs.py ... --calibrate --by_kind`, or remove the key"
        told = take(read_json(file, "thresholds"), BY_KIND, OBJECT, place, remedy, optional=True)
        if told is None:
            return None
        place = f"{place}: {BY_KIND}"
        words, bands = (take(told, name, kind, place, remedy) for name, kind in (("words", list_of(TEXT)), ("bands", OBJECT)))
        return cls(tuple(words), {kind: tuple(take(bands, kind, PAIR, f"{place}: bands", remedy)) for kind in bands})

    def described(self) -> dict[str, Any]:
        """What to write into thresholds.json."""
        return {BY_KIND: {"words": list(self.words), "bands": dict(self.bands)}}

    @classmethod
    def calibrate(cls, clips: Sequence[NamedClip], thresholds: Thresholds, words: Sequence[str], quantiles: Sequence[float]) -> "ByKind":
        """Take the same quantiles of each kind as of all; a kind with too few pairs to tell has the band of all.

        Of several people all have to find a picture in the band. So that together they do as often as one person, k of them begin at the
        quantile 1 - (1 - q)^(1/k).
        """
        others, of_kind = Others(clips), defaultdict(list)
        for clip in clips:
            of_kind[clip.kind(words)].append(clip)
        (low, high), bands = np.interp(Thresholds().trade_off, ANCHORS, quantiles), {}
        for kind, members in sorted(of_kind.items()):
            same = _same_person(members, others)
            shares = 1 - (1 - low) ** (1 / len(members[0].identities)), high
            bands[kind] = tuple(map(float, np.quantile(same, shares))) if len(same) >= LEAST_PAIRS else thresholds.trade_off
        return cls(tuple(words), bands)


def choose_thresholds(
    clips: Sequence[NamedClip], recognizer: str, file: Path | None, quantiles: Sequence[float] | None, given: Mapping[str, Any], seed: int
) -> tuple[Thresholds, dict[str, Any]]:
    """Calibrate by `quantiles`, read `file`, or take the paper's; what is `given` (not None) goes before. Also describe them for a JSON."""
    found = measure(clips, seed) if quantiles else None
    thresholds = calibrate(found, recognizer, quantiles) if found else Thresholds.read(file) if file else Thresholds()
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}
    if own.keys() == given.keys():
        own["recognizer"] = recognizer
    thresholds = replace(thresholds, **own)
    return thresholds, {"thresholds": asdict(thresholds)} | ({"measured": found.summary()} if found else {})


def _describe(values: np.ndarray) -> dict[str, Any]:
    shares = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
    quantiles = {f"{share:g}": round(float(value), 4) for share, value in zip(shares, np.quantile(values, shares), strict=True)}
    return {"number": len(values), "mean": round(float(values.mean()), 4), "quantiles": quantiles}
