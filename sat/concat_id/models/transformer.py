"""The method: append the references' latents to the video's along time, attend over everything, drop their outputs."""

import functools
from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from concat_id.config.cogvideox import TransformerConfig
from concat_id.distributed import join_alone
from concat_id.models import mixins
from concat_id.models.embeddings import timestep_embedding
from concat_id.models.sat_library import BaseModel, BaseTransformer, initialize_model_parallel, model_parallel_is_initialized
from concat_id.models.tensor_names import POSITIONS
from concat_id.weights.loading import load_strictly
from concat_id.weights.model_folders import made_on

# Carried by released checkpoints without a use: SAT's learned positions are kept for the file format's sake (and loaded, however many
# there are), CogVideoX-2B's sin-cos table is recomputed.
UNUSED_IN_CHECKPOINTS = ("mixins.pos_embed.*",)


class DiffusionTransformer(BaseModel):
    """CogVideoX's transformer on SAT, with up to three reference images as additional frames (paper, section 3).

    No weights are added for references. Tensor names equal those of released SAT checkpoints.
    """

    def __init__(self, config: TransformerConfig, device: torch.device | str | None = None):
        """Build with uninitialised weights on `device`; "meta" costs nothing and waits for `weights.load_strictly`."""
        _ensure_model_parallel()
        head_size = config.hidden_size // config.num_attention_heads
        with made_on(device or "cpu"):
            super().__init__(args=None, transformer=_sat_transformer(config))
            width, time_width = config.hidden_size, config.time_embed_dim
            self.time_embed = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
            parts = {
                "pos_embed": _position_mixin(config, head_size),
                "patch_embed": mixins.ImagePatchEmbeddingMixin(config.in_channels, width, config.patch_size, config.text_hidden_size),
                "adaln_layer": mixins.AdaLNMixin(config.num_layers, width, head_size, time_width, config.checkpoint_activations),
                "final_layer": mixins.FinalLayerMixin(width, time_width, config.patch_size, config.out_channels),
            }
            for name, mixin in parts.items():
                self.add_mixin(name, mixin)
        self.config = config

    def load_sat_tensors(self, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype | None = None) -> None:
        """Take exactly the tensors of a SAT checkpoint; raises `UserError` with what does not fit."""
        positions, unused = tensors.get(POSITIONS), self.transformer.position_embeddings
        if isinstance(positions, Tensor):
            unused.weight = nn.Parameter(unused.weight.new_empty(positions.shape))
        load_strictly(self, dict(tensors), source, ignore=UNUSED_IN_CHECKPOINTS, dtype=dtype)

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, ref_latents: Tensor | None = None) -> Tensor:
        """Predict the velocity (B, T, C, H, W) of noised latents (B, T, C, H, W).

        `timestep` (B,) integers on the training scale, `prompt_embeds` (B, L, text width), `ref_latents` (B, R, C, H, W) clean.
        """
        num_frames = latents.shape[1]
        frames = latents if ref_latents is None else torch.cat([latents, ref_latents], dim=1)  # append: (B, T+R, C, H, W)

        grid = frames.shape[1], frames.shape[3] // self.config.patch_size, frames.shape[4] // self.config.patch_size
        text_length = prompt_embeds.shape[1]
        time = timestep_embedding(timestep, self.config.hidden_size).to(frames.dtype)
        output = super().forward(  # attend over text, video and references
            frames, None, None,
            prompt_embeds=prompt_embeds, emb=self.time_embed(time), grid=grid, text_length=text_length,
            rotary=self.get_mixin("pos_embed").rotary(grid, text_length, frames.device),
        )[0]  # fmt: skip

        return output[:, :num_frames]  # drop: (B, T, C, H, W)


def _position_mixin(config: TransformerConfig, head_size: int) -> nn.Module:
    if config.position_embedding == "rotary":
        return mixins.Rotary3DPositionEmbeddingMixin(head_size)
    interpolation = config.time_interpolation, config.height_interpolation, config.width_interpolation
    return mixins.Basic3DPositionEmbeddingMixin(config.hidden_size, interpolation)


def _sat_transformer(config: TransformerConfig) -> BaseTransformer:
    """SAT's transformer without its random initialisation and without the word embeddings, which nothing uses."""
    transformer = BaseTransformer(
        num_layers=config.num_layers,
        vocab_size=1,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        max_sequence_length=config.max_sequence_length,
        layernorm_epsilon=mixins.LAYER_EPS,
        layernorm=nn.LayerNorm,
        activation_func=functools.partial(F.gelu, approximate="tanh"),
        skip_init=True,
        device=torch.get_default_device(),
    )
    del transformer.word_embeddings
    return transformer


def _ensure_model_parallel() -> None:
    """Give SAT the process groups it asks for: this process alone, unless torch.distributed is already set up."""
    if not dist.is_initialized():
        join_alone("gloo")
    if not model_parallel_is_initialized():
        initialize_model_parallel(1)
