"""Positions against the released table and against diffusers."""

import torch
from conftest import assert_close
from diffusers.models.embeddings import get_3d_sincos_pos_embed, get_timestep_embedding

from concat_id.config.cogvideox import TransformerConfig
from concat_id.models.embeddings import rotary_table, sincos_table, timestep_embedding
from concat_id.models.transformer import DiffusionTransformer


def test_rotary_table_equals_released(sat_golden):
    rows, width = sat_golden["rotary/shape"].tolist()
    cos, sin = rotary_table((18, 30, 45), 64)
    assert (cos.shape[0], 2 * cos.shape[1]) == (rows, width)
    index = sat_golden["rotary/idx"]
    assert_close(cos[index].repeat_interleave(2, -1), sat_golden["rotary/cos"], 1e-5)
    assert_close(sin[index].repeat_interleave(2, -1), sat_golden["rotary/sin"], 1e-5)


def test_sincos_table_equals_diffusers():
    expected = get_3d_sincos_pos_embed(192, (10, 6), 5, spatial_interpolation_scale=1.875, output_type="pt").flatten(0, 1)
    assert_close(sincos_table((5, 6, 10), 192, (1.0, 1.875, 1.875)), expected, 1e-6)


def test_each_axis_is_stretched_by_its_own_interpolation():
    plain, stretched = (sincos_table((4, 6, 8), 192, by).view(4, 6, 8, 192) for by in ((1, 1, 1), (2, 3, 4)))
    assert torch.equal(stretched[2, 3, 4], plain[1, 1, 1])
    config = TransformerConfig(num_layers=1, hidden_size=192, num_attention_heads=3, position_embedding="sincos",
                               time_interpolation=2, height_interpolation=3, width_interpolation=4)  # fmt: skip
    positions = DiffusionTransformer(config, device="meta").get_mixin("pos_embed").position_embedding_forward
    assert torch.equal(positions(None, emb=plain, grid=(4, 6, 8), text_length=0).view(4, 6, 8, 192), stretched)


def test_timestep_embedding_equals_diffusers():
    timestep = torch.tensor([0, 17, 843, 999])
    expected = get_timestep_embedding(timestep, 128, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert_close(timestep_embedding(timestep, 128), expected, 1e-6)
