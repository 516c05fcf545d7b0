"""Who is who across clips, which people are kept for testing, and whether these are strangers to training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from concat_id.curation.nearest import BLOCK, EXACT, Components, join_close, nearest
from concat_id.data.manifest import Appearance, Clip
from concat_id.errors import UserError, tell, warn

STRANGERS = 128  # training people whose crops are compared with those of somebody else, and whose recall is told
SAMPLE, TOLERANCE = 100, 1e-3  # people for whom it is told, and by which cosines of float16 differ
MANY, CHAINED = 10_000, 0.1  # people in clips, and the share of them from which one person is too many to believe


@dataclass(frozen=True, eq=False, slots=True)
class NamedClip:
    """A clip whose people have an identity each, in the split that all of them are in."""

    clip: Clip
    identities: tuple[str, ...]
    split: str


def name_people(clips: Sequence[Clip], threshold: float) -> list[tuple[str, ...]]:
    """Name the people of each clip: as the manifest does, or else by their faces.

    Two appearances are one person if they have the same name, or if one has no name and the cosine of their mean vectors is at least
    `threshold`; and so are those linked through others, which errs towards one person too few, never towards one in two splits.
    """
    appearances = [person for clip in clips for person in clip.people]
    named = np.array([person.identity is not None for person in appearances])
    parts = Components(len(appearances))
    first: dict[str, int] = {}
    same_name = [(first.setdefault(person.identity, index), index) for index, person in enumerate(appearances) if person.identity]
    parts.link(np.array(same_name, int).reshape(-1, 2))
    if not named.all():
        join_close(parts, _middles([[person] for person in appearances]), threshold, named)
    labels = parts.labels
    largest = int(np.bincount(labels).max())
    if len(labels) > MANY and largest > CHAINED * len(labels) and not named.all():
        warn(f"{largest:,} of {len(labels):,} people in clips are taken for one: the recogniser links strangers, a few of whom join all; "
             f"give a --same_person above {threshold:g}")  # fmt: skip
    names = {int(labels[index]): name for name, index in reversed(first.items())}
    told = iter(names.get(int(label), f"person_{label:05d}") for label in labels)
    return [tuple(next(told) for _ in clip.people) for clip in clips]


def _middles(groups: Sequence[Sequence[Appearance]]) -> np.ndarray:
    """Return the direction (N, D) of each group's mean; of many, in float16."""
    first = groups[0][0].mean
    middles = np.empty((len(groups), len(first)), np.float16 if len(groups) > EXACT else first.dtype)
    for start in range(0, len(groups), BLOCK):
        block = np.stack([people[0].mean if len(people) == 1 else np.mean([person.mean for person in people], axis=0)
                          for people in groups[start : start + BLOCK]])  # fmt: skip
        middles[start : start + BLOCK] = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
    return middles


def assign_splits(clips: Sequence[Clip], identities: Sequence[tuple[str, ...]], valid: float, test: float, seed: int) -> list[str]:
    """Put each clip into train, valid or test so that nobody is in two of them.

    People who share a clip stay together. Splits of the manifest are kept; of the others, the shares `valid` and `test` of the groups
    (at least one of three or more) are drawn by `seed`. Raises `UserError` if the manifest puts somebody into two.
    """
    names = sorted({name for people in identities for name in people})
    place = {name: index for index, name in enumerate(names)}
    edges = np.array([(place[a], place[b]) for people in identities for a, b in combinations(people, 2)], int).reshape(-1, 2)
    groups = connected_components(coo_matrix((np.ones(len(edges)), edges.T), shape=(len(names),) * 2), directed=False)[1]
    of_clip = [int(groups[place[people[0]]]) for people in identities]
    given: dict[int, tuple[str, Clip]] = {}
    for group, clip in zip(of_clip, clips, strict=True):
        if clip.split and given.setdefault(group, (clip.split, clip))[0] != clip.split:
            split, other = given[group]
            raise UserError(f"{clip.video}: its people are in the split {clip.split!r} here and in {split!r} in {other.video}, "
                            "expected one; correct the list that the clips were prepared from")  # fmt: skip
    free = np.random.default_rng(seed).permutation(sorted(set(of_clip) - given.keys()))
    counts = [max(round(share * len(free)), 1 if share and len(free) > 2 else 0) for share in (test, valid)]
    drawn = {int(group): "test" if index < counts[0] else "valid" if index < sum(counts) else "train" for index, group in enumerate(free)}
    return [given[group][0] if group in given else drawn[group] for group in of_clip]


def too_close(clips: Sequence[NamedClip], threshold: float) -> dict[str, float]:
    """Find identities outside training with a crop closer than `threshold` to one of training, each with its largest cosine.

    All crops are compared if there are up to `EXACT`; else everybody's with those of the `STRANGERS` training people who are closest on
    average, and a line tells how often the closest crop is among them.
    """
    training: dict[str, list[Appearance]] = defaultdict(list)
    others: dict[str, list[Appearance]] = defaultdict(list)
    for clip in clips:
        for name, person in zip(clip.identities, clip.clip.people, strict=True):
            (training if clip.split == "train" else others)[name].append(person)
    if not training or not others:
        return {}
    pool = [person for clip in clips if clip.split == "train" for person in clip.clip.people]
    if sum(len(person.rows) for clip in clips for person in clip.clip.people) <= EXACT:
        found = _largest(others, pool)
    else:
        found = _largest_of_nearest(others, list(training.values()))
        exact = _largest({name: others[name] for name in np.random.default_rng(1).permutation(list(others))[:SAMPLE].tolist()}, pool)
        agreed = sum(found[name] >= value - TOLERANCE for name, value in exact.items())
        close = [name for name, value in exact.items() if value > threshold]
        tell(f"of {len(exact)} people outside training, the closest crop of training is found for {agreed}; of the {len(close)} of them "
             f"who are too close, {sum(found[name] > threshold for name in close)} are found")  # fmt: skip
        found |= exact
    return {name: cosine for name, cosine in found.items() if cosine > threshold}


def _largest_of_nearest(others: Mapping[str, Sequence[Appearance]], known: Sequence[Sequence[Appearance]]) -> dict[str, float]:
    candidates = nearest(_middles(known), _middles(list(others.values())), STRANGERS)
    found = {}
    for name, numbers in zip(tqdm(others, desc="people outside training", dynamic_ncols=True), candidates, strict=True):
        found |= _largest({name: others[name]}, [person for number in numbers if number >= 0 for person in known[number]])
    return found


def _largest(groups: Mapping[str, Sequence[Appearance]], pool: Sequence[Appearance]) -> dict[str, float]:
    """Return for each group the largest cosine of a crop and one of the pool."""
    own = {name: np.concatenate([person.vectors for person in people]) for name, people in groups.items()}
    largest = dict.fromkeys(groups, -1.0)
    for start in range(0, len(pool), BLOCK):
        block = np.concatenate([person.rows for person in pool[start : start + BLOCK]])
        block = block.astype(np.float32) if block.dtype == np.float16 else block
        for name, vectors in own.items():
            largest[name] = max(largest[name], float((block @ vectors.T).max()))
    return largest


class Others:
    """The appearances of a person in other clips of the same split, clips of the same recording left out."""

    def __init__(self, clips: Sequence[NamedClip]):
        self._known = defaultdict(list)
        for clip in clips:
            for name, person in zip(clip.identities, clip.clip.people, strict=True):
                self._known[clip.split, name].append((clip.clip.origin, person))

    def of(self, clip: NamedClip, place: int, most: int | None = None, random: np.random.Generator | None = None) -> list[Appearance]:
        """List them for the person at `place`; of somebody who appears more than `most` times, among so many that `random` draws."""
        known = self._known[clip.split, clip.identities[place]]
        if most and len(known) > most:
            drawn = [known[number] for number in np.sort(random.choice(len(known), most, replace=False))]
            if found := [person for origin, person in drawn if origin != clip.clip.origin]:
                return found
        return [person for origin, person in known if origin != clip.clip.origin]
