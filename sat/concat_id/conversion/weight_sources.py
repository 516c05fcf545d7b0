"""What there is to convert: released checkpoints, training checkpoints with averages beside them, low-rank products, ZeRO's shards."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from concat_id.config.loading import load_config
from concat_id.config.yaml_files import read_yaml, run_configuration
from concat_id.conversion import zero
from concat_id.conversion.low_rank_products import (
    DIFFUSERS_DOWN,
    DIFFUSERS_FILE,
    DIFFUSERS_PREFIX,
    DIFFUSERS_UP,
    PEFT,
    LoraMode,
    Products,
    read_peft_products,
    read_sat_products,
    with_products,
)
from concat_id.errors import UserError
from concat_id.files.paths import kind_of, resolve_path
from concat_id.models.wan.weights import PREFIX as WAN_PREFIX
from concat_id.models.wan.weights import read_tensors, read_wan_state, wan_files
from concat_id.weights.folders import OF_ANY_RANK, find_sat_checkpoint, read_tag, some
from concat_id.weights.loading import SAT_PREFIX, load_sat_checkpoint, weights_digest
from concat_id.weights.low_rank import FILE as LOW_RANK_FILE
from concat_id.weights.low_rank import MATRIX

AVERAGED = "-ema"


@dataclass(frozen=True)
class WeightSource:
    """Weights of a transformer under SAT's names; `open` maps them into memory, where they stay as long as its result."""

    path: Path
    digest: str
    open: Callable[[], Mapping[str, Tensor]]
    products: Products | None = None
    base: "WeightSource | None" = None  # what the products belong to, whose tensors `open` gives

    def merged(self, dtype: torch.dtype | None = None) -> Mapping[str, Tensor]:
        """The weights with low-rank products added, where there are some, and rounded to `dtype` then (None: to the weights' own)."""
        tensors = self.open()
        return tensors if self.products is None else with_products(tensors, self.products, str(self.path), dtype)

    def kept(self, low_rank: LoraMode) -> Products | None:
        """The products that stay beside the weights, if `low_rank` asks for that. Raises `UserError` if there are none."""
        if low_rank == "keep" and self.products is None:
            raise UserError(f"{self.path}: found whole weights, no low-rank ones to keep; leave --lora keep out")
        return self.products if low_rank == "keep" else None


def open_source(
    path: Path, weights: str | None = None, load: str | None = None, precise: bool = False, trust: bool = False, alpha: float = 1.0
) -> WeightSource:
    """Find what to convert in a checkpoint's folder, a training run's or a file.

    `weights` "ema" takes the averages, "plain" the last weights, None what `path` names. `load` names the checkpoint that low-rank
    products were trained on, if the run does not. `precise` takes float32 masters from ZeRO's shards where there are some. `alpha` is the
    `lora_alpha` of SAT's own products.
    """
    if path.name == LOW_RANK_FILE:
        path = path.parent
    if file := _of_the_original(path):
        if weights:
            raise UserError(f"command line: --weights: is for training runs of this project, found {path}; leave it out")
        _check_low_rank_names(file, trust)
        if products := read_peft_products(file, trust):
            base = _of_wan(resolve_path(load or _trained_on(path)), None, trust)
            return WeightSource(file, weights_digest(file), base.open, products, base)
        if load is None and file.match(OF_ANY_RANK):
            return WeightSource(file, weights_digest(file), partial(read_tensors, file, trust))
    folder, averaged = _choose(path, weights)
    if kind_of(folder / LOW_RANK_FILE) == "a file":
        file, products = folder / LOW_RANK_FILE, read_sat_products(folder)
        tag = read_tag(folder)
        trained_on = resolve_path(load or (folder / tag if tag else _trained_on(folder)))
        if all(layer.startswith(WAN_PREFIX) for layer in products):
            base = _of_wan(trained_on, run_configuration(folder), trust)
        else:
            base = open_source(trained_on, trust=trust, alpha=alpha)
        if base.products is not None:
            raise UserError(f"{base.path}: found low-rank products, expected the whole weights that {file} was trained on; see --load")
        return WeightSource(file, weights_digest(file), base.open, products, base)
    if load is not None:
        if kind_of(folder) == "no such file":
            find_sat_checkpoint(folder)
        if kind_of(folder / DIFFUSERS_FILE) == "a file":
            _check_low_rank_names(folder / DIFFUSERS_FILE, trust)
        raise UserError(f"--load {load}: found no low-rank weights in {folder}, expected {LOW_RANK_FILE}; leave --load out of whole ones")
    if kind_of(folder) == "a folder" and zero.needs_gathering(folder, averaged, precise):
        return WeightSource(folder, zero.gathered_digest(folder), partial(_gathered, folder, averaged, trust))
    if averaged:
        raise UserError(f"{folder}: found no averaged weights (no folder {folder.name}{AVERAGED}); leave --weights ema out")
    file = find_sat_checkpoint(folder)
    return WeightSource(file, weights_digest(file), lambda: load_sat_checkpoint(file, trust=trust, alpha=alpha).state_dict)


def _choose(path: Path, weights: str | None) -> tuple[Path, bool]:
    """The checkpoint's own folder, and whether its averages have yet to be found in the optimizer's states."""
    tag = None if kind_of(path / LOW_RANK_FILE) == "a file" else read_tag(path)  # to-sat once kept them beside the tag's folder
    folder = path / tag if tag else path
    if weights is None:
        return folder, False
    plain = folder.with_name(folder.name.removesuffix(AVERAGED))
    chosen = plain if weights == "plain" else plain.with_name(plain.name + AVERAGED)
    if os.path.isdir(chosen):
        return chosen, False
    if weights == "plain":
        raise UserError(f"{chosen}: no such folder, expected the last weights beside {folder.name}; leave --weights plain out")
    return plain, True


def _trained_on(folder: Path) -> str:
    """The checkpoint that a run's products belong to, as the run recorded it."""
    recorded = run_configuration(folder)
    try:
        load = read_yaml(recorded, str(recorded))["args"]["load"] if recorded else None
    except (UserError, KeyError, TypeError):
        load = None
    if not isinstance(load, str):
        raise UserError(f"{folder}: holds low-rank products alone; name the checkpoint they were trained on with --load FOLDER")
    return load


def _of_the_original(path: Path) -> Path | None:
    """The file that the original's Wan training may have left: a flat one, or DeepSpeed's in a folder called checkpoint."""
    if kind_of(path) == "a folder":
        is_its = read_tag(path) == "checkpoint" or path.name == "checkpoint" and any(path.glob(OF_ANY_RANK))
        return find_sat_checkpoint(path) if is_its else None
    return path if kind_of(path) == "a file" and (path.parent.name == "checkpoint" or not path.match(OF_ANY_RANK)) else None


def _check_low_rank_names(file: Path, trust: bool) -> None:
    """Raise `UserError` for a file of low-rank weights in diffusers' names or in other programs', which are not merged from here."""
    names = [name for name in read_tensors(file, trust) if isinstance(name, str)]
    low_rank = [name for name in names if "lora_" in name]
    unread = [name for name in names if not PEFT.search(name)]
    if low_rank and low_rank[0].startswith(DIFFUSERS_PREFIX):
        raise UserError(f"{file}: found {some(low_rank, 1)}, expected no names of diffusers'; put it into a diffusers folder as"
                        f" {DIFFUSERS_FILE} and use to-sat on that")  # fmt: skip
    if low_rank and unread:
        raise UserError(f"{file}: found {some(unread, 1)}, which is not read, expected {LOW_RANK_FILE} of a training, or"
                        f" <layer>{DIFFUSERS_DOWN} and <layer>{DIFFUSERS_UP} in Wan's names; merge it where it was made")  # fmt: skip


def _of_wan(path: Path, run: Path | None, trust: bool) -> WeightSource:
    """What a Wan's products belong to: with modulations for references if it has some, or the run of this configuration gave it some."""
    config = load_config([str(run)]).model.transformer if run else None
    config = config if config and config.ref_modulation else None
    return WeightSource(path, files_digest(wan_files(path)), partial(read_wan_state, path, config, trust))


def files_digest(files: Iterable[Path]) -> str:
    """The digest of the files of one state dict."""
    return "+".join(map(weights_digest, files))


def _gathered(folder: Path, averaged: bool, trust: bool) -> Mapping[str, Tensor]:
    tensors = zero.gathered(folder, averaged, trust)
    makers = {name.removeprefix(SAT_PREFIX): maker for name, maker in tensors.makers.items() if name.startswith(SAT_PREFIX)}
    if not makers:
        raise UserError(f"{folder}: found tensors {some(tensors)}, expected names starting with '{SAT_PREFIX}'; check the folder")
    if any(MATRIX in name for name in makers):
        expected = "which are merged from one file with all weights; leave --dtype float32 and --weights ema out"
        raise UserError(f"{folder}: found SAT's low-rank matrices in shards, {expected}, or merge them by SAT")
    return type(tensors)(makers)
