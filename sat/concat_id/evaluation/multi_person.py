"""Several people: whether everybody is there, in their own place, and nobody is two at once."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from concat_id.evaluation.face_tracks import EQUAL, Reference
from concat_id.face.tracking import FoundFace, Track, similarity

MERGE_MARGIN = 0.1  # by how much a face must resemble both references more than these resemble one another


def multi_person_scores(references: Sequence[Reference], people: Sequence[Track], others: Sequence[Track], num_frames: int,
                        threshold: float) -> dict[str, Any]:  # fmt: skip
    """Score a video of two or more references, which stand from left to right; {} for one. `people` and `others` are what `assign` gives.

    Each reference has a place: the most prominent of all these tracks, as many as references, from left to right. Whoever changes sides
    changes places: those seen in a frame stand in the places of their tracks in the order of that frame. In every sampled frame, a place
    - matches if its face resembles its own reference most, by at least `threshold`,
    - is swapped if it resembles another one most, by at least `threshold`,
    - holds a stranger if it resembles nobody by `threshold`,
    - is missing if it holds no face; the four rates add up to 1.
    `merge_rate`: share of the faces in places that resemble two references by `threshold`, and both by 0.1 more than these two
    resemble one another. `order_accuracy`: of all pairs of different references whose assigned faces are in one frame and resemble them,
    the share that stands in the right order; None if there is no such pair.
    """
    if len(references) < 2:
        return {}
    vectors = np.stack([reference.found.vector for reference in references])
    counts = dict.fromkeys(("match", "swap", "stranger", "missing"), 0)
    merged = 0
    placed = place_tracks(references, [track for track in (*people, *others) if track.faces])
    for number in range(num_frames):
        seen = [track.faces.get(number) for track in placed]
        in_order = iter(sorted(filter(None, seen), key=lambda face: face.centre))
        for place, face in enumerate(face and next(in_order) for face in seen):
            counts[_verdict(vectors, place, face, threshold)] += 1
            merged += face is not None and _is_merged(vectors, face, threshold)
    total = len(references) * num_frames
    faces = total - counts["missing"]
    return {f"{name}_rate": count / total for name, count in counts.items()} | {
        "merge_rate": merged / faces if faces else None,
        "order_accuracy": _order_accuracy(references, people, num_frames, threshold),
    }


def place_tracks(references: Sequence[Reference], tracks: Sequence[Track]) -> list[Track]:
    """Choose the most prominent tracks, one for each reference's place, from left to right.

    Fewer tracks than places take, in their order, the places where they resemble the references most; the others stay empty.
    """
    number = len(references)
    chosen = sorted(sorted(tracks, key=lambda track: track.prominence, reverse=True)[:number], key=lambda track: track.position)
    gains = [[sum(similarity(reference.found.vector, face.vector) for face in track.faces.values()) for track in chosen]
             for reference in references]  # fmt: skip
    options = combinations(range(number), len(chosen))
    best = max(options, key=lambda places: sum(gains[place][index] for index, place in enumerate(places)))
    placed = [Track() for _ in references]
    for place, track in zip(best, chosen, strict=True):
        placed[place] = track
    return placed


def _verdict(vectors: np.ndarray, place: int, face: FoundFace | None, threshold: float) -> str:
    if face is None:
        return "missing"
    cosines = vectors @ face.vector
    if cosines.max() < threshold:
        return "stranger"
    return "match" if cosines[place] >= cosines.max() - EQUAL else "swap"


def _is_merged(vectors: np.ndarray, face: FoundFace, threshold: float) -> bool:
    cosines, among = vectors @ face.vector, vectors @ vectors.T
    return any(
        min(cosines[one], cosines[two]) >= max(threshold, among[one, two] + MERGE_MARGIN)
        for one, two in combinations(range(len(vectors)), 2)
    )


def _order_accuracy(references: Sequence[Reference], people: Sequence[Track], num_frames: int, threshold: float) -> float | None:
    verdicts, vectors = [], [reference.found.vector for reference in references]
    different = [(one, two) for one, two in combinations(range(len(vectors)), 2) if vectors[one] @ vectors[two] < 1 - EQUAL]
    for number in range(num_frames):
        positions = {
            place: track.faces[number].centre
            for place, (vector, track) in enumerate(zip(vectors, people, strict=True))
            if number in track.faces and similarity(vector, track.faces[number].vector) >= threshold
        }
        verdicts += [positions[left] < positions[right] for left, right in different if {left, right} <= positions.keys()]
    return float(np.mean(verdicts)) if verdicts else None
