"""Wan's transformer on disk: Wan's own names, diffusers' folders and this project's training checkpoints."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from concat_id.config.wan import WanTransformerConfig
from concat_id.errors import UserError, warn
from concat_id.files.paths import kind_of
from concat_id.models.wan.transformer import WanDiffusionTransformer
from concat_id.weights.folders import AT_WAN, OF_ANY_RANK, find_sat_checkpoint, require_nothing_beside, some, weight_files, what_to_do_with
from concat_id.weights.loading import SAT_PREFIX, check_fit, check_floats, check_named, load_files, load_strictly

PREFIX = "network."  # of names inside WanDiffusionTransformer
MARKS = ("head.modulation", "condition_embedder.time_proj.weight")  # a tensor of the whole network, in Wan's names and in diffusers'
STEM = "diffusion_pytorch_model"
INDEX = ".index.json"
NUMBER = re.compile(r"[0-9]{1,4}")  # of a layer
Value = TypeVar("Value")
ATTENTIONS = (("self_attn", "attn1"), ("cross_attn", "attn2"))

# Modules and parameters: Wan's name, diffusers'.
RENAMED = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
RENAMED_IN_BLOCK = {
    **{f"{wan}.{x}": f"{diffusers}.to_{x}" for wan, diffusers in ATTENTIONS for x in "qkv"},
    **{f"{wan}.o": f"{diffusers}.to_out.0" for wan, diffusers in ATTENTIONS},
    "norm3": "norm2",  # before cross-attention; the other two have no weights
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
NORMS_IN_BLOCK = {f"{wan}.norm_{x}": f"{diffusers}.norm_{x}" for wan, diffusers in ATTENTIONS for x in "qk"}
REFERENCE = {"time_projection_ref.1": "condition_embedder.time_proj_ref"}  # of the AdaLN variant
REFERENCE_IN_BLOCK = {"modulation_ref": "scale_shift_table_ref"}


def native_names(num_layers: int, ref_modulation: bool) -> dict[str, str]:
    """Every tensor of the transformer: Wan's name -> diffusers'."""
    modules = RENAMED | (REFERENCE if ref_modulation else {})
    names = {f"{wan}.{kind}": f"{diffusers}.{kind}" for wan, diffusers in modules.items() for kind in ("weight", "bias")}
    names["head.modulation"] = "scale_shift_table"
    inside = {f"{wan}.{kind}": f"{diffusers}.{kind}" for wan, diffusers in RENAMED_IN_BLOCK.items() for kind in ("weight", "bias")}
    inside |= {f"{wan}.weight": f"{diffusers}.weight" for wan, diffusers in NORMS_IN_BLOCK.items()}
    inside |= {"modulation": "scale_shift_table"} | (REFERENCE_IN_BLOCK if ref_modulation else {})
    for index in range(num_layers):
        names |= {f"blocks.{index}.{wan}": f"blocks.{index}.{diffusers}" for wan, diffusers in inside.items()}
    return names


def to_native_names(tensors: Mapping[str, Value], num_layers: int) -> dict[str, Value]:
    """Give tensors under diffusers' names Wan's own; unknown names stay as they are."""
    back = {diffusers: wan for wan, diffusers in native_names(num_layers, ref_modulation=True).items()}
    return {back.get(name, name): tensor for name, tensor in tensors.items()}


def is_native(names: Iterable[str]) -> bool:
    """Tell whether these are Wan's own names."""
    return "head.modulation" in names


def has_ref_modulation(names: Iterable[str]) -> bool:
    """Tell whether these are names (Wan's) of the AdaLN variant."""
    return any(name.startswith("time_projection_ref.") or name.endswith(".modulation_ref") for name in names)


def start_references(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Add weights for references (Wan's names) that are copies of the video's: what they shared with it."""
    shared = {name: name.replace("_ref", "") for name in native_names(num_layers, ref_modulation=True) if "_ref" in name}
    return tensors | {new: tensors[old].clone() for new, old in shared.items() if old in tensors}


def load_wan_transformer(
    path: str | Path, config: WanTransformerConfig, dtype: torch.dtype = torch.bfloat16, trust: bool = False, start: bool = True
) -> WanDiffusionTransformer:
    """Read the transformer that `read_wan_state` reads; weights stay mapped to the file where `dtype` is the file's."""
    network = WanDiffusionTransformer(config, device="meta")
    load_strictly(network, read_wan_state(Path(path), config, trust, start), str(path), dtype=dtype)
    return network


def read_wan_state(path: Path, config: WanTransformerConfig | None = None, trust: bool = False, start: bool = True) -> dict[str, Tensor]:
    """Read a transformer's tensors from any of the formats, under the names they have in `WanDiffusionTransformer`.

    Without `config` they are what the file says. Where a file for one modulation (the base Wan2.1, the first stage) meets
    `config.ref_modulation`, references start from copies of the video's weights, and a warning says so; without `start` it is refused.
    Raises `UserError` for weights that do not fit.
    """
    tensors = read_wan_tensors(path, trust)
    given = has_ref_modulation(tensors)
    config = config or WanTransformerConfig(num_layers=count_layers(tensors), ref_modulation=given)
    if given and not config.ref_modulation:
        expected = "expected one modulation for all (first stage); set ref_modulation (--use_adaln), or name first_stage.pt"
        raise UserError(f"{path}: found the AdaLN variant, which has modulations of its own for references, {expected}")
    if config.ref_modulation and not given:
        if not start:
            missing = "modulations of its own for references (second_stage_adaln.pt)"
            raise UserError(f"{path}: found no weights of the AdaLN variant, expected {missing}; leave ref_modulation (--use_adaln) out")
        tensors = start_references(tensors, config.num_layers)
        warn(f"{path}: has no modulations for references; they start as copies of the video's")
    check_names(tensors, config, path)
    names = native_names(config.num_layers, config.ref_modulation)
    return {PREFIX + names[name]: tensor for name, tensor in tensors.items()}


def wan_files(path: str | Path, alone: bool = True) -> list[Path]:
    """List the files of a transformer's weights: one, an index's shards, those of a diffusers folder or of a training checkpoint.

    Raises `UserError` for a diffusers folder with low-rank weights beside the rest, unless these need not be `alone`.
    """
    path = Path(path)
    is_folder = kind_of(path) == "a folder"
    if is_folder and (kind_of(path / "latest") == "a file" or any(path.glob(OF_ANY_RANK))):
        return [find_sat_checkpoint(path)]
    if is_folder:
        if alone:
            require_nothing_beside(path)
        return weight_files(path / "transformer" if os.path.isdir(path / "transformer") else path, (STEM,))
    if path.name.endswith(INDEX):
        return weight_files(path.parent, (path.name.removesuffix(INDEX).removesuffix(".safetensors"),))
    return [path]


def read_tensors(path: str | Path, trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors that a file or folder in any of the formats holds, whatever they are of."""
    tensors = load_files(wan_files(path), trust)
    if isinstance(module := tensors.get("module"), dict):
        check_named(module, str(path))
        ours = {name.removeprefix(SAT_PREFIX): tensor for name, tensor in module.items() if name.startswith(SAT_PREFIX)}
        beside = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}  # as the original's training leaves them
        return ours or beside or module
    return tensors


def read_wan_tensors(path: str | Path, trust: bool = False) -> dict[str, Tensor]:
    """Read a transformer's tensors under Wan's own names, from any of the formats."""
    tensors = read_tensors(path, trust)
    names = given_names(tensors)
    if not is_native(names):
        expected = what_to_do_with(names, Path(path), AT_WAN) or "expected the weights of Wan's transformer; name another file"
        raise UserError(f"{path}: found {some(names)}, {expected}")
    check_floats(tensors, str(path))
    return {name: tensors[given] for name, given in names.items()}


def given_names(names: Iterable[str]) -> dict[str, str]:
    """Say which of the names in any of the formats each of Wan's own is; unknown names stand for themselves.

    A prefix, such as other programs' `model.diffusion_model.`, is left out: what stands before the names of `MARKS`.
    """
    names = list(names)
    if is_native(names):
        return dict(zip(names, names, strict=True))
    prefix = next((name.removesuffix(mark) for name in names for mark in MARKS if name.endswith(mark)), PREFIX)
    bare = {name.removeprefix(prefix): name for name in names}
    return to_native_names(bare, count_layers(bare))


def count_layers(names: Iterable[str]) -> int:
    """Count the layers that tensors of these names, Wan's or diffusers', are of."""
    numbers = (name.split(".")[1] for name in names if name.startswith("blocks."))
    return 1 + max((int(number) for number in numbers if NUMBER.fullmatch(number)), default=-1)


def check_names(given: Iterable[str], config: WanTransformerConfig, path: str | Path) -> None:
    """Raise `UserError` unless these names (Wan's own) are the transformer's."""
    expected = native_names(config.num_layers, config.ref_modulation)
    check_fit(dict.fromkeys(given), dict.fromkeys(expected), str(path), "Wan's transformer")
