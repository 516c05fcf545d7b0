"""Tell the parts of an aligned face from one another, in the 19 classes of CelebAMask."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from concat_id.errors import UserError
from concat_id.video.face_parts import CLASSES
from concat_id.weights.model_folders import built_from, load_pretrained, network_of, read_settings

BACKGROUND, SKIN, HAIR = (CLASSES.index(name) for name in ("background", "skin", "hair"))


class SegformerParser:
    """A Segformer that was trained on CelebAMask, from a folder in Hugging Face's layout.

    Raises `UserError` if the folder is incomplete or holds another kind of model.
    """

    def __init__(self, folder: str | Path, device: torch.device | str):
        from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil  # takes seconds
        from transformers.utils.logging import disable_progress_bar

        self.folder = Path(folder)
        self.name = f"Segformer ({self.folder.name})"
        self.device = torch.device(device)
        file = self.folder / "config.json"
        settings, weights = read_settings(file, "settings of a Segformer"), load_pretrained(self.folder)
        read_settings(self.folder / "preprocessor_config.json", "settings of a Segformer's images")
        disable_progress_bar()
        self.model = network_of(SegformerForSemanticSegmentation, settings, weights, file, "Segformer").to(self.device)
        with built_from(self.folder / "preprocessor_config.json", "images for a Segformer", weights):
            self.processor = SegformerImageProcessorPil.from_pretrained(self.folder, local_files_only=True)
        if self.model.config.num_labels != len(CLASSES):
            raise UserError(f"{self.folder}: found {self.model.config.num_labels} classes, expected CelebAMask's {len(CLASSES)}")

    def parse(self, crop: Image.Image, keypoints: np.ndarray) -> np.ndarray:
        """Label each pixel of a crop with its class (H, W); the key points are not needed."""
        pixels = self.processor(crop, return_tensors="pt")["pixel_values"].to(self.device)
        with torch.inference_mode():
            logits = self.model(pixels).logits
        logits = F.interpolate(logits, (crop.height, crop.width), mode="bilinear", align_corners=False)
        return logits.argmax(dim=1)[0].cpu().numpy()


class EllipseParser:
    """What stands in where no parser's weights are at hand: an oval around the head, drawn from the five key points.

    Inside is skin below the brows and hair above them; the rest is background. The oval follows the head's size, tilt and turn.
    It keeps hats, earrings and the background that lies within it, and cuts long or wide hair.
    """

    name = "ellipse"

    # In units of the distance from the eyes to the mouth. A head is about as high above the eyes as the chin is below them, and a
    # little less wide than high. When it turns, its silhouette comes closer to the eyes on the side that the nose points to.
    HALF_HEIGHT = 1.55
    HALF_WIDTH = 1.08
    ROUNDNESS = 2.6  # exponent of a superellipse: 2 is an ellipse, larger ones keep more of the jaw and of the hair at the temples
    TAPER = 0.12  # the jaw is narrower than the temples
    BROW = -0.28
    EYE_DISTANCE = 0.864  # of a face seen from the front, as in the alignment's template
    NARROWER_BY_TURN = 1.6
    WIDER_BY_TURN = 0.6
    MAX_TURN = 0.35

    def parse(self, crop: Image.Image, keypoints: np.ndarray) -> np.ndarray:
        """Label each pixel of a crop with background, skin or hair (H, W), given the key points (5, 2) in it."""
        left_eye, right_eye, nose = keypoints[:3]
        eyes, down, across, length = face_axes(keypoints)
        # A head that nods is shortened, one that turns is narrowed; the larger of the two measures is nearer to the truth.
        unit = max(length, float(np.hypot(*(right_eye - left_eye))) / self.EYE_DISTANCE, 1.0)
        turn = float(np.clip((nose - eyes) @ across / unit, -self.MAX_TURN, self.MAX_TURN))
        y, x = np.mgrid[: crop.height, : crop.width]
        offsets = np.stack([x - eyes[0], y - eyes[1]], axis=-1) / unit
        vertical, horizontal = offsets @ down, offsets @ across
        looks_there = horizontal * turn > 0
        half_width = self.HALF_WIDTH + abs(turn) * np.where(looks_there, -self.NARROWER_BY_TURN, self.WIDER_BY_TURN)
        half_width = half_width * (1 - self.TAPER * vertical.clip(min=0))
        inside = abs(horizontal / half_width) ** self.ROUNDNESS + abs(vertical / self.HALF_HEIGHT) ** self.ROUNDNESS <= 1
        return np.where(inside, np.where(vertical < self.BROW, HAIR, SKIN), BACKGROUND)


def face_axes(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return the point between the eyes, unit vectors down the face and across it (2,), and the distance from the eyes to the mouth."""
    eyes, mouth = keypoints[:2].mean(axis=0), keypoints[3:].mean(axis=0)
    length = float(np.hypot(*(mouth - eyes)))
    down = (mouth - eyes) / length if length else np.array([0.0, 1.0])
    return eyes, down, np.array([down[1], -down[0]]), length
