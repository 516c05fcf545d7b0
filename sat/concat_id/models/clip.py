"""CLIP over images and prompts, from a folder of local weights."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from concat_id.errors import UserError
from concat_id.models.local_folders import told
from concat_id.weights.model_folders import check_tokenizer, load_pretrained, network_of, read_settings

BATCH_SIZE = 32


class ClipEncoder:
    """Turn images and prompts into vectors (B, D) of length 1 that can be compared.

    `folder` has the Hugging Face layout, such as openai/clip-vit-base-patch32. Raises `UserError` if a file is missing or unfit.
    """

    def __init__(self, folder: str | Path, device: torch.device | str):
        self.folder, self.device = Path(folder), torch.device(device)
        self.name = self.folder.name
        file = self.folder / "config.json"
        settings, weights = read_settings(file, "settings of CLIP"), load_pretrained(self.folder)
        self.model = network_of(CLIPModel, settings, weights, file, "CLIP").to(self.device)
        self.tokenizer = load_clip_tokenizer(self.folder)
        has_settings, side = os.path.isfile(self.folder / "preprocessor_config.json"), self.model.config.vision_config.image_size
        with told(self.folder, "CLIP"):
            self.processor = CLIPImageProcessorPil.from_pretrained(self.folder, local_files_only=True) if has_settings else (
                CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}))  # fmt: skip

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Compute vectors (B, D) of RGB images; as released, what a centred square leaves out is not seen."""
        vectors = []
        for start in range(0, len(images), BATCH_SIZE):
            pixels = self.processor([image.convert("RGB") for image in images[start : start + BATCH_SIZE]], return_tensors="pt")
            hidden = self.model.vision_model(pixel_values=pixels["pixel_values"].to(self.device)).pooler_output
            vectors.append(normalised(self.model.visual_projection(hidden)))
        return np.concatenate(vectors)

    @torch.no_grad()
    def encode_text(self, text: str) -> tuple[np.ndarray, int]:
        """Compute the vector (D,) of a prompt, and in how many chunks it was read: the model reads at most 77 tokens at once."""
        return average_chunks(self.tokenizer, text, self.model.config.text_config.max_position_embeddings, self._encode_tokens)

    def _encode_tokens(self, tokens: list[int]) -> np.ndarray:
        hidden = self.model.text_model(input_ids=torch.tensor([tokens], device=self.device)).pooler_output
        return normalised(self.model.text_projection(hidden))[0]


def load_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read CLIP's tokenizer. Raises `UserError` for a folder without it."""
    if not any(os.path.isfile(folder / name) for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder}: found no CLIP tokenizer, expected vocab.json and merges.txt; copy those of a CLIP model")
    check_tokenizer(folder)
    with told(folder, "CLIP's tokenizer"):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def average_chunks(
    tokenizer: CLIPTokenizer, text: str, limit: int, encode: Callable[[list[int]], np.ndarray]
) -> tuple[np.ndarray, int]:
    """Encode a prompt of any length: in chunks of `limit` tokens, two of them marks, whose vectors are averaged.

    The numbers of tokens are the weights. Returns the vector (D,), of length 1, and the number of chunks.
    """
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    chunks = [tokens[start : start + limit - 2] for start in range(0, len(tokens), limit - 2)] or [[]]
    vectors = [encode([tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id]) for chunk in chunks]
    mean = np.average(vectors, axis=0, weights=[max(1, len(chunk)) for chunk in chunks])
    return mean / max(np.linalg.norm(mean), 1e-12), len(chunks)


def normalised(vectors: Tensor) -> np.ndarray:
    """Bring vectors (B, D) to length 1."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
