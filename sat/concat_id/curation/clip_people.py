"""Who is in a clip: faces of sampled frames linked to people, and whether these are there all the time."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from concat_id.face.detection import Face, FaceDetector
from concat_id.face.recognition import FaceRecognizer

SAME_PERSON = {"SFace": 0.363}  # cosine from which two faces are one person's. Source: OpenCV Zoo, found on LFW
OTHERWISE = 0.3  # for recognisers that publish none
STILL = 0.3  # intersection over union from which the face of two neighbouring frames is one person's whatever its vector
INTRUDER_FRAMES, INTRUDER_SIZE = 0.3, 0.5  # share of the frames, and of the smallest person's size, from which a face disturbs


class DiscardError(Exception):
    """Why a clip is of no use."""


@dataclass(frozen=True)
class Sighting:
    """A face in one frame, and its vector (D,) of length 1."""

    face: Face
    vector: np.ndarray

    @property
    def side(self) -> float:
        """Shorter side of the box in pixels."""
        return float((self.face.box[2:] - self.face.box[:2]).min())

    @property
    def centre(self) -> float:
        """Horizontal position in pixels."""
        return float(self.face.box[0] + self.face.box[2]) / 2


@dataclass
class Person:
    """Sightings by number of the sampled frame."""

    sightings: dict[int, Sighting] = field(default_factory=dict)

    @property
    def side(self) -> float:
        """Median size in pixels."""
        return float(np.median([sighting.side for sighting in self.sightings.values()]))

    @property
    def likeness(self) -> float:
        """Mean cosine of two different sightings: |sum of N vectors|^2 holds N cosines of 1 and each other one twice."""
        vectors = np.stack([sighting.vector for sighting in self.sightings.values()])
        count = len(vectors)
        return float((np.square(vectors.sum(axis=0)).sum() - count) / (count * (count - 1))) if count > 1 else 1.0

    @property
    def box(self) -> np.ndarray:
        """Mean of the boxes (4,) in pixels: left, top, right, bottom."""
        return np.mean([sighting.face.box for sighting in self.sightings.values()], axis=0)

    @property
    def position(self) -> float:
        """Mean horizontal position in pixels: people are told from left to right by it."""
        return float(np.mean([sighting.centre for sighting in self.sightings.values()]))


@dataclass(frozen=True)
class Demands:
    """What a clip must show: a face of `min_face` pixels in a share of `presence` of the frames, of at most `max_people`."""

    presence: float = 0.9
    min_face: float = 32.0
    max_people: int = 3


def same_person_threshold(recognizer: str) -> float:
    """Cosine from which two faces are one person's, by the name of the recogniser."""
    return SAME_PERSON.get(recognizer, OTHERWISE)


def look(frames: Sequence[Image.Image], detector: FaceDetector, recognizer: FaceRecognizer) -> list[list[Sighting]]:
    """Find and embed every face of every frame."""
    seen = []
    for frame in frames:
        faces = detector.detect(frame)
        vectors = recognizer.embed_crops([recognizer.align(frame, face) for face in faces])
        seen.append([Sighting(face, vector) for face, vector in zip(faces, vectors, strict=True)])
    return seen


def follow(seen: Sequence[Sequence[Sighting]], threshold: float) -> list[Person]:
    """Link sightings to people, one to one in each frame, by overlap with the frame before and by the face.

    A person keeps the mean of the vectors so far; one who was gone is known again by `threshold`.
    """
    people: list[Person] = []
    for number, sightings in enumerate(seen):
        new = list(range(len(sightings)))
        if people and sightings:
            vectors = np.stack([_mean_vector(person) for person in people])
            cosines = vectors @ np.stack([sighting.vector for sighting in sightings]).T
            overlaps = np.array([[_overlap(person.sightings.get(number - 1), sighting) for sighting in sightings] for person in people])
            linked = (cosines >= threshold) | (overlaps >= STILL)
            for row, column in zip(*linear_sum_assignment(linked * (1 + cosines + overlaps), maximize=True), strict=True):
                if linked[row, column]:
                    people[row].sightings[number] = sightings[column]
                    new.remove(int(column))
        people += [Person({number: sightings[column]}) for column in new]
    return people


def choose_people(people: Sequence[Person], num_frames: int, demands: Demands, threshold: float) -> list[Person]:
    """Return the people who are in the clip all the time, from left to right. Raises `DiscardError` with the reason.

    `threshold` is the cosine from which two faces are one person's; damaged pictures and mixed-up people stay below it.
    """
    if not people:
        raise DiscardError(f"no face in {num_frames} frames")
    needed = int(np.ceil(demands.presence * num_frames - 1e-9))
    steady = [person for person in people if len(person.sightings) >= needed]
    if not steady:
        most = max(len(person.sightings) for person in people)
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
    least = INTRUDER_SIZE * min(person.side for person in large)
    for other in people:
        if not any(other is person for person in large) and other.side >= least and len(other.sightings) > INTRUDER_FRAMES * num_frames:
            raise DiscardError(f"another face in {len(other.sightings)} of {num_frames} frames")
    return sorted(large, key=lambda person: person.position)


def in_order(people: Sequence[Person], number: int) -> bool:
    """Whether the people seen in a frame stand from left to right as they do on average."""
    centres = [person.sightings[number].centre for person in people if number in person.sightings]
    return all(left < right for left, right in zip(centres, centres[1:], strict=False))


def _mean_vector(person: Person) -> np.ndarray:
    mean = np.mean([sighting.vector for sighting in person.sightings.values()], axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def _overlap(before: Sighting | None, now: Sighting) -> float:
    """Intersection over union of two boxes, 0 without the first."""
    if before is None:
        return 0.0
    a, b = before.face.box, now.face.box
    common = float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)))
    return common / max(before.face.area + now.face.area - common, 1e-9)
