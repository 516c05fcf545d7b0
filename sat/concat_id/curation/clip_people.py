"""Who of the people in a clip is there all the time, and whether anybody else disturbs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from concat_id.face.tracking import Track

INTRUDER_FRAMES, INTRUDER_SIZE = 0.3, 0.5  # share of the frames, and of the smallest person's size, from which a face disturbs


class DiscardError(Exception):
    """Why a clip is of no use."""


@dataclass(frozen=True)
class Demands:
    """What a clip must show: a face of `min_face` pixels in a share of `presence` of the frames, of at most `max_people`."""

    presence: float = 0.9
    min_face: float = 32.0
    max_people: int = 3


def choose_people(people: Sequence[Track], num_frames: int, demands: Demands, threshold: float) -> list[Track]:
    """Return the people who are in the clip all the time, from left to right. Raises `DiscardError` with the reason.

    `threshold` is the cosine from which two faces are one person's; damaged frames and mixed-up people stay below it.
    """
    if not people:
        raise DiscardError(f"no face in {num_frames} frames")
    needed = int(np.ceil(demands.presence * num_frames - 1e-9))
    steady = [person for person in people if len(person.faces) >= needed]
    if not steady:
        most = max(len(person.faces) for person in people)
        raise DiscardError(f"no steady face: one person's in {most} of {num_frames} frames, expected {needed}")
    large = [person for person in steady if person.side >= demands.min_face]
    if not large:
        side = max(person.side for person in steady)
        raise DiscardError(f"the face is {side:.0f} pixels wide, expected {demands.min_face:g}")
    if len(large) > demands.max_people:
        raise DiscardError(f"{len(large)} people, expected at most {demands.max_people}")
    for person in large:
        if person.likeness < threshold:
            raise DiscardError(f"the face is not clearly one person's: mean cosine {person.likeness:.2f}, expected {threshold:g}")
    minimum = INTRUDER_SIZE * min(person.side for person in large)
    for other in people:
        if not any(other is person for person in large) and other.side >= minimum and len(other.faces) > INTRUDER_FRAMES * num_frames:
            raise DiscardError(f"another face in {len(other.faces)} of {num_frames} frames")
    return sorted(large, key=lambda person: person.position)


def in_order(people: Sequence[Track], number: int) -> bool:
    """Whether the people seen in a frame stand from left to right as they do on average."""
    centres = [person.faces[number].centre for person in people if number in person.faces]
    return all(left < right for left, right in zip(centres, centres[1:], strict=False))


def match_names(names: Sequence[str], people: np.ndarray, first: np.ndarray, threshold: float) -> list[str]:
    """Give the people of a clip the `names` of those of the video's first whom they resemble, as cuts let people change sides.

    `people` and `first` (N, D) are the means of their crops' vectors; one to one, the largest sum of cosines. Raises `DiscardError` where
    one is below `threshold`: strangers get no names.
    """
    cosines = people @ first.T / np.outer(np.linalg.norm(people, axis=1), np.linalg.norm(first, axis=1))
    rows, places = linear_sum_assignment(cosines, maximize=True)
    if (least := cosines[rows, places].min()) < threshold:
        raise DiscardError(f"somebody is none of those whom the list names: cosine {least:.2f}, expected {threshold:g}")
    return [names[place] for place in places]
