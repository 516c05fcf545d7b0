"""Whether a converted transformer computes the same."""

import os
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from concat_id.config.cogvideox import TransformerConfig
from concat_id.conversion.folders import transformer_settings
from concat_id.conversion.lazy import changed, lazy_files
from concat_id.conversion.low_rank_products import DIFFUSERS_FILE, read_diffusers_products, with_products
from concat_id.conversion.weight_sources import WeightSource
from concat_id.models.tensor_names import set_last_epsilon
from concat_id.models.transformer import DiffusionTransformer
from concat_id.weights.folders import weight_files
from concat_id.weights.loading import load_strictly
from concat_id.weights.model_folders import built_from

TOLERANCE = 2e-5  # of the largest value: what other orders of summation amount to in float32
FRAMES, REFS = 2, 2  # of the input compared; positions of further frames follow the same rule


@torch.inference_mode()
def largest_difference(source: WeightSource, folder: Path, config: TransformerConfig) -> float:
    """Run the same seeded input through both, one after the other, in float32; of the largest value of the output.

    Low-rank products count on either side, merged or kept. If the folder's weights are all of one type, the source's are rounded to it
    first, so that what a type of 16 bits cannot hold is no difference. Not a number where an output holds one.
    """
    settings = transformer_settings(folder / "transformer")
    generator = torch.Generator().manual_seed(0)
    size = min(config.latent_height, 16), min(config.latent_width, 24)
    latents = torch.randn(1, FRAMES, config.in_channels, *size, generator=generator)
    refs = torch.randn(1, REFS, config.in_channels, *size, generator=generator)
    text = torch.randn(1, config.text_length, config.text_hidden_size, generator=generator)
    timestep = torch.tensor([config.num_frames * 10])

    kept = os.path.isfile(folder / DIFFUSERS_FILE)
    tensors = lazy_files(weight_files(folder / "transformer", ("diffusion_pytorch_model",)))
    types = {tensor.dtype for tensor in tensors.values()}
    dtype = next(iter(types)) if len(types) == 1 else None
    given = source.open() if kept else source.merged(dtype)
    given = changed(given, dict.fromkeys(given, lambda tensor: tensor.to(dtype or tensor.dtype).float()))
    if kept and source.products is not None:
        given = with_products(given, source.products, str(source.path))
    transformer = DiffusionTransformer(config, device="meta")
    transformer.load_sat_tensors(given, str(source.path))
    expected = transformer(latents, timestep, text, refs)
    del transformer, given

    frames = torch.cat([latents, refs], dim=1)
    grid, head_size = tuple(side // config.patch_size for side in size), config.hidden_size // config.num_attention_heads
    is_rotary = config.position_embedding == "rotary"
    rotary = get_3d_rotary_pos_embed(head_size, ((0, 0), grid), grid, FRAMES + REFS) if is_rotary else None
    with built_from(folder / "transformer" / "config.json", "transformer of these sizes", tensors):
        converted = CogVideoXTransformer3DModel.from_config(settings)
        set_last_epsilon(converted)
        load_strictly(converted, dict(tensors), str(folder), dtype=torch.float32)
        if kept:
            products = read_diffusers_products(folder)
            converted.load_state_dict(dict(with_products(converted.state_dict(), products, str(folder / DIFFUSERS_FILE))))
        found = converted(frames, text, timestep, image_rotary_emb=rotary, return_dict=False)[0][:, :FRAMES]
        return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
