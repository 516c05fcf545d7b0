"""Videos of pipelines with small random weights."""

import torch
from PIL import Image

from concat_id.sampling.pipeline import VideoPipeline


def image(shade: int, size: tuple[int, int]) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize(size[::-1]).point(lambda value: (value + shade) % 256)


def latents_of(pipeline: VideoPipeline, prompt: str = "a man in a red hat", shades=(0,), seed: int = 0) -> torch.Tensor:
    (prompt_embeds,) = pipeline.encode_prompts([prompt])
    images = [image(shade, pipeline.config.args.sampling_image_size) for shade in shades]
    pipeline.load()
    return pipeline.sample(prompt_embeds, pipeline.encode_references(images), seed)
