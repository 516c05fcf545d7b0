"""Low-rank products in SAT's and in diffusers' names: exactly the same change of the same weights."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from concat_id.conversion.adapter_metadata import saved_scale
from concat_id.conversion.lazy import LazyTensors, changed
from concat_id.errors import UserError, one_line
from concat_id.models.tensor_names import Pieces, modules
from concat_id.models.wan.weights import PREFIX, count_layers, native_names, read_tensors
from concat_id.weights.loading import check_floats, load_files
from concat_id.weights.low_rank import DIFFUSERS_FILE, DOWN, FILE, UP, blocks, load_low_rank, with_product

DIFFUSERS_PREFIX, DIFFUSERS_DOWN, DIFFUSERS_UP, ALPHA = "transformer.", ".lora_A.weight", ".lora_B.weight", ".alpha"

COMFYUI_PREFIX = "diffusion_model."
PEFT = re.compile(r"\.lora_([AB])(\.default)?\.weight$")


class Product(NamedTuple):
    """Adds up @ down to a weight (out, in), block by block of rows where there are several: down (blocks * rank, in), up (out, rank)."""

    down: Tensor
    up: Tensor


Products = dict[str, Product]
"""Layers' names, of SAT, Wan or diffusers, and what is added to their weights."""
LoraMode = Literal["merge", "keep"]


def read_sat_products(folder: Path) -> Products:
    """Read a training checkpoint's products, their scale multiplied in."""
    tensors, scale = load_low_rank(folder)
    return _paired(tensors, DOWN, UP, lambda layer, rank: scale, str(folder))


def read_diffusers_products(folder: Path) -> Products:
    """Read what `write_diffusers_products` or diffusers' save_lora_weights wrote."""
    path = folder / DIFFUSERS_FILE
    tensors = load_files([path])
    check_floats(tensors, str(path))
    if foreign := next((name for name in tensors if not name.startswith(DIFFUSERS_PREFIX)), None):
        raise UserError(f"{path}: found {one_line(f'{foreign:.80}')}, expected names that start with {DIFFUSERS_PREFIX}, as"
                        " low-rank weights of the transformer have; save those alone")  # fmt: skip
    own = {name.removeprefix(DIFFUSERS_PREFIX): tensor for name, tensor in tensors.items()}
    alphas = {name.removesuffix(ALPHA): own.pop(name) for name in list(own) if name.endswith(ALPHA)}
    if wrong := next((layer for layer, alpha in alphas.items() if alpha.numel() != 1), None):
        raise UserError(f"{path}: {wrong}{ALPHA}: found {alphas[wrong].numel()} numbers, expected one; save the file again")

    told = saved_scale(path, DIFFUSERS_PREFIX)
    if told and alphas:
        raise UserError(f"{path}: {next(iter(alphas))}{ALPHA}: found one beside the settings in the metadata, expected one of the two;"
                        " save the file again")  # fmt: skip

    def scale(layer: str, rank: int) -> float:
        return float(alphas[layer]) / rank if layer in alphas else 1.0

    return _paired(own, DIFFUSERS_DOWN, DIFFUSERS_UP, told or scale, str(path))


def read_peft_products(path: Path, trust: bool = False) -> Products | None:
    """Read the low-rank weights that the original's Wan training leaves, under Wan's names; None for a file of other weights.

    ComfyUI's prefix is left out. Where the file does not tell their scale, it is 1, by that training's defaults and in ComfyUI.
    """
    tensors = {name.removeprefix(COMFYUI_PREFIX): tensor for name, tensor in read_tensors(path, trust).items()}
    if not all(PEFT.search(name) for name in tensors):
        return None
    check_floats(tensors, str(path))
    names, layers = native_names(count_layers(tensors), ref_modulation=True), [PEFT.sub("", name) for name in tensors]
    if unknown := next((layer for layer in layers if f"{layer}.weight" not in names), None):
        raise UserError(f"{path}: found low-rank weights of {unknown}, expected {FILE} of a training, or Wan's own names; merge it where it"
                        " was made")  # fmt: skip
    products = _paired({PEFT.sub(r".lora_\1.weight", name): tensor for name, tensor in tensors.items()},
                       DIFFUSERS_DOWN, DIFFUSERS_UP, saved_scale(path) or (lambda layer, rank: 1.0), str(path))  # fmt: skip
    return {PREFIX + names[f"{layer}.weight"].removesuffix(".weight"): product for layer, product in products.items()}


def write_diffusers_products(folder: Path, products: Products) -> None:
    """Write products for load_lora_weights."""
    tensors = {}
    for layer, product in products.items():
        names = f"{DIFFUSERS_PREFIX}{layer}{DIFFUSERS_DOWN}", f"{DIFFUSERS_PREFIX}{layer}{DIFFUSERS_UP}"
        tensors |= zip(names, (product.down.clone(), product.up.contiguous()), strict=True)
    safetensors.torch.save_file(tensors, folder / DIFFUSERS_FILE, {"format": "pt"})


def to_diffusers(products: Products, num_layers: int) -> Products:
    """Products of diffusers' layers. Where a SAT layer of one block becomes several, they share its A and cut up its B."""
    made, known = {}, {sat: rest for sat, *rest in modules(num_layers)}
    for layer, product in products.items():
        if layer not in known:
            raise UserError(f"low-rank products of {layer}: diffusers has no such layer; use --lora merge")
        made |= _cut(product, *known[layer])
    return made


def _cut(product: Product, count: int, parts: Mapping[str, Pieces]) -> Products:
    cut = blocks(*product)
    if len(cut) != count:
        cut = [(product.down, rows) for rows in product.up.chunk(count)]
    return {name: Product(cut[pieces[0]][0], torch.cat([cut[piece][1] for piece in pieces])) for name, pieces in parts.items()}


def with_products(tensors: Mapping[str, Tensor], products: Products, source: str, dtype: torch.dtype | None = None) -> LazyTensors:
    """Weights of the names of `products` with those added as they are asked for, in `dtype`. Raises `UserError` for what fits none."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    for layer, product in products.items():
        if f"{layer}.weight" not in tensors:
            raise UserError(f"{source}: {layer}: the weights have no such layer; name those that it was trained on")
        changes[f"{layer}.weight"] = partial(_add, product, layer, source, dtype)
    return changed(tensors, changes)


def _add(product: Product, layer: str, source: str, dtype: torch.dtype | None, weight: Tensor) -> Tensor:
    shape = product.up.shape[0], product.down.shape[1]
    if weight.shape != shape:
        raise UserError(f"{source}: {layer}: found a product for {shape}, expected {tuple(weight.shape)}; name what it was trained on")
    return with_product(weight, product.down, product.up, 1.0, dtype)


def _paired(tensors: Mapping[str, Tensor], down: str, up: str, scale: Callable[[str, int], float], source: str) -> Products:
    layers = [name.removesuffix(down) for name in tensors if name.endswith(down)]
    foreign = sorted(tensors.keys() - {layer + kind for layer in layers for kind in (down, up)})
    pairs = {layer: (tensors[layer + down], tensors[layer + up]) for layer in layers if layer + up in tensors}
    lonely = [layer for layer in layers if layer not in pairs or not _is_pair(*pairs[layer], fused=down == DOWN)]
    if foreign or lonely or not layers:
        found = (foreign or lonely or ["nothing"])[0]
        raise UserError(f"{source}: found {found}, expected pairs of <layer>{down} and <layer>{up}; it is no low-rank file of this kind")
    return {layer: Product(below, _scaled(above, scale(layer, above.shape[1]))) for layer, (below, above) in pairs.items()}


def _is_pair(down: Tensor, up: Tensor, fused: bool) -> bool:
    if not down.dim() == up.dim() == 2 or 0 in (*down.shape, *up.shape) or len(down) % up.shape[1]:
        return False
    parts = len(down) // up.shape[1]
    return parts == 1 or fused and len(up) % parts == 0


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    """Multiply, in float32 where the tensor's own type cannot hold the result."""
    exact = tensor.float() * scale
    rounded = exact.to(tensor.dtype)
    return rounded if torch.equal(rounded.float(), exact) else exact
