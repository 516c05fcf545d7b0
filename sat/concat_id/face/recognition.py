"""Tell people apart: faces to vectors of length 1, whose product is the similarity."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from concat_id.config.neighbours import BUFFALO, IDENTITY_SIZE
from concat_id.errors import UserError, one_line
from concat_id.face.detection import TEMPLATE_SIZE, Face, aligned
from concat_id.face.onnx_files import COMMAND, device_number, load_models, no_model
from concat_id.files.paths import resolve_path

PREFERRED, FALLBACK = "models/antelopev2", "models/face_recognizer"
BATCH_SIZE = 16

# What well-known weights are called in reports, by the file's name; others are called like their file.
NAMES = {
    "sface": "SFace",
    "glintr100": "ArcFace (glintr100)",
    "w600k_r50": "ArcFace (w600k_r50)",
    "w600k_mbf": "ArcFace (w600k_mbf)",
    "curricularface": "CurricularFace",
}
THRESHOLDS = {"SFace": 0.363}  # from which two faces are one person's. Source: OpenCV Zoo, which found it on LFW
DEFAULT_THRESHOLD = 0.3  # for antelopev2 and recognisers that tell none


class FaceRecognizer:
    """A recogniser of insightface's kind, an ONNX file that maps aligned faces of 112x112 to vectors.

    `name` is the weights' own and belongs beside every number computed with them: scores of different weights cannot be compared.
    `threshold` is the similarity from which two faces are one person's, if it is known: the file's metadata or its maker tells.
    """

    def __init__(self, model: Any, file: Path):
        self.model, self.file = model, file
        self.name = NAMES.get(file.stem.lower(), file.stem)
        self.batch_size = BATCH_SIZE if not isinstance(model.input_shape[0], int) else max(1, model.input_shape[0])
        self.threshold = _own_threshold(model, file) or THRESHOLDS.get(self.name)

    @classmethod
    def from_folder(cls, folder: str | Path, device: torch.device | str) -> "FaceRecognizer":
        """Load the recogniser of a folder of ONNX files, such as antelopev2. Raises `UserError` if it holds none, or several."""
        folder = Path(folder)
        found, unreadable = _find_recognisers(folder, torch.device(device))
        if len(found) > 1:
            names = ", ".join(file.name for _, file in found)
            raise UserError(f"{folder}: found {len(found)} face recognisers ({names}), expected one; put each into a folder of its own")
        if not found:
            raise no_model(folder, unreadable, "one face recogniser")
        return cls(*found[0])

    def embed(self, image: Image.Image, face: Face) -> np.ndarray:
        """Compute the vector (D,), float32, of length 1, of one face of an image."""
        return self.embed_crops([self.align(image, face)])[0]

    def align(self, image: Image.Image, face: Face) -> Image.Image:
        """Cut a face out of an image as the recogniser wants it: upright by the five key points, 112x112."""
        return aligned(image, face.keypoints, TEMPLATE_SIZE)[0]

    def embed_crops(self, crops: Sequence[Image.Image]) -> np.ndarray:
        """Compute the vectors (B, D), float32, of length 1, of faces that `align` cut out. Raises `UserError` for no numbers."""
        bgr = [np.ascontiguousarray(np.asarray(crop.convert("RGB"))[:, :, ::-1]) for crop in crops]
        vectors = [self.model.get_feat(bgr[start : start + self.batch_size]) for start in range(0, len(bgr), self.batch_size)]
        if not vectors:
            return np.zeros((0, self.model.output_shape[1]), np.float32)
        stacked = np.concatenate(vectors).astype(np.float32)
        stacked = stacked.reshape(len(stacked), -1)  # of (B, D, 1, 1)
        if not np.isfinite(stacked).all():
            raise UserError(f"{self.file}: found vectors that are no finite numbers, expected a recogniser's; make or download it again")
        return stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)


def load_arcface(folder: str, device: torch.device | str, otherwise: str = "") -> FaceRecognizer:
    """Load the recogniser whose vectors ConsistentID takes. Raises `UserError` for another; `otherwise` says what to do without."""
    remedy = f"put insightface's buffalo_l into {BUFFALO}{otherwise}"
    if not os.path.isdir(resolve_path(folder)):
        raise UserError(f"{folder}: no such folder, expected ArcFace; {remedy}")
    recognizer = FaceRecognizer.from_folder(resolve_path(folder), device)
    width = recognizer.embed_crops([Image.new("RGB", (TEMPLATE_SIZE, TEMPLATE_SIZE))]).shape[1]
    if width != IDENTITY_SIZE:
        raise UserError(f"{folder}: {recognizer.name} makes vectors of {width} numbers, expected ArcFace's {IDENTITY_SIZE}; {remedy}")
    return recognizer


def load_recognizer(folder: str | None = None, device: torch.device | str = "cpu") -> FaceRecognizer:
    """Load the recogniser of `folder`, or else antelopev2's where it is, or else SFace, which set-up makes.

    Raises `UserError` that names the command which makes SFace.
    """
    if folder is not None:
        return FaceRecognizer.from_folder(resolve_path(folder), device)
    preferred, fallback = resolve_path(PREFERRED), resolve_path(FALLBACK)
    if os.path.isdir(preferred):
        found, _ = _find_recognisers(preferred, torch.device(device))
        if found:
            return FaceRecognizer(*found[0])
    if not os.path.isdir(fallback):
        raise UserError(f"{FALLBACK}: no face recogniser here nor in {PREFERRED}; run `{COMMAND}`, which makes it without a download")
    return FaceRecognizer.from_folder(fallback, device)


class SamePerson(NamedTuple):
    """The similarity from which two faces are one person's, and where it comes from."""

    threshold: float
    origin: str

    def __str__(self) -> str:
        return f"two faces are one person's from a cosine of {self.threshold:g} ({self.origin})"


def same_person(recognizer: str, own: float | None, option: float | None = None) -> SamePerson:
    """Choose the threshold: the user's `option`, else the recogniser's `own`, which its file or maker tells, else the default."""
    if option is not None:
        return SamePerson(option, "as asked for")
    if (own := THRESHOLDS.get(recognizer) if own is None else own) is not None:
        return SamePerson(own, f"{recognizer}'s own")
    return SamePerson(DEFAULT_THRESHOLD, f"the default, as {recognizer} tells none")


def _own_threshold(model: Any, file: Path) -> float | None:
    """The threshold in the file's metadata, as its maker wrote it. Raises `UserError` for what is no similarity."""
    told = model.session.get_modelmeta().custom_metadata_map.get("threshold")
    if told is None:
        return None
    try:
        threshold = float(told)
    except ValueError:
        threshold = math.nan
    if not -1 < threshold <= 1:
        raise UserError(f"{file}: threshold: found {one_line(told)[:40]!r}, expected a similarity above -1 and at most 1; train it again")
    return threshold


def _find_recognisers(folder: Path, device: torch.device) -> tuple[list[tuple[Any, Path]], list[str]]:
    """Load every file that insightface takes for a recogniser, and tell those that cannot be read."""
    unreadable: list[str] = []
    found = [(model, file) for model, file in load_models(folder, device, unreadable) if getattr(model, "taskname", None) == "recognition"]
    for model, _ in found:
        model.prepare(device_number(device))
    return found, unreadable
