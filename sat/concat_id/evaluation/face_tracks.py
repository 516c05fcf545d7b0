"""Faces of references, and the tracks of a video that show the same people."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment

from concat_id.errors import UserError
from concat_id.evaluation.fine_grained import PartEncoder, Parts
from concat_id.face.detection import FaceDetector
from concat_id.face.recognition import FaceRecognizer
from concat_id.face.tracking import FoundFace, Track, embed_faces, similarity
from concat_id.video.transforms import load_image

PADDING = 0.25  # of the image, around it
GREY = (128, 128, 128)
EQUAL = 1e-6  # between cosines; references are equal where the same photo is given twice, or saved again


class FacelessError(UserError):
    """A reference that shows no face."""


@dataclass(frozen=True)
class Reference:
    """The largest face of a reference image, remarks on it, and vectors of the face's parts if they are asked for."""

    path: Path
    found: FoundFace
    notes: tuple[str, ...] = ()
    parts: Parts = field(default_factory=dict)


def read_reference(path: Path, detector: FaceDetector, recognizer: FaceRecognizer, encoder: PartEncoder | None = None) -> Reference:
    """Find the largest face of an image. Raises `UserError` if the image is missing, `FacelessError` if a face in it is."""
    image, faces, turned = detector.search(load_image(path))
    notes = [turned] if turned else []
    if not faces:
        image = padded(image)
        faces = detector.detect(image)
    if not faces:
        raise FacelessError(f"{path}: found no face in the reference; use a photo with one clear, large face")
    if len(faces) > 1:
        notes.append(f"found {len(faces)} faces; the largest is the reference")
    face = max(faces, key=lambda face: face.area)
    parts = encoder.encode(image, face) if encoder else {}
    return Reference(path, embed_faces([(image, face)], recognizer)[0], tuple(notes), parts)


def padded(image: Image.Image) -> Image.Image:
    """Put an image into a grey frame, as the published benchmarks do where they find no face: faces that fill an image are missed."""
    return ImageOps.expand(image, tuple(round(side * PADDING) for side in image.size), GREY)


def assign(references: Sequence[Reference], tracks: Sequence[Track], threshold: float) -> tuple[list[Track], list[Track]]:
    """Give each reference the track that shows it, an empty one if none is left: one to one, the largest total similarity.

    A track that is left over joins the reference it resembles (by `threshold`) if that has no face in the same frames: somebody who
    turned away and came back. Also return the tracks that are left then, the most prominent first.
    """
    people, others = [Track() for _ in references], []
    if not tracks:
        return people, others
    totals = np.array([[sum(_similarities(reference, track)) for track in tracks] for reference in references])
    rows, columns = linear_sum_assignment(totals, maximize=True)
    for row, column in zip(rows, columns, strict=True):
        people[row] = Track(dict(tracks[column].faces))
    left = [track for column, track in enumerate(tracks) if column not in set(columns.tolist())]
    for track in sorted(left, key=lambda track: track.prominence, reverse=True):
        scores = [float(np.mean(_similarities(reference, track))) for reference in references]
        best = int(np.argmax(scores))
        if scores[best] >= threshold and not people[best].faces.keys() & track.faces.keys():
            people[best].faces |= track.faces
        else:
            others.append(track)
    return people, others


def _similarities(reference: Reference, track: Track) -> list[float]:
    return [similarity(reference.found.vector, face.vector) for face in track.faces.values()]
