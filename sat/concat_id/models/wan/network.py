"""Concat-ID's Wan transformer: diffusers' WanTransformer3DModel with references as further latent frames.

This file is copied into converted folders and must not import anything of the project.

A reference's tokens have their slot's time index and stand to the right of the image (width indices w..2w-1), and the text does not
reach them: they take no part in cross-attention. In the AdaLN variant they have modulations of their own.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding, WanTransformerBlock
from torch import Tensor, nn

MODULATIONS = 6  # shift, scale and gate of self-attention, then of the MLP


class ConcatIDWanTransformer(WanTransformer3DModel):
    """Wan2.1's text-to-video transformer that also attends over references.

    Without `ref_modulation` it has the tensors of WanTransformer3DModel; with it (the AdaLN variant)
    `condition_embedder.time_proj_ref` and every block's `scale_shift_table_ref` besides.
    """

    _no_split_modules = ["ReferenceBlock"]
    _repeated_blocks = ["ReferenceBlock"]
    _keep_in_fp32_modules = [*WanTransformer3DModel._keep_in_fp32_modules, "scale_shift_table_ref"]
    _source = Path(__file__).read_bytes()  # which the next folder's overwrites: diffusers runs a copy

    @register_to_config
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        ref_modulation: bool = False,
    ):
        super().__init__(
            patch_size, num_attention_heads, attention_head_dim, in_channels, out_channels, text_dim, freq_dim, ffn_dim,
            num_layers=0, cross_attn_norm=cross_attn_norm, qk_norm=qk_norm, eps=eps,
        )  # fmt: skip
        self.register_to_config(num_layers=num_layers)
        width = num_attention_heads * attention_head_dim
        self.rope = FramePositions(attention_head_dim, patch_size)
        if ref_modulation:
            self.condition_embedder = ReferenceConditionEmbedder(width, freq_dim, MODULATIONS * width, text_dim)
        block = (width, ffn_dim, num_attention_heads, qk_norm, cross_attn_norm, eps)
        self.blocks = nn.ModuleList(ReferenceBlock(*block, ref_modulation=ref_modulation) for _ in range(num_layers))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *args: Any, ref_latents: Tensor | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Call WanTransformer3DModel on latents (B, C, T, H, W) with references (B, C, R, H, W); the output is the latents' alone."""
        if ref_latents is None:
            return super().forward(hidden_states, timestep, encoder_hidden_states, *args, **options)
        num_frames, num_refs = hidden_states.shape[2], ref_latents.shape[2]
        frames = torch.cat([hidden_states, ref_latents], dim=2)  # append: (B, C, T+R, H, W)

        def tell_blocks(_: nn.Module, inputs: tuple, rotary: tuple[Tensor, Tensor]) -> tuple:  # after parallelism has taken a share
            own = self._own_ref_tokens(frames.shape, num_refs, rotary[0].shape[1])
            return (*rotary, own) if own else rotary

        tell_positions = self.rope.register_forward_pre_hook(lambda _, inputs: (*inputs, num_refs))
        with tell_positions, self.rope.register_forward_hook(tell_blocks):
            output = super().forward(frames, timestep, encoder_hidden_states, *args, **options)

        if isinstance(output, tuple):
            return (output[0][:, :, :num_frames],)  # drop
        output.sample = output.sample[:, :, :num_frames]
        return output

    def _own_ref_tokens(self, shape: Sequence[int], num_refs: int, length: int) -> int:
        """Count references' tokens among the `length` that this process has of all: the last ones of its own, none for most processes.

        `shape` (B, C, T+R, H, W). Context parallelism gives each process a run of tokens, the first ones one more if they do not divide.
        """
        tokens = prod(size // patch for size, patch in zip(shape[2:], self.config.patch_size, strict=True))
        start, parallel = 0, getattr(getattr(self, "_parallel_config", None), "context_parallel_config", None)
        if parallel is not None:
            mesh = parallel._flattened_mesh
            place, (share, extra) = mesh.get_local_rank(), divmod(tokens, mesh.size())
            start = place * share + min(place, extra)
        first = tokens // shape[2] * (shape[2] - num_refs)  # of all references' tokens; a patch is one frame
        return min(max(start + length - first, 0), length)

    def enable_cache(self, config: Any) -> None:
        """Do as diffusers does, which asks for what a block returns; not together with parallelism, but for MagCache.

        Others judge by a process's own tokens whether blocks are computed, and processes that disagree wait for one another for ever.
        """
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

        about = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
        TransformerBlockRegistry.register(type(self.blocks[0]), about)  # another ReferenceBlock once a further folder is loaded
        super().enable_cache(config)


class FramePositions(nn.Module):
    """Where tokens are in time, height and width, as rotary angles; made anew for each call, so that no cast can round them."""

    def __init__(self, head_size: int, patch_size: Sequence[int]):
        super().__init__()
        side = 2 * (head_size // 6)
        self.sizes = head_size - 2 * side, side, side
        self.patch_size = patch_size

    def forward(self, frames: Tensor, num_refs: int = 0) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (1, S, 1, head size) of latents (B, C, T+R, H, W)."""
        num_frames, height, width = (size // patch for size, patch in zip(frames.shape[2:], self.patch_size, strict=True))
        where = frames.device if frames.is_cuda else None  # in float64, which not every device has
        time, rows, columns = (torch.arange(size, device=where) for size in (num_frames, height, 2 * width))
        grids = [(time[: num_frames - num_refs], rows, columns[:width])]
        if num_refs:
            grids.append((time[-num_refs:], rows, columns[width:]))  # right of the image, at the time of their slots
        tables = [self._tables(grid, frames.device) for grid in grids]
        cos, sin = (torch.cat(parts)[None, :, None] for parts in zip(*tables, strict=True))
        return cos, sin

    def _tables(self, grid: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Cosines and sines (S, head size) of all combinations of positions in time, height and width."""
        axes = []
        for axis, (positions, size) in enumerate(zip(grid, self.sizes, strict=True)):
            shape = [1, 1, 1, size]
            shape[axis] = len(positions)
            table = get_1d_rotary_pos_embed(size, positions, use_real=True, freqs_dtype=torch.float64)  # cosines, sines (n, size)
            axes.append([part.to(device).view(shape).expand(*map(len, grid), -1) for part in table])
        return [torch.cat(parts, dim=-1).flatten(0, 2) for parts in zip(*axes, strict=True)]


class ReferenceConditionEmbedder(WanTimeTextImageEmbedding):
    """Wan's time and text embedding with a second projection of the time, for references (AdaLN variant)."""

    def __init__(self, dim: int, time_freq_dim: int, time_proj_dim: int, text_embed_dim: int):
        super().__init__(dim, time_freq_dim, time_proj_dim, text_embed_dim)
        self.time_proj_ref = nn.Linear(dim, time_proj_dim)

    def forward(self, *args: Any, **options: Any) -> tuple:
        """Return what Wan's does; each of the six modulations (B, D) is followed by that of references: (B, 6 * 2 D)."""
        temb, of_video, *rest = super().forward(*args, **options)
        of_refs = self.time_proj_ref(self.act_fn(temb))
        both = torch.cat([part.unflatten(-1, (MODULATIONS, -1)) for part in (of_video, of_refs)], dim=-1)
        return temb, both.flatten(-2), *rest


class Modulation(NamedTuple):
    """What a block does with tokens at a time, each (B, 1, D), float32: x * (1 + scale) + shift before a sublayer, gate after it."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    mlp_shift: Tensor
    mlp_scale: Tensor
    mlp_gate: Tensor


class ReferenceBlock(WanTransformerBlock):
    """Wan's block for tokens of which the last may be those of references."""

    def __init__(self, dim: int, *args: Any, ref_modulation: bool = False):
        super().__init__(dim, *args)
        self.scale_shift_table_ref = nn.Parameter(torch.randn(1, MODULATIONS, dim) / dim**0.5) if ref_modulation else None

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: tuple) -> Tensor:
        """Transform tokens (B, S, D) with text (B, L, D); `temb` (B, 6, D), or (B, 6, 2 D) with references' own behind the video's.

        `rotary_emb` is cosines and sines and, if any, the number of tokens of references.
        """
        of_video, of_refs = temb.chunk(2, dim=-1) if self.scale_shift_table_ref is not None else (temb, temb)
        if len(rotary_emb) == 2:
            return super().forward(hidden_states, encoder_hidden_states, of_video, rotary_emb)
        *rotary, num_ref_tokens = rotary_emb
        lengths = hidden_states.shape[1] - num_ref_tokens, num_ref_tokens
        tokens = hidden_states.split(lengths, dim=1)  # video, references
        modulations = self._modulations(of_video, of_refs)

        inputs = [_modulated(self.norm1, part, m.shift, m.scale) for part, m in zip(tokens, modulations, strict=True)]
        outputs = self.attn1(torch.cat(inputs, dim=1), None, None, tuple(rotary)).split(lengths, dim=1)  # all attend to all
        video, refs = (_added(part, output, m.gate) for part, output, m in zip(tokens, outputs, modulations, strict=True))

        # As released: references take no part in the text cross-attention.
        if lengths[0]:  # a process may have nothing but references
            video = video + self.attn2(self.norm2(video.float()).type_as(video), encoder_hidden_states, None, None)

        parts = [
            _added(part, self.ffn(_modulated(self.norm3, part, m.mlp_shift, m.mlp_scale)), m.mlp_gate)
            for part, m in zip((video, refs), modulations, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def _modulations(self, of_video: Tensor, of_refs: Tensor) -> tuple[Modulation, Modulation]:
        """Modulations of the video's tokens and of references'."""
        video = Modulation(*(self.scale_shift_table + of_video.float()).chunk(MODULATIONS, dim=1))
        if self.scale_shift_table_ref is None:
            return video, video
        refs = Modulation(*(self.scale_shift_table_ref + of_refs.float()).chunk(MODULATIONS, dim=1))
        # As released: the reference's MLP input takes the shift and scale of attention (a bug that the weights were trained with).
        return video, Modulation(refs.shift, refs.scale, refs.gate, refs.shift, refs.scale, refs.mlp_gate)


def _modulated(norm: nn.Module, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (norm(tokens.float()) * (1 + scale) + shift).type_as(tokens)


def _added(tokens: Tensor, output: Tensor, gate: Tensor) -> Tensor:
    return (tokens + output * gate).type_as(tokens)  # in float32, as the gate is
