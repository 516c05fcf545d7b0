"""How much the people of a video resemble their references, and how much of that is copied."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from concat_id.evaluation.face_tracks import EQUAL, FoundFace, Reference, Track, similarity
from concat_id.evaluation.intervals import mean_interval
from concat_id.face.detection import TEMPLATE_SIZE, alignment, moved

# The copy-paste index: distances at which the half is left of a part. Chosen on real clips and photographs, which then have a mean of
# 0.06 (a clip and another photo of the person), 0.25 to 0.81 (clips and their own first frame), 0.00 to 0.32 (other people), and 0.83 to
# 1.00 (a photo and itself shifted, turned by 5 degrees, brighter, compressed or a third as large).
HALF_GEOMETRY = 0.05  # mean distance of the key points, in distances of the eyes
HALF_APPEARANCE = 0.2  # 1 - correlation of the low frequencies
LOW_SIZE = 14  # pixels of the crop's low-frequency version
FACE_ROWS, FACE_COLUMNS = slice(3, 13), slice(3, 11)  # of these, what every face covers


def identity_scores(references: Sequence[Reference], people: Sequence[Track], num_frames: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scores of a video, and for each reference the similarity per frame (None: no face).

    `similarity`: mean over all references and sampled frames of the cosine, not below 0, of the reference and the face of the track that
    was assigned to it; no face counts 0. `detection_rate`: share of these with a face.
    """
    shape = len(references), num_frames
    curves, copies = np.full(shape, np.nan), np.full(shape, np.nan)  # not a number: no face
    for row, (reference, track) in enumerate(zip(references, people, strict=True)):
        for number, face in track.faces.items():
            curves[row, number] = similarity(reference.found.vector, face.vector)
            copies[row, number] = copy_paste_index(reference.found, face)
    shown = ~np.isnan(curves)
    values = np.nan_to_num(curves)
    scores = {
        "similarity": float(values.mean()),
        "detection_rate": float(shown.mean()),
        "copy_paste": float(copies[shown].mean()) if shown.any() else None,
        "similarity_beyond_copying": float((values * (1 - np.nan_to_num(copies))).mean()),
    }
    details = {
        "curves": np.where(shown, curves, None).tolist(),
        "copies": np.where(shown, copies, None).tolist(),
        "interval": mean_interval(values.mean(axis=0)),
        "per_reference": [float(row.mean()) for row in values],
        "vectors": [mean_vector(track) for track in people],
    }
    return scores, details


def mean_vector(track: Track) -> list[float] | None:
    """Mean of the vectors of a person's faces; None if there are none."""
    vectors = [face.vector for face in track.faces.values()]
    return [round(float(value), 6) for value in np.mean(vectors, axis=0)] if vectors else None


def is_rank1(vector: Sequence[float] | None, own: str, candidates: Mapping[str, np.ndarray]) -> bool:
    """Whether none of all `candidates`, references by digest, is nearer to a person's mean vector than its `own`; False without a face."""
    if vector is None:
        return False
    vector = np.asarray(vector)  # else each product would convert the list
    cosines = {digest: float(np.dot(vector, candidate)) for digest, candidate in candidates.items()}
    return cosines[own] >= max(cosines.values()) - EQUAL


def published_similarity(reference: Reference, found: Sequence[Sequence[FoundFace]]) -> float:
    """Compute the score of the published benchmarks, which have one person a video: each frame's largest face, others dropped.

    Source: get_facesim_fid.py of ConsisID, which takes 0 for a video without any face.
    """
    values = [similarity(reference.found.vector, faces[0].vector) for faces in found if faces]
    return float(np.mean(values)) if values else 0.0


def copy_paste_index(reference: FoundFace, face: FoundFace) -> float:
    """Say how much a face repeats the reference's own pose, expression and light: 0 not at all, 1 it is the same image.

    The index is sqrt(g * a) with g = 2^-(d/0.05)^2 and a = 2^-((1-r)/0.2)^2: d is the mean distance of the five key points, both
    faces aligned upright at the same size, in distances of the eyes (pose and expression); r is the correlation of the aligned crops,
    averaged down to 14x14 pixels, over the face's middle and the three colours, each colour's mean taken off (light and expression).
    """
    geometry = key_point_distance(reference.face.keypoints, face.face.keypoints)
    appearance = 1 - low_frequency_correlation(reference.crop, face.crop)
    return float(2 ** (-((geometry / HALF_GEOMETRY) ** 2 + (appearance / HALF_APPEARANCE) ** 2) / 2))


def key_point_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of two sets of key points (5, 2) after upright alignment, in distances of the eyes."""
    upright = [moved(points, alignment(points, TEMPLATE_SIZE)) for points in (a, b)]
    eyes = np.mean([np.linalg.norm(points[1] - points[0]) for points in upright])
    return float(np.linalg.norm(upright[0] - upright[1], axis=1).mean() / max(eyes, 1e-6))


def low_frequency_correlation(a: Image.Image, b: Image.Image) -> float:
    """Correlation in [-1, 1] of two aligned crops at 14x14 pixels, over the face's middle."""
    values = []
    for crop in (a, b):
        pixels = np.asarray(crop.convert("RGB").resize((LOW_SIZE, LOW_SIZE), Image.Resampling.BOX), np.float64)[FACE_ROWS, FACE_COLUMNS]
        centred = (pixels - pixels.mean(axis=(0, 1))).ravel()
        values.append(centred / max(np.linalg.norm(centred), 1e-6))
    return float(values[0] @ values[1])
