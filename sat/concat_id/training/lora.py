"""Low-rank adaptation (Hu et al. 2021): the network stays, small products beside some of its linear layers are trained."""

import fnmatch
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from concat_id.config import LoraConfig
from concat_id.errors import UserError

FILE = "lora.safetensors"
DOWN, UP = ".down.weight", ".up.weight"


class LowRank(nn.Module):
    """A linear layer W beside which alpha / rank * B A is trained: A `down` starts random, B `up` at zero."""

    def __init__(self, base: nn.Module, config: LoraConfig, generator: torch.Generator):
        super().__init__()
        out_features, in_features = base.weight.shape
        self.base, self.scale = base, config.alpha / config.rank
        self.down = nn.Linear(in_features, config.rank, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(config.rank, out_features, bias=False, dtype=base.weight.dtype)
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(self.down.weight.shape, generator=generator) / in_features**0.5)
            self.up.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """W x + alpha / rank * B A x."""
        return self.base(x) + self.scale * self.up(self.down(self.dropout(x)))


def add_low_rank(network: nn.Module, config: LoraConfig, generator: torch.Generator) -> list[str]:
    """Freeze `network` and put a `LowRank` in place of every linear layer that `targets` match; returns their names."""
    network.requires_grad_(False)
    linear = [name for name, module in network.named_modules() if getattr(module, "weight", None) is not None and module.weight.dim() == 2]
    chosen = [name for name in linear if any(fnmatch.fnmatchcase(name, target) for target in config.targets)]
    if not chosen:
        targets = ", ".join(config.targets)
        raise UserError(f"model.lora.targets: found {targets}, which match no linear layer, expected patterns such as *.attention.dense")
    for name in chosen:
        parent, _, last = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, last, LowRank(getattr(owner, last), config, generator))
    return chosen


def save_low_rank(folder: Path, tensors: dict[str, Tensor], scale: float) -> None:
    """Write the trained products beside what they were trained on."""
    metadata = {"scale": repr(scale), "format": "W + scale * up @ down"}
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)


def load_low_rank(folder: str | Path) -> tuple[dict[str, Tensor], float]:
    """Read what `save_low_rank` wrote; raises `UserError` for a folder without it."""
    path = Path(folder) / FILE
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, float((file.metadata() or {})["scale"])  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected low-rank weights; name a folder such as exps/RUN/100") from error


def merged(state_dict: dict[str, Tensor], low_rank: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Add the products to the weights they belong to, in float32; types stay as they are."""
    result: dict[str, Any] = dict(state_dict)
    for name, down in low_rank.items():
        if not name.endswith(DOWN):
            continue
        target = name.removesuffix(DOWN)
        up, weight = low_rank.get(target + UP), state_dict.get(f"{target}.weight")
        if up is None or weight is None or weight.shape != (up.shape[0], down.shape[1]):
            raise UserError(f"{FILE}: {target}: does not fit the weights; merge it into those it was trained on")
        result[f"{target}.weight"] = (weight.float() + scale * up.float() @ down.float()).to(weight.dtype)
    return result


def low_rank_scale(network: nn.Module) -> float | None:
    """The scale of the network's products, None if it has none."""
    return next((module.scale for module in network.modules() if isinstance(module, LowRank)), None)
