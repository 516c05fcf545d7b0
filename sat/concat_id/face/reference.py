"""From a photo to what the model sees: largest face, aligned, without its surroundings, fitted into the video's size."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from concat_id.config.cogvideox import FaceConfig
from concat_id.errors import UserError
from concat_id.face.detection import TEMPLATE_SIZE, FaceDetector, UprightPhoto, aligned
from concat_id.face.onnx_files import COMMAND
from concat_id.face.parsing import CLASSES, EllipseParser, SegformerParser
from concat_id.face.verdict import GOOD, NO_FACE, USABLE, PhotoVerdict, Reason, judge
from concat_id.files.paths import resolve_path
from concat_id.video.transforms import fit_and_pad, load_image

REMOVED_CLASSES = tuple(CLASSES.index(name) for name in ("background", "hat", "earring", "necklace", "cloth"))
MIN_REMAINING = 0.4  # of the crop; where masking would leave less, the crop stays whole


class FaceParser(Protocol):
    """What labels the pixels of a crop: `SegformerParser` or `EllipseParser`."""

    name: str

    def parse(self, crop: Image.Image, keypoints: np.ndarray) -> np.ndarray:
        """Label each pixel of a crop (H, W), given the key points (5, 2) in it."""


@dataclass
class PreparedReference:
    """A reference as the model sees it, the unmasked crop it was made from, what the photo is worth, and its face as recognisers see it."""

    image: Image.Image
    crop: Image.Image
    detector: str
    parser: str
    verdict: PhotoVerdict
    face: Image.Image | None = None


def prepare_reference(path: str | Path, size: Sequence[int], detector: FaceDetector, parser: FaceParser) -> PreparedReference:
    """Prepare the photograph of one person for videos of `size` (height, width).

    Without a face the whole image is used. Raises `UserError` if the photograph cannot be read.
    """
    return prepare_found(detector.search(load_image(path)), size, detector, parser)


def prepare_found(found: UprightPhoto, size: Sequence[int], detector: FaceDetector, parser: FaceParser) -> PreparedReference:
    """Prepare a photograph whose faces have been looked for."""
    height, width = size
    image, faces, turned = found
    if (face := found.largest) is None:
        return PreparedReference(fit_and_pad(image, (height, width)), image, detector.name, parser.name, PhotoVerdict((NO_FACE,)))
    crop, keypoints = aligned(image, points := detector.keypoints(image, face))
    labels = parser.parse(crop, keypoints)
    masked, remaining = mask_surroundings(crop, labels)
    remarks = [Reason("lying", GOOD, turned)] if turned else []
    verdict = judge(image, faces, face, crop, keypoints, labels).joined(*remarks, *background_kept(remaining))
    seen, _ = aligned(image, points, TEMPLATE_SIZE)
    return PreparedReference(fit_and_pad(masked, (height, width)), crop, detector.name, parser.name, verdict, seen)


def mask_surroundings(crop: Image.Image, labels: np.ndarray) -> tuple[Image.Image, float]:
    """Black out what `kept_pixels` leaves out of a crop; return the image and the share that masking leaves, or would leave."""
    kept, remaining = kept_pixels(labels)
    return Image.fromarray(np.asarray(crop) * kept[..., None].astype(np.uint8)), remaining


def kept_pixels(labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Tell the pixels (H, W) of a crop that the model is to see, given their classes: the person's head, or all if too little remains.

    Also return the share of the crop that the head has.
    """
    kept = ~np.isin(labels, REMOVED_CLASSES)
    remaining = float(kept.mean())
    return kept if remaining >= MIN_REMAINING else np.ones_like(kept), remaining


def background_kept(remaining: float) -> list[Reason]:
    """The reason that a share of the crop too small for masking gives, if it is."""
    told = f"face and hair would be only {remaining:.0%} of the crop, its background is kept"
    return [Reason("background", USABLE, told, "take a photo with nothing before the head")] if remaining < MIN_REMAINING else []


class FaceFolders(NamedTuple):
    """Folders of the detector and of the parser (None: the oval), and one line for each that is not the configured one."""

    detector: Path
    parser: Path | None
    notices: list[str]


def require_parser(config: FaceConfig) -> None:
    """Raise `UserError` where an oval would stand in for the parser, as it tells no parts of a face apart."""
    if choose_folders(config).parser is None:
        raise UserError(f"{config.parser}: not there, expected a Segformer that tells eyes, ears, nose and mouth apart; "
                        "download jonathandinu/face-parsing, or name its folder")  # fmt: skip


class FaceModels(NamedTuple):
    """Detector, parser, and one line for each that stands in for the configured one."""

    detector: FaceDetector
    parser: FaceParser
    notices: list[str]


def choose_folders(config: FaceConfig) -> FaceFolders:
    """Choose the configured folders, or what stands in where they are absent."""
    notices = []
    detector, parser = resolve_path(config.detector), resolve_path(config.parser)
    if not os.path.exists(detector):
        absent, detector = detector, resolve_path(config.fallback_detector)
        if not os.path.exists(detector):
            raise UserError(f"{absent}: no face detector here nor in {detector}; run `{COMMAND}`, or download the released models")
        notices.append(f"{config.detector}: not there; faces are found with the detector in {config.fallback_detector}")
    if not os.path.exists(parser):
        parser = None
        notices.append(f"{config.parser}: not there; faces are cut out with an oval, which keeps some background")
    return FaceFolders(detector, parser, notices)


def load_face_models(config: FaceConfig, device: torch.device | str) -> FaceModels:
    """Load the configured models, or what stands in where their folders are absent; incomplete folders are errors."""
    folders = choose_folders(config)
    parser = EllipseParser() if folders.parser is None else SegformerParser(folders.parser, device)
    return FaceModels(FaceDetector(folders.detector, device), parser, folders.notices)
