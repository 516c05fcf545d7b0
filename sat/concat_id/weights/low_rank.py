"""Low-rank products on disk: lora.safetensors holds, for some layers with weights W, down (A) and up (B) of W + scale * B A.

A fused layer (query, key and value in one) has a product for each of its parts, as SAT's `lora2` has: `down` (parts * rank, in) and `up`
(out, rank) are cut into as many blocks of rows, and block i of `up` times block i of `down` is added to block i of W.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from concat_id.errors import UserError, reason_of
from concat_id.files.paths import require_file

FILE = "lora.safetensors"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # what load_lora_weights(folder) looks for
DOWN, UP = ".down.weight", ".up.weight"
ORIGINAL, MATRIX = ".original.", ".matrix_"  # SAT's names of what products belong to, and of A and B


def save_low_rank(folder: Path, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Write the trained products beside what they were trained on; names are <layer>.down.weight and <layer>.up.weight."""
    metadata = {"scale": repr(scale)}  # alone, as safetensors writes several in any order
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)


def load_low_rank(folder: str | Path) -> tuple[dict[str, Tensor], float]:
    """Read what `save_low_rank` wrote; raises `UserError` for a folder without it."""
    path = Path(folder) / FILE
    require_file(path, "low-rank weights", "name a folder such as exps/RUN/100")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, scale = {name: file.get_tensor(name) for name in file.keys()}, float((file.metadata() or {}).get("scale", "none"))  # noqa: SIM118
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}), expected low-rank weights; name one like exps/RUN/100") from error
    wrong = [name for name, tensor in tensors.items() if not tensor.is_floating_point() or tensor.dim() != 2]
    if wrong or not math.isfinite(scale):
        found = f"{wrong[0]} ({tensors[wrong[0]].dtype}, {tuple(tensors[wrong[0]].shape)})" if wrong else f"the scale {scale}"
        raise UserError(f"{path}: found {found}, expected matrices of floating-point numbers and a finite scale; write it again")
    return tensors, scale


def blocks(down: Tensor, up: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cut `down` and `up` into the products of their blocks of rows."""
    parts = len(down) // up.shape[1]
    return list(zip(down.chunk(parts), up.chunk(parts), strict=True))


def with_product(weight: Tensor, down: Tensor, up: Tensor, scale: float, dtype: torch.dtype | None = None) -> Tensor:
    """W + scale * B A, in float32, as `dtype`; None: the weight's own, but for 8 bits, which round a usual product away, bfloat16."""
    return _with_products(weight, blocks(down, up), scale, dtype)


def _with_products(weight: Tensor, pairs: Iterable[Sequence[Tensor]], scale: float, dtype: torch.dtype | None = None) -> Tensor:
    product = torch.cat([rows.float() @ block.float() for block, rows in pairs])
    return (weight.float() + scale * product).to(dtype or (weight.dtype if weight.dtype.itemsize > 1 else torch.bfloat16))


def merge_sat_products(tensors: Mapping[str, Tensor], source: str, alpha: float) -> dict[str, Tensor]:
    """Add the products of SAT's `lora2.LoraMixin` to the weights they belong to, as its `merge_linear_lora` does.

    `alpha` is `lora_alpha`, which no checkpoint tells. Raises `UserError`, naming `source`, for products that do not fit.
    """
    merged = {name.replace(ORIGINAL, "."): tensor for name, tensor in tensors.items() if MATRIX not in name}
    for layer in {name.partition(MATRIX)[0] for name in tensors if MATRIX in name}:
        parts = range(sum(name.startswith(f"{layer}{MATRIX}A.") for name in tensors))
        try:
            pairs = [[tensors[f"{layer}{MATRIX}{side}.{part}"] for side in "AB"] for part in parts]  # their rows may differ in number
            merged[f"{layer}.weight"] = _with_products(merged[f"{layer}.weight"], pairs, alpha / len(pairs[0][0]))
        except (LookupError, RuntimeError, ArithmeticError, ValueError, TypeError, AttributeError) as error:
            expected = "expected pairs of SAT's lora2 beside the weight they change; save the checkpoint again"
            raise UserError(f"{source}: the low-rank matrices of {layer} do not fit ({reason_of(error)}), {expected}") from error
    return merged
