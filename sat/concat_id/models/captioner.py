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

from concat_id.distributed import is_out_of_memory
from concat_id.errors import UserError
from concat_id.models.local_folders import LOCAL, check_folder, check_words, load_network, room_on, told
from concat_id.weights.loading import content_digest

LONGEST = 120  # tokens of a caption
EXPECTED = "an image-text model such as Qwen2.5-VL"


class Captioner:
    """Describe clips with any image-text model that transformers knows; its weights are read at the first description.

    `folder` has the Hugging Face layout with safetensors. Raises `UserError` if it holds no such model.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        check_folder(folder, EXPECTED, "--captioner")
        with told(folder, EXPECTED):
            self._config = AutoConfig.from_pretrained(folder, **LOCAL)
            kind = type(self._config)
            if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or kind not in PROCESSOR_MAPPING:
                raise UserError(f"{folder}: found a {self._config.model_type} model, expected {EXPECTED}; correct --captioner")
            self._processor = _without_videos(PROCESSOR_MAPPING[kind]).from_pretrained(folder, **LOCAL)
        if not (self._processor.chat_template or self._processor.tokenizer.chat_template):
            raise UserError(f"{folder}: found no chat_template.jinja, expected {EXPECTED} that follows instructions; choose another")
        check_words(self._processor.tokenizer, folder)
        self._processor.tokenizer.padding_side = "left"  # what is written follows the prompt at once

    @cached_property
    def digest(self) -> str:
        """Name the weights."""
        return content_digest(self.folder)

    @cached_property
    def _network(self) -> Any:
        return load_network(AutoModelForImageTextToText, self.folder, self.device, EXPECTED, config=self._config)

    def describe(self, clips: Sequence[Sequence[Image.Image]], instruction: str) -> list[str]:
        """Write what `instruction` asks for about the frames of each clip, on one line, by the likeliest token each time.

        Clips for which there is no room together are described one by one.
        """
        try:
            return self._describe(clips, instruction)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        with room_on(self.device, self.folder):
            return [text for frames in clips for text in self._describe([frames], instruction)]

    def _describe(self, clips: Sequence[Sequence[Image.Image]], instruction: str) -> list[str]:
        talks = [[{"role": "user", "content": [*({"type": "image", "image": frame} for frame in frames),
                                               {"type": "text", "text": instruction}]}] for frames in clips]  # fmt: skip
        inputs = self._processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True,
                                                     return_tensors="pt", processor_kwargs={"padding": True})  # fmt: skip
        inputs = inputs.to(self.device, dtype=self._network.dtype)
        tokens = self._network.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        texts = self._processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def _without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Leave out the part that reads videos, which needs torchvision: frames are given as images."""
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(
        lambda cls: [name for name in super(cls, cls).get_attributes() if name != "video_processor"])})  # fmt: skip
