"""Faces of references and of frames, with the vectors that tell whom they show, and the tracks that they form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment

from concat_id.errors import UserError
from concat_id.face.detection import Face, FaceDetector
from concat_id.face.recognition import FaceRecognizer
from concat_id.transforms import load_image

PADDING = 0.25  # of the image, around one in which no face is found: faces that fill it are missed
GREY = (128, 128, 128)
LINK_OVERLAP = 0.3  # intersection over union of two boxes that are one person's without a look at the face
OVERLAP_WEIGHT = 0.5  # half of the similarity's, so that two people who change places stay themselves


@dataclass(frozen=True)
class FoundFace:
    """A face with its crop of 112x112 and its vector (D,) of length 1."""

    face: Face
    crop: Image.Image
    vector: np.ndarray


@dataclass(frozen=True)
class Reference:
    """The largest face of a reference image, and remarks on it."""

    path: Path
    found: FoundFace
    notes: tuple[str, ...] = ()


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
        """Mean horizontal position in pixels."""
        return float(np.mean([centre(found) for found in self.faces.values()]))


def centre(found: FoundFace) -> float:
    """Return the horizontal position of a face in pixels."""
    return float(found.face.box[0] + found.face.box[2]) / 2


def read_reference(path: Path, detector: FaceDetector, recognizer: FaceRecognizer) -> Reference:
    """Find the largest face of an image. Raises `UserError` if the image or a face in it is missing."""
    image, faces, turned = detector.search(load_image(path))
    notes = [turned] if turned else []
    if not faces:
        border = tuple(round(side * PADDING) for side in image.size)
        image = ImageOps.expand(image, border, GREY)
        faces = detector.detect(image)
    if not faces:
        raise UserError(f"{path}: found no face in the reference; use a photo with one clear, large face")
    if len(faces) > 1:
        notes.append(f"found {len(faces)} faces; the largest is the reference")
    return Reference(path, embed_faces([(image, max(faces, key=lambda face: face.area))], recognizer)[0], tuple(notes))


def find_faces(frames: np.ndarray, detector: FaceDetector, recognizer: FaceRecognizer) -> list[list[FoundFace]]:
    """Find every face of every frame (F, H, W, 3), largest first; the vectors are computed in one go."""
    images = [Image.fromarray(frame) for frame in frames]
    faces = [sorted(detector.detect(image), key=lambda face: -face.area) for image in images]
    found = iter(embed_faces([(image, face) for image, many in zip(images, faces, strict=True) for face in many], recognizer))
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
            overlaps = np.array([[_overlap(old, new) if frame == number - 1 else 0.0 for new in faces] for frame, old in last])
            cosines = np.array([[similarity(old.vector, new.vector) for new in faces] for _, old in last])
            for row, column in zip(*linear_sum_assignment(cosines + OVERLAP_WEIGHT * overlaps, maximize=True), strict=True):
                if cosines[row, column] >= threshold or overlaps[row, column] >= LINK_OVERLAP:
                    tracks[row].faces[number] = faces[column]
                    taken.add(int(column))
        tracks += [Track({number: face}) for column, face in enumerate(faces) if column not in taken]
    return tracks


def assign(references: Sequence[Reference], tracks: Sequence[Track], num_frames: int, threshold: float) -> list[Track]:
    """Give each reference the track that shows it, an empty one if none is left: one to one, the largest total similarity.

    A track that is left over joins the reference it resembles (by `threshold`) if that has no face in the same frames: somebody who
    turned away and came back.
    """
    people = [Track() for _ in references]
    if not tracks:
        return people
    totals = np.array([[sum(_similarities(reference, track)) for track in tracks] for reference in references]) / num_frames
    rows, columns = linear_sum_assignment(totals, maximize=True)
    for row, column in zip(rows, columns, strict=True):
        people[row] = Track(dict(tracks[column].faces))
    left = [track for column, track in enumerate(tracks) if column not in set(columns.tolist())]
    for track in sorted(left, key=lambda track: track.prominence, reverse=True):
        scores = [float(np.mean(_similarities(reference, track))) for reference in references]
        best = int(np.argmax(scores))
        if scores[best] >= threshold and not people[best].faces.keys() & track.faces.keys():
            people[best].faces |= track.faces
    return people


def _similarities(reference: Reference, track: Track) -> list[float]:
    return [similarity(reference.found.vector, face.vector) for face in track.faces.values()]


def _overlap(a: FoundFace, b: FoundFace) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(a.face.box[:2], b.face.box[:2]), np.minimum(a.face.box[2:], b.face.box[2:])
    common = float(np.prod(np.maximum(high - low, 0)))
    return common / max(a.face.area + b.face.area - common, 1e-9)
