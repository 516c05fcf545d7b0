"""Find what words name in an image: boxes by Grounding DINO (Liu et al. 2023), their pixels by SAM 2 (Ravi et al. 2024)."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoProcessor, Sam2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from concat_id.errors import UserError
from concat_id.models.local_folders import LOCAL, check_folder, load_network, room_on, told
from concat_id.video.transforms import to_tensor
from concat_id.weights.loading import content_digest

BOX, WORDS = 0.4, 0.3  # scores from which a box, and a word for it, count: those of the model card
INSIDE = 0.5  # share of the smaller one from which two masks show the same thing
DETECTOR, SEGMENTER = "Grounding DINO, such as grounding-dino-base", "SAM 2, such as sam2.1-hiera-large"


class Segment(NamedTuple):
    """What was found: a score in [0, 1] and its pixels (H, W), bool."""

    score: float
    mask: np.ndarray


class Segmenter:
    """Grounding DINO and SAM 2 from folders in Hugging Face's layout, read at the first image. Raises `UserError` for other models."""

    def __init__(self, detector: Path, segmenter: Path, device: torch.device):
        self.detector, self.segmenter, self.device = detector, segmenter, device
        for folder, expected, option, kinds in (
            (detector, DETECTOR, "--detector", ("grounding-dino",)),
            (segmenter, SEGMENTER, "--segmenter", ("sam2", "sam2_video")),
        ):
            check_folder(folder, expected, option)
            with told(folder, expected):
                found = AutoConfig.from_pretrained(folder, **LOCAL).model_type
            if found not in kinds:
                raise UserError(f"{folder}: found a {found} model, expected {expected}; correct {option}")
        with told(detector, DETECTOR):
            images = GroundingDinoImageProcessorPil.from_pretrained(detector, **LOCAL)
            self._processor = GroundingDinoProcessor(images, AutoTokenizer.from_pretrained(detector, **LOCAL))

    @cached_property
    def digest(self) -> str:
        """Name the weights."""
        return f"{content_digest(self.detector)} {content_digest(self.segmenter)}"

    @cached_property
    def _detector(self) -> Any:
        return load_network(GroundingDinoForObjectDetection, self.detector, self.device, DETECTOR)

    @cached_property
    def _segmenter(self) -> Any:
        return load_network(Sam2Model, self.segmenter, self.device, SEGMENTER)

    def find(self, image: Image.Image, words: str) -> list[Segment]:
        """Find all that `words` name in an image, the surest first; of what lies in one another, the surest alone."""
        with room_on(self.device, self.detector):
            boxes, scores = self._boxes(image, words)
        with room_on(self.device, self.segmenter):
            masks = self._masks(image, boxes) if len(boxes) else ()
        segments = []
        for score, mask in sorted(zip(scores, masks, strict=True), key=lambda found: -found[0]):
            if mask.any() and not any(_overlap(mask, other.mask) > INSIDE for other in segments):
                segments.append(Segment(score, mask))
        return segments

    @torch.inference_mode()
    def _boxes(self, image: Image.Image, words: str) -> tuple[torch.Tensor, list[float]]:
        """Return boxes (N, 4) as left, top, right, bottom in pixels, and their scores."""
        inputs = self._processor(images=image, text=f"{words.lower().strip().rstrip('.')}.", return_tensors="pt").to(self.device)
        found = self._detector(**inputs | {"pixel_values": inputs["pixel_values"].to(self._detector.dtype)})
        found.logits, found.pred_boxes = found.logits.float(), found.pred_boxes.float()
        (found,) = self._processor.post_process_grounded_object_detection(
            found, inputs["input_ids"], BOX, WORDS, [(image.height, image.width)]
        )
        return found["boxes"].cpu(), found["scores"].tolist()

    @torch.inference_mode()
    def _masks(self, image: Image.Image, boxes: torch.Tensor) -> np.ndarray:
        """Return the pixels (N, H, W) of what each box holds. transformers' own preparation of images for SAM 2 needs torchvision."""
        side = self._segmenter.config.prompt_encoder_config.image_size
        pixels = to_tensor(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))[None] / 2 + 0.5
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        scaled = boxes * torch.tensor([side / image.width, side / image.height]).repeat(2)
        dtype = self._segmenter.dtype
        found = self._segmenter(((pixels - mean) / std).to(self.device, dtype), input_boxes=scaled[None].to(self.device, dtype),
                                multimask_output=False)  # fmt: skip
        masks = F.interpolate(found.pred_masks[0].float(), (image.height, image.width), mode="bilinear", align_corners=False)
        return (masks[:, 0] > 0).cpu().numpy()


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of the smaller of two masks that lies in the larger."""
    return float((one & other).sum() / max(min(one.sum(), other.sum()), 1))
