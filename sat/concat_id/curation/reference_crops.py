"""The pictures of a person that stand for them: sharp, frontal, large, and different from one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from concat_id.curation.people import DiscardError, Person, Sighting, in_order
from concat_id.face.detection import TEMPLATE, TEMPLATE_SIZE, FaceDetector, alignment, moved, warp
from concat_id.face.reference import MIN_REMAINING, REMOVED_CLASSES, FaceParser
from concat_id.video import write_picture

GOOD_ENOUGH = 0.4  # of the best picture's quality
ALIKE = 0.985  # cosine from which a second picture adds nothing
TURNED = 0.35  # shift of the nose, in distances of the eyes, at which a face counts as a profile


@dataclass(frozen=True)
class Reference:
    """A chosen picture: number of the sampled frame, quality in [0, 1] within the clip, vector (D,) of length 1."""

    frame: int
    quality: float
    vector: np.ndarray


def choose_references(people: Sequence[Person], frames: Sequence[Image.Image], most: int) -> list[list[Reference]]:
    """Choose up to `most` pictures of each person, from left to right.

    Frames in which people stand in another order than on average are not used. Raises `DiscardError` if nothing is left of a person.
    """
    chosen = []
    for place, person in enumerate(people, 1):
        numbers = [number for number in sorted(person.sightings) if in_order(people, number)]
        if not numbers:
            raise DiscardError(f"person {place} never stands where the order of the people says")
        qualities = rate([frames[number] for number in numbers], [person.sightings[number] for number in numbers])
        vectors = np.stack([person.sightings[number].vector for number in numbers])
        picked = spread_out(qualities, vectors, most)
        chosen.append([Reference(numbers[index], float(qualities[index]), vectors[index]) for index in picked])
    return chosen


def rate(frames: Sequence[Image.Image], sightings: Sequence) -> np.ndarray:
    """Rate pictures of one person in [0, 1]: sharpness and size relative to the best of them, times frontality; (N,)."""
    sharp = np.array([sharpness(warp(frame, alignment(sighting.face.keypoints, TEMPLATE_SIZE), TEMPLATE_SIZE))
                      for frame, sighting in zip(frames, sightings, strict=True)])  # fmt: skip
    large = np.array([sighting.side for sighting in sightings])
    frontal = np.array([frontality(sighting.face.keypoints) for sighting in sightings])
    return sharp / max(sharp.max(), 1e-9) * large / max(large.max(), 1e-9) * frontal


def sharpness(crop: Image.Image) -> float:
    """Energy of the second derivative relative to the contrast, so that dark pictures are not taken for blurred ones."""
    grey = np.asarray(crop.convert("L")).astype(np.float64)
    second = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    return float(second.std() / max(grey.std(), 1e-6))


def frontality(keypoints: np.ndarray) -> float:
    """Tell from five key points (5, 2) how frontal a face is: 1 if the nose is where `TEMPLATE` has it, 0 in profile."""
    upright = moved(keypoints, alignment(keypoints, TEMPLATE_SIZE))
    eyes = max(float(np.linalg.norm(upright[1] - upright[0])), 1e-6)
    shift = (upright[2, 0] - upright[[0, 1, 3, 4], 0].mean()) - (TEMPLATE[2, 0] - TEMPLATE[[0, 1, 3, 4], 0].mean())
    return float(np.clip(1 - abs(shift) / eyes / TURNED, 0.0, 1.0))


def spread_out(qualities: np.ndarray, vectors: np.ndarray, most: int) -> list[int]:
    """Choose indices: the best picture, then again and again a good one unlike those chosen (quality times distance is largest)."""
    chosen = [int(qualities.argmax())]
    good = qualities >= GOOD_ENOUGH * qualities.max()
    while len(chosen) < most:
        nearest = (vectors @ vectors[chosen].T).max(axis=1)
        gains = np.where(good & (nearest < ALIKE), qualities * (1 - nearest), 0.0)
        if not gains.any():
            break
        chosen.append(int(gains.argmax()))
    return chosen


def write_reference(
    picture: Path, mask: Path, frame: Image.Image, sighting: Sighting, detector: FaceDetector, parser: FaceParser, size: int
) -> None:
    """Write the upright crop of `size` pixels, and in white what the model is to see of it: all, if too little would remain."""
    crop, keypoints = detector.align(frame, sighting.face, size)
    kept = ~np.isin(parser.parse(crop, keypoints), REMOVED_CLASSES)
    if kept.mean() < MIN_REMAINING:
        kept[:] = True
    write_picture(picture, crop)
    write_picture(mask, Image.fromarray(kept.astype(np.uint8) * 255))
