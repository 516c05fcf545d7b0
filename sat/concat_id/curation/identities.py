"""Who is who across clips, which people are kept for testing, and whether these are strangers to training."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from concat_id.data.manifest import COMMAND, Appearance, Clip
from concat_id.errors import UserError
from concat_id.files.json_files import NUMBER, read_json, take

BLOCK = 2048  # rows of cosines at a time


@dataclass(frozen=True, eq=False)
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
    means = np.stack([person.mean for person in appearances])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    named = np.array([person.identity is not None for person in appearances])
    links = [np.zeros((0, 2), int)]
    if not named.all():
        for start in range(0, len(means), BLOCK):
            close = means[start : start + BLOCK] @ means.T >= threshold
            close &= ~(named[start : start + BLOCK, None] & named)
            links.append(np.argwhere(close) + (start, 0))
    first: dict[str, int] = {}
    same_name = [(first.setdefault(person.identity, index), index) for index, person in enumerate(appearances) if person.identity]
    edges = np.concatenate([*links, np.array(same_name, int).reshape(-1, 2)])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(means),) * 2)
    labels = connected_components(graph, directed=False)[1]
    names = {int(labels[index]): name for name, index in reversed(first.items())}
    told = iter(names.get(int(label), f"person_{label:05d}") for label in labels)
    return [tuple(next(told) for _ in clip.people) for clip in clips]


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
    """Find identities outside training with a crop closer than `threshold` to one of training, each with its largest cosine."""
    training = [person.vectors for clip in clips if clip.split == "train" for person in clip.clip.people]
    if not training:
        return {}
    pool = np.concatenate(training)
    nearest: dict[str, float] = defaultdict(lambda: -1.0)
    for clip in clips:
        if clip.split == "train":
            continue
        for name, person in zip(clip.identities, clip.clip.people, strict=True):
            for start in range(0, len(pool), BLOCK):
                nearest[name] = max(nearest[name], float((pool[start : start + BLOCK] @ person.vectors.T).max()))
    return {name: cosine for name, cosine in nearest.items() if cosine > threshold}


def recorded_threshold(manifest: Path) -> float | None:
    """Read the recogniser's own threshold from a manifest; None if it tells none. Raises `UserError`."""
    content = read_json(manifest, "a manifest of sat/prepare_clips.py", COMMAND)
    return take(content, "threshold", NUMBER, str(manifest), COMMAND, optional=True)


class Others:
    """The appearances of a person in other clips of the same split, clips of the same recording left out."""

    def __init__(self, clips: Sequence[NamedClip]):
        self._known = defaultdict(list)
        for clip in clips:
            for name, person in zip(clip.identities, clip.clip.people, strict=True):
                self._known[clip.split, name].append((clip.clip.origin, person))

    def of(self, clip: NamedClip, place: int) -> Iterator[Appearance]:
        """Yield them for the person at `place`."""
        for origin, person in self._known[clip.split, clip.identities[place]]:
            if origin != clip.clip.origin:
                yield person
