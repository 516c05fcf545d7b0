"""The method on Wan2.1: the same call as `transformer.DiffusionTransformer`, by diffusers' network (`wan_network`)."""

import torch
from torch import Tensor, nn

from concat_id.config.wan import WanTransformerConfig
from concat_id.models.wan.network import ConcatIDWanTransformer
from concat_id.weights.model_folders import made_on


class WanDiffusionTransformer(nn.Module):
    """Wan's transformer with up to three reference images as additional frames.

    Tensor names are diffusers' behind `network.`; `wan_weights` knows Wan's own.
    """

    def __init__(self, config: WanTransformerConfig, device: torch.device | str | None = None):
        """Build with uninitialised weights on `device`; "meta" costs nothing and waits for `weights.load_strictly`."""
        super().__init__()
        with made_on(device or "cpu"):
            self.network = ConcatIDWanTransformer(**network_settings(config))
        if config.checkpoint_activations:
            self.network.enable_gradient_checkpointing()
        self.config = config

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, ref_latents: Tensor | None = None) -> Tensor:
        """Predict the velocity (B, T, C, H, W), noise minus clean latents, of noised latents (B, T, C, H, W).

        `timestep` (B,) on the scale 0..1000, `prompt_embeds` (B, L, text width) with zeros behind the text, `ref_latents`
        (B, R, C, H, W) clean.
        """
        refs = None if ref_latents is None else ref_latents.transpose(1, 2)
        output = self.network(latents.transpose(1, 2), timestep, prompt_embeds, ref_latents=refs, return_dict=False)
        return output[0].transpose(1, 2)


def network_settings(config: WanTransformerConfig) -> dict:
    """What the network is built by, which is also diffusers' config.json of it."""
    return {
        "patch_size": (1, config.patch_size, config.patch_size),
        "num_attention_heads": config.num_attention_heads,
        "attention_head_dim": config.hidden_size // config.num_attention_heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "text_dim": config.text_hidden_size,
        "freq_dim": config.time_embed_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "ref_modulation": config.ref_modulation,
    }
