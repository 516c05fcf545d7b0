"""Captions of frames by an image-text model of transformers, from a folder of local weights."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.logging import disable_progress_bar

from concat_id.distributed import is_out_of_memory
from concat_id.errors import UserError, reason_of
from concat_id.files.json_files import read_json
from concat_id.weights.folders import weight_files
from concat_id.weights.loading import check_whole, content_digest

LONGEST = 120  # tokens of a caption
EXPECTED = "an image-text model such as Qwen2.5-VL"
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # nothing is fetched, no code of the folder is run


class Captioner:
    """Describe clips with any image-text model that transformers knows; its weights are read at the first description.

    `folder` has the Hugging Face layout with safetensors. Raises `UserError` if it holds no such model.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        read_json(folder / "config.json", f"settings of {EXPECTED}", f"expected {EXPECTED}; correct --captioner, or download it again")
        for file in weight_files(folder):
            if file.suffix != ".safetensors":
                raise UserError(f"{file}: found pickled weights, expected model.safetensors; download that")
            check_whole(file)
        try:
            self._config = AutoConfig.from_pretrained(folder, **LOCAL)
            kind = type(self._config)
            if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or kind not in PROCESSOR_MAPPING:
                raise UserError(f"{folder}: found a {self._config.model_type} model, expected {EXPECTED}; correct --captioner")
            self._processor = _without_videos(PROCESSOR_MAPPING[kind]).from_pretrained(folder, **LOCAL)
        except UserError:
            raise
        except Exception as error:  # the readers of the formats raise whatever they like
            raise self._unfit(error) from error
        if not (self._processor.chat_template or self._processor.tokenizer.chat_template):
            raise UserError(f"{folder}: found no chat_template.jinja, expected {EXPECTED} that follows instructions; choose another")
        self._processor.tokenizer.padding_side = "left"  # what is written follows the prompt at once

    @cached_property
    def digest(self) -> str:
        """Name the weights."""
        return content_digest(self.folder)

    @cached_property
    def _network(self) -> Any:
        disable_progress_bar()
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        try:
            network, found = AutoModelForImageTextToText.from_pretrained(
                self.folder, config=self._config, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL
            )
            network = network.eval().requires_grad_(False).to(self.device)
        except Exception as error:
            if is_out_of_memory(error):
                raise UserError(f"{self.folder}: {self.device} has no room for it; choose a smaller model, or --device cpu") from error
            raise self._unfit(error) from error
        if found["missing_keys"]:
            raise UserError(f"{self.folder}: found no {sorted(found['missing_keys'])[0]} in the weights; download the folder again")
        return network

    def describe(self, clips: Sequence[Sequence[Image.Image]], instruction: str) -> list[str]:
        """Write what `instruction` asks for about the frames of each clip, on one line, by the likeliest token each time."""
        talks = [[{"role": "user", "content": [*({"type": "image", "image": frame} for frame in frames),
                                               {"type": "text", "text": instruction}]}] for frames in clips]  # fmt: skip
        inputs = self._processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True,
                                                     return_tensors="pt", processor_kwargs={"padding": True})  # fmt: skip
        inputs = inputs.to(self.device, dtype=self._network.dtype)
        tokens = self._network.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        texts = self._processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _unfit(self, error: Exception) -> UserError:
        return UserError(f"{self.folder}: cannot be loaded as {EXPECTED} ({reason_of(error, 150)}); download it again")


def _without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Leave out the part that reads videos, which needs torchvision: frames are given as images."""
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(
        lambda cls: [name for name in super(cls, cls).get_attributes() if name != "video_processor"])})  # fmt: skip
