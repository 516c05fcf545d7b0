"""What turns a face into text tokens: its identity into four tokens of their own, its parts into what replaces words of the prompt.

State-dict names are those of the released file.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PerceiverAttention(nn.Module):
    """Latents attend over image features and themselves; one matrix makes keys, then values."""

    def __init__(self, width: int, heads: int, head_size: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)  # of the features, of the latents
        self.to_q = nn.Linear(width, heads * head_size, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """Attend from latents (B, L, D) over features (B, N, D)."""
        features, latents = self.norm1(features), self.norm2(latents)
        keys, values = self.to_kv(torch.cat([features, latents], dim=1)).chunk(2, dim=-1)
        query, keys, values = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in (self.to_q(latents), keys, values))
        return self.to_out(F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2))


class Perceiver(nn.Module):
    """A resampler of image features (B, N, features) into as many tokens (B, L, out) as it is given latents."""

    def __init__(self, features: int, width: int, out: int, depth: int, heads: int, head_size: int = 64):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(features, width), nn.Linear(width, out)
        self.norm_out = nn.LayerNorm(out)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, heads, head_size), _feed_forward(width)]) for _ in range(depth)
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Resample features for latents (B, L, width)."""
        features = self.proj_in(features)
        for attention, feed_forward in self.layers:
            latents = latents + attention(features, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class IdentityProjection(nn.Module):
    """A face's vector and the photo's features into identity tokens, as in IP-Adapter-FaceID-Plus."""

    def __init__(self, vector: int, features: int, width: int, tokens: int, depth: int, heads: int):
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Sequential(nn.Linear(vector, 2 * vector), nn.GELU(), nn.Linear(2 * vector, tokens * width))
        self.norm = nn.LayerNorm(width)
        self.perceiver_resampler = Perceiver(features, width, width, depth, heads)

    def forward(self, vector: Tensor, features: Tensor) -> Tensor:
        """Make tokens (B, 4, D) of unit vectors (B, 512), zeros for no face, and features (B, N, C)."""
        latents = self.norm(self.proj(vector).unflatten(-1, (self.tokens, -1)))
        return self.perceiver_resampler(latents, features)


class PartProjection(Perceiver):
    """The features of one face part into one token."""

    def __init__(self, features: int, width: int, out: int, depth: int, heads: int, head_size: int = 64):
        super().__init__(features, width, out, depth, heads, head_size)
        self.latents = nn.Parameter(torch.randn(1, 1, width) / width**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Make tokens (B, D) of features (B, N, C)."""
        return super().forward(self.latents.expand(len(features), -1, -1), features)[:, 0]


class _Mlp(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.layernorm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))


class FuseModule(nn.Module):
    """A word and a face part into what stands in the word's place."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp1, self.mlp2, self.layer_norm = _Mlp(2 * width, width), _Mlp(width, width), nn.LayerNorm(width)

    def forward(self, words: Tensor, parts: Tensor) -> Tensor:
        """Fuse words (N, D) with projected parts (N, D)."""
        fused = self.mlp1(torch.cat([words, parts], dim=-1)) + words
        return self.layer_norm(self.mlp2(fused) + fused)


class FacialEncoder(nn.Module):
    """Puts the parts of a face into the words of a prompt that name them."""

    def __init__(self, features: int, width: int, text: int, depth: int, heads: int, head_size: int = 64):
        super().__init__()
        self.visual_projection = PartProjection(features, width, text, depth, heads, head_size)
        self.fuse_module = FuseModule(text)

    def forward(self, text: Tensor, parts: Tensor, positions: Sequence[Sequence[int]]) -> Tensor:
        """Return a copy of text (B, L, D) whose words at the k-th of a sample's positions hold its k-th part.

        `parts` are features (B, P, N, C), of which a sample uses as many as it has positions.
        """
        samples = [sample for sample, places in enumerate(positions) for _ in places]
        places = [place for each in positions for place in each]
        if not places:
            return text.clone()
        used = torch.cat([each[: len(own)] for each, own in zip(parts, positions, strict=True)])
        fused = self.fuse_module(text[samples, places], self.visual_projection(used))
        return text.index_put((torch.tensor(samples, device=text.device), torch.tensor(places, device=text.device)), fused.to(text.dtype))
