"""The crops of a clip that stand for a person: sharp, frontal, large, and different from one another."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from concat_id.curation.clip_people import DiscardError, in_order
from concat_id.face.detection import Face, FaceDetector
from concat_id.face.reference import FaceParser, background_kept, kept_pixels
from concat_id.face.tracking import FoundFace, Track
from concat_id.face.verdict import GOOD, LEVELS, PhotoVerdict, judge, nose_shift, sharpness
from concat_id.files.json_files import OBJECT, TEXT, list_of, take
from concat_id.video.writing import write_image

GOOD_ENOUGH = 0.4  # of the best crop's quality
ALIKE = 0.985  # cosine from which a second crop adds nothing
MOST_KINDS = 4  # of reasons that a summary names
TURNED = 0.35  # shift of the nose, in distances of the eyes, at which a face counts as a profile


@dataclass(frozen=True)
class ReferenceCrop:
    """A chosen crop: number of the sampled frame, quality in [0, 1] within the clip, vector (D,) of length 1."""

    frame: int
    quality: float
    vector: np.ndarray


def choose_references(people: Sequence[Track], most: int) -> list[list[ReferenceCrop]]:
    """Choose up to `most` crops of each person, from left to right.

    Frames in which people stand in another order than on average are not used. Raises `DiscardError` if nothing is left of a person.
    """
    chosen = []
    for place, person in enumerate(people, 1):
        numbers = [number for number in sorted(person.faces) if in_order(people, number)]
        if not numbers:
            raise DiscardError(f"person {place} never stands where the order of the people says")
        qualities = rate([person.faces[number] for number in numbers])
        vectors = np.stack([person.faces[number].vector for number in numbers])
        picked = spread_out(qualities, vectors, most)
        chosen.append([ReferenceCrop(numbers[index], float(qualities[index]), vectors[index]) for index in picked])
    return chosen


def rate(faces: Sequence[FoundFace]) -> np.ndarray:
    """Rate faces of one person in [0, 1]: sharpness and size relative to the best of them, times frontality; (N,)."""
    sharp = np.array([sharpness(found.crop) for found in faces])
    large = np.array([found.side for found in faces])
    frontal = np.array([frontality(found.face.keypoints) for found in faces])
    return sharp / max(sharp.max(), 1e-9) * large / max(large.max(), 1e-9) * frontal


def frontality(keypoints: np.ndarray) -> float:
    """Tell from five key points (5, 2) how frontal a face is: 1 if the nose is where `TEMPLATE` has it, 0 in profile."""
    return float(np.clip(1 - abs(nose_shift(keypoints)) / TURNED, 0.0, 1.0))


def spread_out(qualities: np.ndarray, vectors: np.ndarray, most: int) -> list[int]:
    """Choose indices: the best crop, then again and again a good one unlike those chosen (quality times distance is largest)."""
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
    target: Path, mask: Path, frame: Image.Image, face: Face, detector: FaceDetector, parser: FaceParser, size: int
) -> PhotoVerdict:
    """Write the upright crop of `size` pixels, and in white what the model is to see of it; judge it as a photo of this person alone."""
    crop, keypoints = detector.align(frame, face, size)
    kept, remaining = kept_pixels(labels := parser.parse(crop, keypoints))
    write_image(target, crop)
    write_image(mask, Image.fromarray(kept.astype(np.uint8) * 255))
    return judge(frame, [face], face, crop, keypoints, labels).joined(*background_kept(remaining))


def count_verdicts(videos: Iterable[tuple[Path, dict[str, Any]]]) -> str:
    """Count the verdicts in folders and their records, "8 good, 2 usable, 0 poor; most often small (2)"; "" if there are none.

    What was taken out by hand does not count, nor do reasons that lower no verdict. Raises `UserError` for what is no record.
    """
    levels, kinds = Counter(), Counter()
    for folder, person in ((folder, person) for folder, record in videos for clip in record["clips"] for person in clip["people"]):
        place = str(folder / person["folder"])
        for number, reference in enumerate(take(person, "references", list_of(OBJECT), place, optional=True) or ()):
            verdict = take(reference, "verdict", OBJECT, place, optional=True)  # older ones have none
            if verdict is None or not (folder / person["folder"] / f"{number}.png").exists():
                continue
            levels[take(verdict, "level", TEXT, place)] += 1
            reasons = take(verdict, "reasons", list_of(OBJECT), place)
            kinds.update(take(reason, "kind", TEXT, place) for reason in reasons if take(reason, "level", TEXT, place) != GOOD)
    often = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(MOST_KINDS))
    told = ", ".join(f"{levels[level]} {level}" for level in LEVELS) if levels else ""
    return "; most often ".join(filter(None, [told, often]))
