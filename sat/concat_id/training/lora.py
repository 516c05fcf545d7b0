"""Low-rank adaptation (Hu et al. 2021): the network stays, small products beside some of its linear layers are trained.

The products and how they start are those of SAT's `lora2.LoraMixin`, which the released configurations name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concat_id.config.cogvideox import LoraConfig, OfVideos
from concat_id.config.typed import nearest
from concat_id.errors import UserError
from concat_id.models.tensor_names import POSITIONS
from concat_id.weights.loading import SAT_PREFIX, matches

FROZEN_ANYWAY = "first_stage_model", "conditioner"  # autoencoder and text encoder are never trained
FUSED = {"query_key_value": 3}  # layers of several parts, each of which has a product of its own


class LowRank(nn.Module):
    """A linear layer W beside which alpha / rank * B A is trained for each of its parts: A `down` starts random, B `up` at zero."""

    def __init__(self, base: nn.Module, config: LoraConfig, parts: int, generator: torch.Generator):
        super().__init__()
        out_features, in_features = base.weight.shape
        self.base, self.scale, self.parts = base, config.alpha / config.rank, parts
        self.down = nn.Linear(in_features, parts * config.rank, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(config.rank, out_features, bias=False, dtype=base.weight.dtype)
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            self.down.weight.copy_((2 * torch.rand(self.down.weight.shape, generator=generator) - 1) / in_features**0.5)
            self.up.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """W x + alpha / rank * B A x."""
        narrow, rows = self.down(self.dropout(x)).chunk(self.parts, dim=-1), self.up.weight.chunk(self.parts)
        wide = [F.linear(part, block) for part, block in zip(narrow, rows, strict=True)]
        return self.base(x) + self.scale * torch.cat(wide, dim=-1)


def choose_trained(network: nn.Module, model: OfVideos, generator: torch.Generator) -> list[str]:
    """Freeze what is not trained; returns the names of the layers with products, if `model` asks for some.

    Raises `UserError` for a prefix that names nothing, and if nothing is left to train.
    """
    prefixes = tuple(getattr(model, "not_trainable_prefixes", ()))
    names = [SAT_PREFIX + name for name, _ in network.named_parameters()]
    for prefix in prefixes:
        if prefix != "all" and not prefix.startswith(FROZEN_ANYWAY) and not any(name.startswith(prefix) for name in names):
            expected = f"all, or the beginning of a parameter's name; the nearest is {nearest(prefix, names)}"
            raise UserError(f"model.not_trainable_prefixes: found {prefix}, expected {expected}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name != POSITIONS and "all" not in prefixes and not f"{SAT_PREFIX}{name}".startswith(prefixes))
    if model.lora:
        return add_low_rank(network, model.lora, generator)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"model.not_trainable_prefixes: found {', '.join(prefixes)}, which leaves nothing to train; remove it or add lora")
    return []


def add_low_rank(network: nn.Module, config: LoraConfig, generator: torch.Generator) -> list[str]:
    """Freeze `network` and put a `LowRank` in place of every linear layer that `targets` match; returns their names."""
    network.requires_grad_(False)
    linear = [name for name, module in network.named_modules() if getattr(module, "weight", None) is not None and module.weight.dim() == 2]
    chosen = [name for name in linear if matches(name, config.targets)]
    if not chosen:
        targets = ", ".join(config.targets)
        expected = "expected patterns such as *.attention.dense (Wan: network.blocks.*.attn1.to_q)"
        raise UserError(f"model.lora.targets: found {targets}, which match no linear layer, {expected}")
    for name in chosen:
        parent, _, last = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, last, LowRank(getattr(owner, last), config, FUSED.get(last, 1), generator))
    return chosen


def low_rank_scale(network: nn.Module) -> float | None:
    """The scale of the network's products, None if it has none."""
    return next((module.scale for module in network.modules() if isinstance(module, LowRank)), None)
