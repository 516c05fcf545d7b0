"""What scores mean with these weights: impostor and genuine similarity; and which references were trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from concat_id.errors import UserError
from concat_id.evaluation.face_tracks import similarity

TOO_CLOSE = 0.45  # of a reference and a training image. Source: the paper's benchmark, which takes it for ArcFace's cosine


class Range(NamedTuple):
    """Mean cosine with other people's photos (`impostor`) and with other photos of the same person (`genuine`); None if not known."""

    impostor: float | None
    genuine: float | None

    def rescale(self, value: float) -> float | None:
        """Bring the impostor similarity to 0 and the genuine one to 1."""
        if self.impostor is None or self.genuine is None or self.genuine <= self.impostor:
            return None
        return (value - self.impostor) / (self.genuine - self.impostor)


class Calibration:
    """Vectors (D,) of photos of people, a folder each. A reference called like a folder is compared with that person's photos."""

    def __init__(self, people: dict[str, list[np.ndarray]]):
        self.people = people
        within = [_mean(_similarities([[photo] for photo in photos])) for photos in people.values() if len(photos) > 1]
        self.whole = Range(_mean(_similarities(list(people.values()))), _mean(within))

    @classmethod
    def from_folder(cls, folder: Path, vectors: dict[Path, np.ndarray]) -> "Calibration":
        """Sort the photos `folder/<person>/*.jpg`, a person's copies once.

        Raises `UserError` if there are fewer than two people, or none with two photos.
        """
        people: dict[str, dict[bytes, np.ndarray]] = {}
        for path, vector in vectors.items():
            if path.parent != folder:
                people.setdefault(path.relative_to(folder).parts[0], {})[vector.tobytes()] = vector
        if len(people) < 2 or not any(len(photos) > 1 for photos in people.values()):
            raise UserError(
                f"--calibration: {folder}: found {len(people)} people with {sum(map(len, people.values()))} different photos, expected "
                "two or more people, a folder each, and two photos of one of them"
            )
        return cls({name: list(photos.values()) for name, photos in people.items()})

    @classmethod
    def from_references(cls, vectors: Sequence[np.ndarray]) -> "Calibration":
        """Take different references for one another's impostors; genuine similarity stays unknown.

        Impostor similarity is the median of all pairs, which a benchmark's few pairs of one person do not move.
        """
        calibration = cls({})
        pairs = _similarities([[vector] for vector in vectors])
        calibration.whole = Range(float(np.median(pairs)) if len(pairs) else None, None)
        return calibration

    def of(self, reference: Path, vector: np.ndarray) -> Range:
        """Return the range for one reference, from its own person's photos where there are any."""
        own = [photo for photo in self.people.get(reference.stem, []) if not np.allclose(photo, vector, atol=1e-6)]
        others = [photo for name, photos in self.people.items() if name != reference.stem for photo in photos]
        if not own or not others:
            return self.whole
        return Range(_mean([similarity(vector, photo) for photo in others]), _mean([similarity(vector, photo) for photo in own]))


def trained_on(references: dict[Path, np.ndarray], training: dict[Path, np.ndarray]) -> dict[Path, dict[str, Any]]:
    """Find the references closer than 0.45 to a training image, each with the closest one."""
    if not references or not training:
        return {}
    names, images = list(references), list(training)
    cosines = np.stack([references[name] for name in names]) @ np.stack([training[image] for image in images]).T
    nearest = cosines.argmax(axis=1)
    return {
        name: {"image": str(images[index]), "similarity": float(row[index])}
        for name, index, row in zip(names, nearest, cosines, strict=True)
        if row[index] > TOO_CLOSE
    }


def _similarities(groups: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """The `similarity` (P,), float64, of each pair of vectors (D,) that are in different groups."""
    if len(groups) < 2:
        return np.zeros(0)
    vectors = np.array([vector for group in groups for vector in group])
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return np.maximum((vectors @ vectors.T)[numbers[:, None] < numbers], 0, dtype=np.float64)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
