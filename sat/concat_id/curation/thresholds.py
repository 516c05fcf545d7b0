"""From which similarity a crop and a clip make a pair: the paper's figures, and the same for another recogniser's scores.

The paper's figures belong to ArcFace. Another recogniser spreads the same faces differently, so its thresholds are taken where they keep
the same share of pairs: as quantiles of what it says of one person's crops in different clips, and of everybody's nearest stranger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from concat_id.curation.identities import NamedClip, Others
from concat_id.data.manifest import Appearance
from concat_id.errors import UserError
from concat_id.files.json_files import NUMBER, OBJECT, TEXT, list_of, read_json, take

# What share of one person's pairs lies below ArcFace's 0.7, 0.9 and 0.99. These are set, not measured: the middle of the distribution for
# cross-video pairs, its upper end for trade-off pairs, and near-duplicates beyond. Cosines between them are read off linearly.
ANCHORS = (0.7, 0.9, 0.99)
QUANTILES = (0.1, 0.9, 0.999)
STRANGERS = 0.95  # share of people to whom no crop of anybody else is as close as a test person may be to training; set as well
MIN_PAIRS = 20
MAX_PAIRS = 200_000
MAX_CLIPS, MAX_OTHERS = 20_000, 64  # that are compared, and with how many others of the same person
FEW = 64  # appearances that are not put together first
MAX_IMAGES, MAX_PEOPLE = 20_000, 500  # among which, and for how many, the nearest stranger is looked for
CALIBRATE = "make them with `python sat/make_pairs.py ... --calibrate`"

Band = tuple[float, float]
PAIR = list_of(NUMBER, 2)


@dataclass(frozen=True)
class Thresholds:
    """Bands low <= cosine < high, and the largest cosine allowed of a test person's crop and one of training.

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
    """Similarities (N,) of a crop and a clip: of the same person, of different people; and of each person and the nearest stranger."""

    same: np.ndarray
    different: np.ndarray
    nearest: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Counts, means and quantiles."""
        return {name: _describe(getattr(self, name)) for name in ("same", "different", "nearest")}


def measure(clips: Sequence[NamedClip], seed: int) -> Distribution:
    """Compare crops with clips: mean cosine of a crop and the crops of another clip.

    Raises `UserError` when there are too few to tell anything.
    """
    others, drawn = Others(clips), np.random.default_rng(seed)
    asked = [clips[number] for number in drawn.choice(len(clips), MAX_CLIPS, replace=False)] if len(clips) > MAX_CLIPS else clips
    same = np.concatenate([np.zeros(0), *(similarities(found, own.mean) for clip in asked for place, own in enumerate(clip.clip.people)
                                          if (found := others.of(clip, place, MAX_OTHERS, drawn)))])  # fmt: skip
    names = np.array([name for clip in clips for name in clip.identities])
    people = [person for clip in clips for person in clip.clip.people]
    random = np.random.default_rng(seed)
    pairs = random.integers(len(people), size=(min(MAX_PAIRS, len(people) ** 2 * 2), 2))
    pairs = np.unique(pairs[names[pairs[:, 0]] != names[pairs[:, 1]]], axis=0)
    different = np.concatenate([np.zeros(0), *(people[a].vectors @ people[b].mean for a, b in pairs)])
    if min(len(same), len(different)) < MIN_PAIRS:
        merged = f"all {len(clips)} clips count as one person's by the cosine told above; give a higher --same_person, or identities"
        remedy = merged if len(set(names)) == 1 else "prepare more clips"
        raise UserError(f"--calibrate: found {len(same)} pairs of one person in different clips and {len(different)} of different people, "
                        f"expected {MIN_PAIRS} of each; {remedy}")  # fmt: skip
    return Distribution(same, different, _nearest_strangers(names, people, random))


def _nearest_strangers(names: np.ndarray, people: Sequence[Appearance], random: np.random.Generator) -> np.ndarray:
    ends = np.cumsum([len(person.rows) for person in people])
    pool = random.permutation(ends[-1])[:MAX_IMAGES]
    asked = random.permutation(np.unique(names))[:MAX_PEOPLE]
    owners = np.searchsorted(ends, pool, side="right")
    vectors = np.stack([people[owner].vectors[number - ends[owner]] for owner, number in zip(owners, pool, strict=True)])
    others = {name: np.concatenate([people[number].vectors for number in np.flatnonzero(names == name)]) for name in asked}
    return np.array([float((own @ vectors[names[owners] != name].T).max()) for name, own in others.items()])


def similarities(found: Sequence[Appearance], mean: np.ndarray) -> np.ndarray:
    """Mean cosines of all crops with a clip's crops, whose mean vector is given."""
    if len(found) <= FEW and found[0].rows.dtype != np.float16:
        return np.concatenate([other.vectors @ mean for other in found])
    return np.concatenate([other.rows for other in found]).astype(mean.dtype) @ mean


def calibrate(found: Distribution, recognizer: str, quantiles: Sequence[float] = QUANTILES) -> Thresholds:
    """Bring the paper's thresholds to another recogniser's scores; `quantiles` belong to 0.7, 0.9 and 0.99."""

    def bring(band: Band) -> Band:
        low, high = np.quantile(found.same, np.interp(band, ANCHORS, quantiles))
        return float(low), float(high)

    paper = Thresholds()
    return Thresholds(recognizer, bring(paper.cross), bring(paper.cross_two), bring(paper.trade_off),
                      float(np.quantile(found.nearest, STRANGERS)))  # fmt: skip


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
