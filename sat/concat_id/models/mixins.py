"""The parts of the transformer as SAT mixins; each implements hooks that `sat.model.BaseModel` collects.

Attribute names make up the tensor names of released checkpoints and are a file format: they stay as they are.
Sequences are text tokens first (L), then the tokens of every frame, video frames before reference frames.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from concat_id.models.attention import attention
from concat_id.models.compilation import product_with_gelu
from concat_id.models.embeddings import apply_rotary, remembered, rotary, sincos_table
from concat_id.models.sat_library import BaseMixin

LAYER_EPS = 1e-5  # of the LayerNorms that SAT makes: two in each layer, and the last one
EPS = 1e-6  # of the released mixins' own: those of queries and keys, and `norm_final`


class ImagePatchEmbeddingMixin(BaseMixin):
    """Turn text embeddings and latent frames into one sequence of tokens."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, text_hidden_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.text_proj = nn.Linear(text_hidden_size, hidden_size)

    def word_embedding_forward(self, input_ids: Tensor, *, prompt_embeds: Tensor, **_) -> Tensor:
        """SAT's hook for the first embedding; `input_ids` are latents (B, T+R, C, H, W) here. Returns (B, S, D)."""
        batch = input_ids.shape[0]
        patches = self.proj(input_ids.flatten(0, 1))  # (B*(T+R), D, H/p, W/p)
        frames = patches.flatten(2).transpose(1, 2).reshape(batch, -1, patches.shape[1])  # (B, (T+R)*H/p*W/p, D)
        return torch.cat([self.text_proj(prompt_embeds), frames], dim=1)


class Rotary3DPositionEmbeddingMixin(BaseMixin):
    """Rotate queries and keys of frame tokens by their (frame, row, column); nothing is added to the tokens."""

    def __init__(self, head_size: int):
        super().__init__()
        self.rotary = remembered(rotary, head_size)

    def position_embedding_forward(self, position_ids: None, **_) -> None:
        """SAT's hook: no addition."""


class Basic3DPositionEmbeddingMixin(BaseMixin):
    """Add sines and cosines of (frame, row, column) to frame tokens, as CogVideoX-2B does; text gets none.

    Released 2B checkpoints carry the table as `mixins.pos_embed.pos_embedding`; it is recomputed here and ignored there.
    """

    def __init__(self, hidden_size: int, interpolation: tuple[float, float, float]):
        super().__init__()
        self._table = remembered(_sincos, hidden_size, interpolation)

    def rotary(self, grid: tuple[int, int, int], text_length: int, device: torch.device) -> None:
        """No rotation."""

    def position_embedding_forward(self, position_ids: None, *, emb: Tensor, grid: tuple[int, int, int], text_length: int, **_) -> Tensor:
        """SAT's hook: what is added to the tokens, (1, S, D)."""
        return self._table(grid, text_length, emb.device, emb.dtype)


def _sincos(
    width: int, interpolation: tuple[float, float, float], grid: tuple[int, int, int], text_length: int, device: torch.device,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    table = sincos_table(grid, width, interpolation).to(device, dtype)
    return torch.cat([table.new_zeros(text_length, width), table])[None]


class AdaLNMixin(BaseMixin):
    """The transformer block: attention and MLP, each modulated and gated by the timestep, apart for text and for frames."""

    def __init__(self, num_layers: int, hidden_size: int, head_size: int, time_embed_dim: int, checkpoint_activations: bool = False):
        super().__init__()
        self.adaLN_modulations = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(time_embed_dim, 12 * hidden_size)) for _ in range(num_layers)
        )
        self.query_layernorm_list = nn.ModuleList(nn.LayerNorm(head_size, eps=EPS) for _ in range(num_layers))
        self.key_layernorm_list = nn.ModuleList(nn.LayerNorm(head_size, eps=EPS) for _ in range(num_layers))
        self.head_size = head_size
        self.checkpoint_activations = checkpoint_activations
        self.attention_kernel = "auto"

    def layer_forward(self, hidden_states: Tensor, mask: Tensor, *, layer_id: Tensor, emb: Tensor, text_length: int, rotary, **_) -> Tensor:
        """SAT's hook for one layer: (B, S, D) -> (B, S, D). The mask is SAT's and unused, as every token sees every other."""
        index = int(layer_id)
        parts = self.transformer.layers[index], self.query_layernorm_list[index], self.key_layernorm_list[index]
        arguments = *parts, self.adaLN_modulations[index](emb), hidden_states, text_length, rotary
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(self.block, *arguments, use_reentrant=False)
        return self.block(*arguments)

    @staticmethod
    def lengths(layer, query_norm, key_norm, modulation, hidden_states, text_length, rotary) -> list[tuple[Tensor, int]]:
        """The arguments of `block` with a dimension that is the number of tokens, and which one."""
        return [(hidden_states, 1)] if rotary is None else [(hidden_states, 1), (rotary, 0)]

    def block(
        self,
        layer: nn.Module,
        query_norm: nn.Module,
        key_norm: nn.Module,
        modulation: Tensor,
        hidden_states: Tensor,
        text_length: int,
        rotary: Tensor | None,
    ) -> Tensor:
        """x + gate * attention(norm(x)), then x + gate * mlp(norm(x)), where norm is LayerNorm(x) * (1 + scale) + shift.

        `modulation` is (B, 12 D): six for frames, then the same six for text.
        """
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.unflatten(-1, (2, 6, 1, -1)).unbind(2)

        normed = affine(layer.input_layernorm(hidden_states), 1 + scale_attn, shift_attn, text_length)
        attended = self.attend(layer.attention, query_norm, key_norm, normed, rotary)
        hidden_states = affine(attended, gate_attn, hidden_states, text_length)
        normed = affine(layer.post_attention_layernorm(hidden_states), 1 + scale_mlp, shift_mlp, text_length)
        mlp = layer.mlp.dense_4h_to_h(product_with_gelu(layer.mlp.dense_h_to_4h, normed, layer.mlp.activation_func))
        return affine(mlp, gate_mlp, hidden_states, text_length)

    def attend(self, layer: nn.Module, query_norm: nn.Module, key_norm: nn.Module, hidden_states: Tensor, rotary) -> Tensor:
        """Self-attention over text, video and references together, with normed and rotated queries and keys."""
        heads = layer.query_key_value(hidden_states).unflatten(-1, (3, -1, self.head_size))  # (B, S, 3, N, head size)
        query, key, value = heads.unbind(2)  # each (B, S, N, head size), and so in memory: attention then writes tokens in order
        query, key = query_norm(query), key_norm(key)
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        attended = attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), self.attention_kernel)
        return layer.dense(attended.transpose(1, 2).flatten(2))


def affine(x: Tensor, scale: Tensor, shift: Tensor, text_length: int) -> Tensor:
    """x * scale + shift, in which text tokens and frame tokens have scales of their own.

    x is (B, S, D); `scale` (B, 2, 1, D) holds the frames' at 0 and the text's at 1; `shift` likewise, or (B, S, D).
    """
    if torch.compiler.is_compiling():  # one expression for all tokens, which becomes part of the pass before it
        is_text = torch.arange(x.shape[1], device=x.device).unsqueeze(1) < text_length
        scale, shift = (part if part.dim() == 3 else torch.where(is_text, *part.unbind(1)[::-1]) for part in (scale, shift))
        return torch.addcmul(shift, x, scale)
    parts = []
    output = None if torch.is_grad_enabled() else torch.empty_like(x)  # one pass without joining when no gradient is wanted
    for kind, tokens in ((1, slice(text_length)), (0, slice(text_length, None))):
        added = shift[:, tokens] if shift.dim() == 3 else shift[:, kind]
        out = None if output is None else output[:, tokens]
        parts.append(torch.addcmul(added, x[:, tokens], scale[:, kind], out=out))
    return torch.cat(parts, dim=1) if output is None else output


class FinalLayerMixin(BaseMixin):
    """Turn tokens back into latent frames, references included."""

    def __init__(self, hidden_size: int, time_embed_dim: int, patch_size: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=EPS)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(time_embed_dim, 2 * hidden_size))
        self.patch_size, self.out_channels = patch_size, out_channels

    def final_forward(self, logits: Tensor, *, emb: Tensor, text_length: int, grid: tuple[int, int, int], **_) -> Tensor:
        """SAT's hook after its own final LayerNorm: tokens (B, S, D) -> latents (B, T+R, C, H, W)."""
        shift, scale = self.adaLN_modulation(emb)[:, None].chunk(2, dim=-1)
        tokens = self.linear(torch.addcmul(shift, self.norm_final(logits[:, text_length:]), 1 + scale))
        frames, rows, columns = grid
        p, c = self.patch_size, self.out_channels
        patches = tokens.view(-1, frames, rows, columns, c, p, p)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, frames, c, rows * p, columns * p)
