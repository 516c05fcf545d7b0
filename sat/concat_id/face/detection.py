"""Find faces with insightface and cut them out upright."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from concat_id.face.onnx_files import device_number, load_models, no_model

CROP_SIZE = 448
DETECTION_SIZE = 640
SCORE_THRESHOLD = 0.5
MAX_ASPECT_RATIO = 64  # beyond it no face is left of an image scaled to 640 pixels

# YuNet's key points miss half of a head's tilt: 20 degrees of 45. Where its graph is found, a face is therefore looked at again, set
# upright by what is known so far and larger; then the crop of one face, turned by -45..45, varies by 1 degree.
IMPRECISE_GRAPH = "yunet_as_scrfd"
MORE_LOOKS = 4
LOOK_CROP = 224  # pixels that the crop would fill of the window of 640
SETTLED = 1.0  # mean movement of the key points, in pixels of that window

# A photograph that lies on its side or head gives no face, or a doubtful one whose key points are those of an upright face all the same.
# Upright faces score 0.9 and more; the same faces on their side or head up to 0.85. Half-turned heads of 0.65 score at most 0.1 more so.
SURE = 0.88
MIN_GAIN, CLEAR_GAIN = 0.04, 0.15  # of a turned photograph's score over that of the one given: with a sure score, with any
SECOND_LOOK = 0.82  # score that counts where the photograph as it is shows no face
TURNS = {
    "on its left side": Image.Transpose.ROTATE_270,
    "on its head": Image.Transpose.ROTATE_180,
    "on its right side": Image.Transpose.ROTATE_90,
}
TILE, OVERLAP, MAX_TILES = 1280, 0.25, 6  # pixels of a tile's side, share of it that the next one sees as well, tiles of a side at most

# Where the eyes (image's left, right), the nose and the mouth's corners (left, right) belong in a crop of 112 pixels, as (x, y).
# Source: ArcFace, the same as insightface.utils.face_align.arcface_dst.
TEMPLATE_SIZE = 112
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


@dataclass
class Face:
    """A face in pixels of its image: box (x0, y0, x1, y1), five key points (5, 2) in the order of `TEMPLATE`, score in [0, 1]."""

    box: np.ndarray
    keypoints: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    @property
    def side(self) -> float:
        """Shorter side of the box in pixels."""
        return float((self.box[2:] - self.box[:2]).min())

    def shifted(self, left: float, top: float) -> "Face":
        """The same face in an image that continues this one by `left` and `top` pixels."""
        return Face(self.box + [left, top, left, top], self.keypoints + [left, top], self.score)


class UprightPhoto(NamedTuple):
    """A photograph set upright, its faces, most certain first, and a note if it had to be turned."""

    photo: Image.Image
    faces: list[Face]
    note: str | None = None

    @property
    def largest(self) -> Face | None:
        """The face that is taken for the person's."""
        return max(self.faces, key=lambda face: face.area, default=None)


class FaceDetector:
    """The detector of a folder of ONNX files, such as antelopev2 or the one that sat/convert_weights.py makes.

    Raises `UserError` if the folder holds no detector with key points.
    """

    def __init__(self, folder: str | Path, device: torch.device | str):
        self.folder = Path(folder)
        self.model, self.file = _load_detector(self.folder, torch.device(device))
        self.name = f"{self.folder.name}/{self.file.name}"
        self.looks_again = self.model.session.get_modelmeta().graph_name == IMPRECISE_GRAPH

    def detect(self, image: Image.Image) -> list[Face]:
        """Find the faces of an image, most certain first."""
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            return []
        bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
        boxes, keypoints = self.model.detect(bgr)
        return [Face(box[:4].astype(float), points.astype(float), float(box[4])) for box, points in zip(boxes, keypoints, strict=True)]

    def search(self, photo: Image.Image) -> UprightPhoto:
        """Find the faces of a photograph with a second look where there is none or a doubtful one: it may lie, or show a small face."""
        faces = self.detect(photo)
        own = _best_score(faces)
        if own >= SURE or faces and not self.looks_again:  # of other detectors no scores of turned photographs are known
            return UprightPhoto(photo, faces)
        small = photo.copy()
        small.thumbnail((2 * DETECTION_SIZE,) * 2)
        scores = {how: _best_score(self.detect(small.transpose(turn))) for how, turn in TURNS.items()}
        how, best = max(scores.items(), key=lambda item: item[1])
        is_better = best >= max(SURE, own + MIN_GAIN) or best >= own + CLEAR_GAIN
        if is_better if faces else best >= SECOND_LOOK:
            turned = photo.transpose(TURNS[how])
            return UprightPhoto(turned, self.detect(turned), f"the photo lies {how}; it is turned upright")
        return UprightPhoto(photo, faces or self._detect_in_tiles(photo))

    def _detect_in_tiles(self, photo: Image.Image) -> list[Face]:
        """Find small faces in overlapping parts of a large photograph, most certain first."""
        side = max(TILE, max(photo.size) // MAX_TILES)
        if max(photo.size) <= side:
            return []
        found = []
        columns, rows = (_starts(length, side) for length in photo.size)
        for left, top in product(columns, rows):
            tile = photo.crop((left, top, min(left + side, photo.width), min(top + side, photo.height)))
            found += [face.shifted(left, top) for face in self.detect(tile) if face.score >= SECOND_LOOK]
        kept: list[Face] = []
        for face in sorted(found, key=lambda face: -face.score):
            # One face of two tiles: more than half of the smaller box is in the other.
            if not any(shared_area(face, other) > min(face.area, other.area) / 2 for other in kept):
                kept.append(face)
        return kept

    def align(self, image: Image.Image, face: Face, size: int = CROP_SIZE) -> tuple[Image.Image, np.ndarray]:
        """Cut a face out, upright, as `aligned` does with its `keypoints`."""
        return aligned(image, self.keypoints(image, face), size)

    def keypoints(self, image: Image.Image, face: Face) -> np.ndarray:
        """The key points (5, 2) of a face, found anew where it stands upright if the detector is imprecise and finds it there."""
        keypoints = face.keypoints
        for _ in range(MORE_LOOKS if self.looks_again else 0):
            matrix = alignment(keypoints, LOOK_CROP)
            matrix[:, 2] += (DETECTION_SIZE - LOOK_CROP) / 2
            expected = moved(keypoints, matrix)
            candidates = [face.keypoints for face in self.detect(warp(image, matrix, DETECTION_SIZE))]
            distances = [float(np.abs(points - expected).mean()) for points in candidates]
            if not distances or min(distances) > LOOK_CROP / 4:
                break
            keypoints = moved(candidates[int(np.argmin(distances))], _inverse(matrix))
            if min(distances) < SETTLED:
                break
        return keypoints


def _best_score(faces: Sequence[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def _starts(length: int, side: int) -> list[int]:
    """Where tiles of `side` begin along `length`, the last one at its end."""
    count = 1 + max(0, math.ceil((length - side) / (side * (1 - OVERLAP))))
    return np.linspace(0, max(0, length - side), count).astype(int).tolist()


def shared_area(face: Face, other: Face) -> float:
    """Square pixels that the boxes of two faces have in common."""
    low, high = np.maximum(face.box[:2], other.box[:2]), np.minimum(face.box[2:], other.box[2:])
    return float(np.prod(np.maximum(high - low, 0)))


def aligned(image: Image.Image, keypoints: np.ndarray, size: int = CROP_SIZE) -> tuple[Image.Image, np.ndarray]:
    """Cut out the face with key points (5, 2), upright: `size` x `size` pixels, black beyond the image's edge, and the key points in it."""
    matrix = alignment(keypoints, size)
    return warp(image, matrix, size), moved(keypoints, matrix)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a matrix (2, 3) to points (N, 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]


def alignment(keypoints: np.ndarray, size: int) -> np.ndarray:
    """Compute the rotation, uniform scale and shift (2, 3) that bring key points (5, 2) closest to `TEMPLATE` in a crop of `size`.

    Least squares over complex numbers: with the means taken off, template = a * keypoints has the solution below.
    """
    source, target = (points[:, 0] + 1j * points[:, 1] for points in (keypoints, TEMPLATE * (size / TEMPLATE_SIZE)))
    centred = source - source.mean()
    a = np.vdot(centred, target) / max(np.vdot(centred, centred).real, 1e-12)
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def warp(image: Image.Image, matrix: np.ndarray, size: int) -> Image.Image:
    """Move an image by `matrix` (2, 3), pixel centres at whole numbers, into a square of `size`; bilinear, without aliasing."""
    image = image.convert("RGB")
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    factor = max(1, min(int(1 / max(scale, 1e-6)), *image.size))
    if factor > 1:  # a face at least twice as large as its crop: average whole blocks of pixels first
        image = image.reduce(factor)
    inverse = _inverse(matrix)
    # Pillow puts pixel centres at halves, and so do the blocks of `reduce`.
    inverse[:, 2] += 0.5 - inverse[:, :2].sum(axis=1) * 0.5
    return image.transform((size, size), Image.Transform.AFFINE, tuple((inverse / factor).ravel()), Image.Resampling.BILINEAR)


def _load_detector(folder: Path, device: torch.device) -> tuple[Any, Path]:
    """Load the smallest file that insightface takes for a detector.

    Smallest first, because every file must be loaded to know what it is, and antelopev2's recogniser has 260 MB.
    """
    unreadable: list[str] = []
    for model, file in load_models(folder, device, unreadable, smallest_first=True):
        if getattr(model, "taskname", None) == "detection" and model.use_kps:
            model.prepare(device_number(device), input_size=(DETECTION_SIZE,) * 2, det_thresh=SCORE_THRESHOLD)
            return model, file
    raise no_model(folder, unreadable, "a face detector with key points")
