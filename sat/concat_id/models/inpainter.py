"""Fill a part of an image with what a prompt says, by Stable Diffusion XL's inpainting (Podell et al. 2023) in diffusers."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from diffusers.utils import logging
from PIL import Image

from concat_id.errors import UserError
from concat_id.files.json_files import read_json
from concat_id.models.local_folders import LOCAL, check_folder, check_words, room_on, silent, told, usual_dtype
from concat_id.weights.loading import folder_digest

EXPECTED = "Stable Diffusion XL's inpainting, such as stable-diffusion-xl-1.0-inpainting-0.1"
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
SETTINGS = {"num_inference_steps": 20, "guidance_scale": 8.0, "strength": 0.99}  # those of the model card
MULTIPLE = 64  # of which height and width are


class Inpainter:
    """The pipeline from a folder in diffusers' layout, read by `load`. Raises `UserError` for another model."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        index = read_json(folder / "model_index.json", f"settings of {EXPECTED}", "correct --inpainter")
        found = index.get("_class_name") if isinstance(index, dict) else None
        if found not in ("StableDiffusionXLInpaintPipeline", "StableDiffusionXLPipeline"):
            raise UserError(f"{folder}: found {found}, expected {EXPECTED}; correct --inpainter")
        for name in NETWORKS:
            check_folder(folder / name, EXPECTED, "--inpainter")

    @cached_property
    def digest(self) -> str:
        """Name the models."""
        return " ".join(folder_digest(self.folder / name) for name in NETWORKS)

    @cached_property
    def _pipeline(self) -> Any:
        logging.disable_progress_bar()
        with room_on(self.device, self.folder), told(self.folder, EXPECTED):
            pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(
                self.folder, dtype=usual_dtype(self.device), use_safetensors=True, add_watermarker=False, **LOCAL
            )
            for name in NETWORKS:
                if missing := [key for key, tensor in getattr(pipeline, name).state_dict().items() if tensor.is_meta]:
                    raise UserError(f"{self.folder / name}: found no {missing[0]} in the weights; download the folder again")
            for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
                check_words(tokenizer, self.folder)
            pipeline.to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def load(self) -> None:
        """Read the weights. Raises `UserError`."""
        _ = self._pipeline

    def fill(self, image: Image.Image, mask: np.ndarray, prompt: str, seed: int) -> Image.Image:
        """Fill the pixels `mask` (H, W) of an image, at the size that the model was made for; the others stay as they are."""
        side = self._pipeline.unet.config.sample_size * self._pipeline.vae_scale_factor
        scale = side / (image.width * image.height) ** 0.5
        width, height = (max(round(length * scale / MULTIPLE), 1) * MULTIPLE for length in image.size)
        white = Image.fromarray(mask.astype(np.uint8) * 255)
        with room_on(self.device, self.folder), silent():
            filled = self._pipeline(prompt=prompt, image=image.resize((width, height), Image.Resampling.LANCZOS),
                                    mask_image=white.resize((width, height)), height=height, width=width,
                                    generator=torch.Generator("cpu").manual_seed(seed), **SETTINGS).images[0]  # fmt: skip
        return Image.composite(filled.resize(image.size, Image.Resampling.LANCZOS), image, white)
