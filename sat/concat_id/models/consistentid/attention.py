"""Attention of Stable Diffusion's UNet with the adapter's products beside it, and identity tokens in the cross-attentions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRankMap(nn.Module):
    """A product of two low matrices beside a linear layer, which starts as zero."""

    def __init__(self, width: int, out: int, rank: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., out)."""
        return self.up(self.down(x))


class IdentityAttention(nn.Module):
    """A processor for one of the UNet's attention layers (diffusers' `Attention`).

    The output is attention over the text plus `scale` times attention over the identity tokens, two separate softmaxes; the products
    act on everything but the identity's keys and values. `text` is the width of what a cross-attention attends to.
    """

    def __init__(self, width: int, text: int | None, rank: int):
        super().__init__()
        self.scale = 1.0
        self.records = False  # whether attention maps are wanted of it
        self.to_q_lora, self.to_out_lora = LowRankMap(width, width, rank), LowRankMap(width, width, rank)
        self.to_k_lora, self.to_v_lora = LowRankMap(text or width, width, rank), LowRankMap(text or width, width, rank)
        self.is_cross = text is not None
        if self.is_cross:
            self.to_k_ip, self.to_v_ip = nn.Linear(text, width, bias=False), nn.Linear(text, width, bias=False)

    def __call__(  # by whose parameters diffusers' layers decide what to pass on
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
        temb: Tensor | None = None, identity: Tensor | None = None, maps: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend from pixels (B, S, D); `identity` are tokens (B, 4, text), `maps` takes attention maps (B, N, S, L) where wanted."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _heads(attn, attn.to_q(hidden_states) + self.to_q_lora(hidden_states))
        key = _heads(attn, attn.to_k(context) + self.to_k_lora(context))
        value = _heads(attn, attn.to_v(context) + self.to_v_lora(context))
        if maps is not None and self.records:
            weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
            maps.append(weights)
            attended = weights @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        if self.is_cross and identity is not None and self.scale:
            keys, values = _heads(attn, self.to_k_ip(identity)), _heads(attn, self.to_v_ip(identity))
            attended = attended + self.scale * F.scaled_dot_product_attention(query, keys, values)
        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](attended) + self.to_out_lora(attended))


def _heads(attn: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def processors_of(unet: nn.Module, rank: int) -> nn.ModuleList:
    """Make a processor for every attention layer, in diffusers' order: down, up, then the middle; even ones are self-attentions.

    The identity's keys and values start as the text's.
    """
    made = []
    for name in unet.attn_processors:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        text = layer.to_k.in_features if name.endswith("attn2.processor") else None
        processor = IdentityAttention(layer.to_q.in_features, text, rank)
        if processor.is_cross:
            with torch.no_grad():
                processor.to_k_ip.weight.copy_(layer.to_k.weight)
                processor.to_v_ip.weight.copy_(layer.to_v.weight)
        made.append(processor)
    return nn.ModuleList(made)
