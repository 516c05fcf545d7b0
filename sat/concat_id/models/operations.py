"""Tokens, weights and operations of a transformer, from its sizes alone."""

from collections.abc import Sequence
from typing import Any


def count_tokens(model: Any, frames: int, size: Sequence[int]) -> int:
    """Tokens of a sequence of text and latent frames, references among them, of images of `size` (height, width) in pixels.

    `model` is a backbone's section. Wan's text is not in the sequence.
    """
    height, width = (side // model.transformer.patch_size for side in model.latent_sides(size))
    return frames * height * width + (0 if model.kind == "wan" else model.transformer.text_length)


def weights_per_token(config: Any) -> int:
    """Weights of a layer that every token meets: 12 D^2, or Wan's two attentions and its feed-forward network."""
    dim = config.hidden_size
    return 8 * dim**2 + 2 * dim * config.ffn_dim if hasattr(config, "ffn_dim") else 12 * dim**2


def count_weights(config: Any) -> int:
    """Weights that tokens meet in all layers, CogVideoX's twelve modulations of each layer, and the ways in and out. Right to 2 %."""
    dim, time = config.hidden_size, config.time_embed_dim
    is_wan = hasattr(config, "ffn_dim")
    modulations, ends = (0, 8 * dim**2 + time * dim) if is_wan else (12 * dim * time, 3 * dim * time + time**2)
    return config.num_layers * (weights_per_token(config) + modulations) + config.text_hidden_size * dim + ends


def forward_operations(config: Any, tokens: int) -> tuple[int, int]:
    """Operations of one sample's forward: matrix products, 24 S D^2 a layer in CogVideoX, and attention, 4 S^2 D."""
    products = 2 * tokens * weights_per_token(config)
    return config.num_layers * products, config.num_layers * 4 * tokens**2 * config.hidden_size
