"""The method on CogVideoX by diffusers' network: the same call and results as `transformer.DiffusionTransformer`, from the same weights.

Diffusers' accelerations know this network; SAT's they do not. Tensor names are diffusers' behind `network.`.
"""

from collections.abc import Mapping

import torch
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor, nn

from concat_id.config.cogvideox import TransformerConfig
from concat_id.models.embeddings import apply_rotary, remembered, rotary
from concat_id.models.tensor_names import diffusers_targets, diffusers_transformer_settings, made_from, set_last_epsilon
from concat_id.weights.loading import load_strictly
from concat_id.weights.model_folders import made_on


class DiffusersTransformer(nn.Module):
    """CogVideoX's transformer of diffusers with up to three reference images as additional frames."""

    def __init__(self, config: TransformerConfig):
        """Build on the meta device, for the weights that `load_sat_tensors` or `load_gguf` brings.

        Raises `UserError` for settings that diffusers' network does not have.
        """
        super().__init__()
        settings = diffusers_transformer_settings(config)
        with made_on("meta"):
            self.network = ShareableCogVideoX(**{name: value for name, value in settings.items() if not name.startswith("_")})
        set_last_epsilon(self.network)
        embed = self.network.patch_embed
        if embed.use_positional_embeddings:  # sines and cosines, which no file holds
            table = embed._get_positional_embeddings(embed.sample_height, embed.sample_width, embed.sample_frames)
            embed.register_buffer("pos_embedding", table, persistent=False)
        self.network.set_attn_processor(JointAttention())
        self.config = config
        self._table = remembered(rotary, config.hidden_size // config.num_attention_heads)

    def load_sat_tensors(self, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype | None = None) -> None:
        """Take the tensors of a SAT checkpoint, in place of copies wherever names are all that differs."""
        made = dict(made_from(diffusers_targets(self.config.num_layers), tensors, source))
        load_strictly(self.network, made, source, dtype=dtype)

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, ref_latents: Tensor | None = None) -> Tensor:
        """Predict the velocity (B, T, C, H, W); as `DiffusionTransformer.forward`."""
        num_frames = latents.shape[1]
        frames = latents if ref_latents is None else torch.cat([latents, ref_latents], dim=1)  # append: (B, T+R, C, H, W)

        output = self.network(frames, prompt_embeds, timestep, image_rotary_emb=self._rotary(frames), return_dict=False)[0]

        return output[:, :num_frames]  # drop: (B, T, C, H, W)

    def _rotary(self, frames: Tensor) -> Tensor | None:
        """Cosines and sines (S, 1, head size / 2, 2), reference i of T latent frames at frame T + i."""
        patch, is_rotary = self.config.patch_size, self.config.position_embedding == "rotary"
        grid = frames.shape[1], frames.shape[3] // patch, frames.shape[4] // patch
        return self._table(grid, 0, frames.device) if is_rotary else None


class JointAttention:
    """CogVideoX's attention over text and frames by any of diffusers' kernels, and by several processes."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None,
                 image_rotary_emb: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return what frames (B, S, D) and text (B, L, D) attend to."""
        text_length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (project(tokens).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)  # (B, L+S, N, head size)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([part[:, :text_length], apply_rotary(part[:, text_length:], image_rotary_emb)], dim=1) for part in (query, key)
            )
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config)
        output = attn.to_out[0](attended.flatten(2).type_as(tokens))
        return output[:, text_length:], output[:, :text_length]


class ShareableCogVideoX(CogVideoXTransformer3DModel):
    """Diffusers' network with a plan of which tokens are whose where several processes share a video."""

    _repeated_blocks = ["CogVideoXBlock"]
    _cp_plan = {
        "": {"image_rotary_emb": ContextParallelInput(split_dim=0, expected_dims=4)},
        "transformer_blocks.0": {
            "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
            "encoder_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
        },
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
