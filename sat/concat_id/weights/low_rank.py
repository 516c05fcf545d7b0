"""Low-rank products on disk: lora.safetensors holds, for some layers with weights W, down (A) and up (B) of W + scale * B A."""

import math
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from concat_id.errors import UserError, reason_of
from concat_id.files.paths import require_file

FILE = "lora.safetensors"
DOWN, UP = ".down.weight", ".up.weight"


def save_low_rank(folder: Path, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Write the trained products beside what they were trained on; names are <layer>.down.weight and <layer>.up.weight."""
    metadata = {"scale": repr(scale), "format": "W + scale * up @ down"}
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)


def load_low_rank(folder: str | Path) -> tuple[dict[str, Tensor], float]:
    """Read what `save_low_rank` wrote; raises `UserError` for a folder without it."""
    path = Path(folder) / FILE
    require_file(path, "low-rank weights", "name a folder such as exps/RUN/100")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, scale = {name: file.get_tensor(name) for name in file.keys()}, float((file.metadata() or {}).get("scale", "none"))  # noqa: SIM118
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        reason = reason_of(error)
        raise UserError(f"{path}: cannot be read ({reason}), expected low-rank weights; name a folder such as exps/RUN/100") from error
    wrong = [name for name, tensor in tensors.items() if not tensor.is_floating_point() or tensor.dim() != 2]
    if wrong or not math.isfinite(scale):
        found = f"{wrong[0]} ({tensors[wrong[0]].dtype}, {tuple(tensors[wrong[0]].shape)})" if wrong else f"the scale {scale}"
        raise UserError(f"{path}: found {found}, expected matrices of floating-point numbers and a finite scale; write it again")
    return tensors, scale


def with_product(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * B A, in float32; the weight's type stays."""
    return (weight.float() + scale * up.float() @ down.float()).to(weight.dtype)
