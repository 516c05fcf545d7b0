"""Converted transformers: a place for every tensor, and none for others."""

from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from in_process import refused

from concat_id.config.cogvideox import TransformerConfig
from concat_id.conversion import names
from concat_id.models.transformer import DiffusionTransformer
from concat_id.weights.loading import load_sat_checkpoint


@pytest.mark.parametrize("sizes", [{}, {"num_layers": 30, "hidden_size": 1920, "num_attention_heads": 30, "position_embedding": "sincos"}])
def test_every_tensor_of_5b_and_2b_has_its_place(sizes):
    config = TransformerConfig(**{"num_layers": 42, "hidden_size": 3072, "num_attention_heads": 48} | sizes)
    with torch.device("meta"):
        converted = CogVideoXTransformer3DModel.from_config(names.diffusers_transformer_settings(config))
    targets = names.diffusers_targets(config.num_layers)
    made = dict(names.made_from(targets, DiffusionTransformer(config, device="meta").state_dict(), "test"))
    expected = {name: tensor.shape for name, tensor in converted.state_dict().items() if name not in names.IGNORED}
    assert {name: tensor.shape for name, tensor in made.items()} == expected


def test_wrong_tensors_and_positions_are_told(sincos):
    uneven = replace(sincos.config.model.transformer, width_interpolation=1.5)
    told = r"found height_interpolation 1.875 and width_interpolation 1.5; .*cannot be converted"
    refused(told, names.diffusers_transformer_settings, uneven)
    tensors, targets = load_sat_checkpoint(sincos.checkpoint).state_dict, names.diffusers_targets(uneven.num_layers)
    made = names.made_from(targets, tensors | {"surplus": torch.zeros(3)}, "w.pt")
    refused("1 tensors are unknown: surplus", list, made)
