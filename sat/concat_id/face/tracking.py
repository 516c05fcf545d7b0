"""Follow people through the frames of a video: their faces with the vectors that tell whom they show, linked to tracks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from concat_id.face.detection import Face, FaceDetector, shared_area
from concat_id.face.recognition import FaceRecognizer

LINK_OVERLAP = 0.3  # intersection over union of two boxes that are one person's without a look at the face
OVERLAP_WEIGHT = 0.5  # half of the similarity's, so that two people who change places stay themselves


@dataclass(frozen=True)
class FoundFace:
    """A face with its crop of 112x112 and its vector (D,) of length 1."""

    face: Face
    crop: Image.Image
    vector: np.ndarray

    @property
    def side(self) -> float:
        """Shorter side of the box in pixels."""
        return self.face.side

    @property
    def centre(self) -> float:
        """Horizontal position in pixels."""
        return float(self.face.box[0] + self.face.box[2]) / 2


@dataclass
class Track:
    """One person's faces by number of the sampled frame."""

    faces: dict[int, FoundFace] = field(default_factory=dict)

    @property
    def prominence(self) -> tuple[int, float]:
        """In how many frames it is, then how large."""
        return len(self.faces), sum(found.face.area for found in self.faces.values())

    @property
    def position(self) -> float:
        """Mean horizontal position in pixels: people are told from left to right by it."""
        return float(np.mean([found.centre for found in self.faces.values()]))

    @property
    def side(self) -> float:
        """Median size in pixels."""
        return float(np.median([found.side for found in self.faces.values()]))

    @property
    def box(self) -> np.ndarray:
        """Mean of the boxes (4,) in pixels: left, top, right, bottom."""
        return np.mean([found.face.box for found in self.faces.values()], axis=0)

    @property
    def likeness(self) -> float:
        """Mean cosine of two different faces: |sum of N vectors|^2 holds N cosines of 1 and each other one twice."""
        vectors = np.stack([found.vector for found in self.faces.values()])
        count = len(vectors)
        return float((np.square(vectors.sum(axis=0)).sum() - count) / (count * (count - 1))) if count > 1 else 1.0


def find_faces(frames: Sequence[Image.Image], detector: FaceDetector, recognizer: FaceRecognizer) -> list[list[FoundFace]]:
    """Find every face of every frame, largest first; the vectors are computed in one go."""
    faces = [sorted(detector.detect(frame), key=lambda face: -face.area) for frame in frames]
    found = iter(embed_faces([(frame, face) for frame, many in zip(frames, faces, strict=True) for face in many], recognizer))
    return [[next(found) for _ in many] for many in faces]


def embed_faces(pairs: Sequence[tuple[Image.Image, Face]], recognizer: FaceRecognizer) -> list[FoundFace]:
    """Cut out and embed faces of images."""
    crops = [recognizer.align(image, face) for image, face in pairs]
    vectors = recognizer.embed_crops(crops)
    return [FoundFace(face, crop, vector) for (_, face), crop, vector in zip(pairs, crops, vectors, strict=True)]


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors of length 1, not below 0, as the published benchmarks have it."""
    return max(0.0, float(a @ b))


def build_tracks(found: Sequence[Sequence[FoundFace]], threshold: float) -> list[Track]:
    """Link the faces of successive frames to people; `threshold` is the similarity from which two faces are one person's.

    In every frame people and faces are assigned one to one so that similarity + overlap / 2 is largest in total. People who leave are
    remembered and come back by their face alone.
    """
    tracks: list[Track] = []
    for number, faces in enumerate(found):
        taken: set[int] = set()
        if tracks and faces:
            last = [(max(track.faces), track.faces[max(track.faces)]) for track in tracks]
            overlaps = np.array([[_overlap(old.face, new.face) if frame == number - 1 else 0.0 for new in faces] for frame, old in last])
            cosines = np.array([[similarity(old.vector, new.vector) for new in faces] for _, old in last])
            for row, column in zip(*linear_sum_assignment(cosines + OVERLAP_WEIGHT * overlaps, maximize=True), strict=True):
                if cosines[row, column] >= threshold or overlaps[row, column] >= LINK_OVERLAP:
                    tracks[row].faces[number] = faces[column]
                    taken.add(int(column))
        tracks += [Track({number: face}) for column, face in enumerate(faces) if column not in taken]
    return tracks


def _overlap(a: Face, b: Face) -> float:
    """Intersection over union of two boxes."""
    common = shared_area(a, b)
    return common / max(a.area + b.area - common, 1e-9)
