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
from concat_id.models.local_folders import LOCAL, check_folder, check_words, load_network, room_on, told
from concat_id.video.transforms import to_tensor
from concat_id.weights.loading import folder_digest

BOX, WORDS = 0.4, 0.3  # scores from which a box, and a word for it, count: those of the model card
DETECTOR, SEGMENTER = "Grounding DINO, such as grounding-dino-base", "SAM 2, such as sam2.1-hiera-large"


class Segment(NamedTuple):
    """What was found: a score in [0, 1] and its pixels (H, W), bool."""

    score: float
    mask: np.ndarray


class Segmenter:
    """Grounding DINO and SAM 2 from folders in Hugging Face's layout, read by `load`. Raises `UserError` for other models."""

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

        check_words(self._processor.tokenizer, detector)

    @cached_property
    def digest(self) -> str:
        """Name the models."""
        return f"{folder_digest(self.detector)} {folder_digest(self.segmenter)}"

    @cached_property
    def _detector(self) -> Any:
        return load_network(GroundingDinoForObjectDetection, self.detector, self.device, DETECTOR, torch.float32)

    @cached_property
    def _segmenter(self) -> Any:
        return load_network(Sam2Model, self.segmenter, self.device, SEGMENTER, torch.float32)

    def load(self) -> None:
        """Read the weights, in float32: bfloat16 would move boxes by pixels. Raises `UserError`."""
        _ = self._detector, self._segmenter

    def find(self, image: Image.Image, words: str) -> list[Segment]:
        """Find all that `words` name in an image, the surest first."""
        with room_on(self.device, self.detector):
            boxes, scores = self._boxes(image, words)
        with room_on(self.device, self.segmenter):
            masks = self._masks(image, boxes) if len(boxes) else ()
        found = sorted(zip(scores, masks, strict=True), key=lambda found: -found[0])
        return [Segment(score, mask) for score, mask in found if mask.any()]

    @torch.inference_mode()
    def _boxes(self, image: Image.Image, words: str) -> tuple[torch.Tensor, list[float]]:
        """Return boxes (N, 4) as left, top, right, bottom in pixels, and their scores."""
        inputs = self._processor(images=image, text=f"{words.lower().strip().rstrip('.')}.", return_tensors="pt").to(self.device)
        sizes = [(image.height, image.width)]
        (found,) = self._processor.post_process_grounded_object_detection(self._detector(**inputs), inputs["input_ids"], BOX, WORDS, sizes)
        return found["boxes"].cpu(), found["scores"].tolist()

    @torch.inference_mode()
    def _masks(self, image: Image.Image, boxes: torch.Tensor) -> np.ndarray:
        """Return the pixels (N, H, W) of what each box holds. transformers' own preparation of images for SAM 2 needs torchvision."""
        side = self._segmenter.config.prompt_encoder_config.image_size
        pixels = to_tensor(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))[None] / 2 + 0.5
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        scaled = boxes * torch.tensor([side / image.width, side / image.height]).repeat(2)
        images, prompts = ((pixels - mean) / std).to(self.device), scaled[None].to(self.device)
        found = self._segmenter(images, input_boxes=prompts, multimask_output=False)
        masks = F.interpolate(found.pred_masks[0], (image.height, image.width), mode="bilinear", align_corners=False)
        return (masks[:, 0] > 0).cpu().numpy()
