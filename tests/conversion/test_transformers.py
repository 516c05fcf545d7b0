"""Converted transformers: equal outputs, bit-equal round trips, a place for every tensor, nothing of the wrong shape."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_close
from diffusers import CogVideoXTransformer3DModel

from concat_id.config.cogvideox import TransformerConfig
from concat_id.conversion import names
from concat_id.conversion.check import diffusers_rotary
from concat_id.errors import UserError
from concat_id.models.transformer import DiffusionTransformer


def random_pair(kind: str) -> tuple[DiffusionTransformer, CogVideoXTransformer3DModel]:
    """A SAT transformer with random weights and its conversion."""
    scale = 1.875 if kind == "sincos" else 1.0
    config = TransformerConfig(
        num_layers=2, hidden_size=192, num_attention_heads=3, time_embed_dim=64, text_hidden_size=24, text_length=5, latent_height=8,
        latent_width=12, num_frames=9, position_embedding=kind, height_interpolation=scale, width_interpolation=scale,
    )  # fmt: skip
    transformer = DiffusionTransformer(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in transformer.named_parameters():
        parameter.normal_(mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.1, generator=generator)
    settings = names.diffusers_transformer_settings(config)
    converted = CogVideoXTransformer3DModel.from_config(settings)
    names.set_last_epsilon(converted)
    tensors = dict(names.made_from(names.diffusers_targets(config.num_layers), transformer.state_dict(), "test"))
    converted.load_state_dict(tensors, strict=True)
    return transformer, converted.requires_grad_(False)


@pytest.mark.parametrize("kind", ["rotary", "sincos"])
@pytest.mark.parametrize("num_refs, num_frames", [(3, 3), (1, 1)])
def test_they_compute_the_same_and_come_back(kind, num_refs, num_frames):
    transformer, converted = random_pair(kind)
    generator = torch.Generator().manual_seed(1)
    latents, refs = (torch.randn(2, count, 16, 8, 12, generator=generator) for count in (num_frames, num_refs))
    text, timestep = torch.randn(2, 5, 24, generator=generator), torch.tensor([17, 843])
    frames = torch.cat([latents, refs], dim=1)
    rotary = diffusers_rotary(transformer.config, frames) if kind == "rotary" else None
    found = converted(frames, text, timestep, image_rotary_emb=rotary, return_dict=False)[0][:, :num_frames]
    assert_close(found, transformer(latents, timestep, text, refs), 2e-5)
    there, back = converted.state_dict(), transformer.state_dict()
    made = dict(names.made_from(names.sat_targets(2), there, "test"))
    assert made.keys() == back.keys() - {names.POSITIONS} and all(torch.equal(made[name], back[name]) for name in made), "bit-equal"


@pytest.mark.parametrize("sizes", [{}, {"num_layers": 30, "hidden_size": 1920, "num_attention_heads": 30, "position_embedding": "sincos"}])
def test_every_tensor_of_5b_and_2b_has_its_place(sizes):
    config = TransformerConfig(**{"num_layers": 42, "hidden_size": 3072, "num_attention_heads": 48} | sizes)
    with torch.device("meta"):
        converted = CogVideoXTransformer3DModel.from_config(names.diffusers_transformer_settings(config))
    targets = names.diffusers_targets(config.num_layers)
    made = dict(names.made_from(targets, DiffusionTransformer(config, device="meta").state_dict(), "test"))
    expected = {name: tensor.shape for name, tensor in converted.state_dict().items() if name not in names.IGNORED}
    assert {name: tensor.shape for name, tensor in made.items()} == expected


def test_wrong_tensors_and_positions_are_told():
    with pytest.raises(UserError, match=r"found height_interpolation 1.875 and width_interpolation 1.5; .*cannot be converted"):
        names.diffusers_transformer_settings(replace(random_pair("sincos")[0].config, width_interpolation=1.5))
    transformer, _ = random_pair("rotary")
    tensors, targets = transformer.state_dict(), names.diffusers_targets(2)
    shapes = {name: tensor.shape for name, tensor in names.made_from(targets, tensors, "w.pt")}
    made = names.made_from(targets, tensors | {"time_embed.0.bias": torch.zeros(3)}, "w.pt", shapes)
    with pytest.raises(UserError, match=r"w.pt: time_embedding.linear_1.bias: found shape \(3,\), expected \(64,\); give the --base"):
        list(made)
    with pytest.raises(UserError, match="1 tensors are unknown: surplus"):
        list(names.made_from(targets, tensors | {"surplus": torch.zeros(3)}, "w.pt"))
    del tensors["time_embed.0.bias"]
    with pytest.raises(UserError, match="1 tensors are missing: time_embed.0.bias"):
        list(names.made_from(targets, tensors, "w.pt"))
