"""Checkpoints that DeepSpeed cut up among processes: each tensor is put together when it is asked for, from mapped files.

Three kinds lie in a checkpoint's folder:
    ZeRO-1, 2   mp_rank_00_model_states.pt with all weights in the type of the run, and for each process r
                [bf16_]zero_pp_rank_<r>_mp_rank_00_optim_states.pt with a part of every group's float32 masters, laid end to end
    ZeRO-3      [bf16_]zero_pp_rank_<r>_mp_rank_00_{model,optim}_states.pt: a part of every parameter for each process
    SAT ZeRO-3  z3_rank_<r>_model_states.pt, weights alone: a part of every parameter, with the whole one's shape
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concat_id.conversion.lazy import LazyTensors
from concat_id.errors import UserError, reason_of
from concat_id.files.paths import MODEL_STATES, text_digest
from concat_id.weights.loading import UNREADABLE, load_tensors, weights_digest

OPTIMIZER_FILES, SAT_FILES = "*zero_pp_rank_*_mp_rank_00_optim_states.pt", "z3_rank_*_model_states.pt"
MODEL_FILES = "*zero_pp_rank_*_mp_rank_00_model_states.pt"
AVERAGES = ("shadow", "ema")  # what SAT's and this project's optimizer call the moving average in their states
Makers = dict[str, Callable[[], Tensor]]


def needs_gathering(folder: Path, averaged: bool, precise: bool) -> bool:
    """Tell whether weights must be put together: those of ZeRO-3 always, others if the averages or float32 masters are wanted."""
    if any(folder.glob(SAT_FILES)) or any(folder.glob(MODEL_FILES)):
        return True
    return any(folder.glob(OPTIMIZER_FILES)) and (averaged or precise or not os.path.isfile(folder / MODEL_STATES))


def gathered(folder: Path, averaged: bool = False, trust: bool = False) -> LazyTensors:
    """Every parameter of a sharded checkpoint, float32 where it was trained; `averaged` takes the optimizer's moving averages.

    Raises `UserError` if a process's file is missing or the parts do not add up.
    """
    try:
        return _gathered(folder, averaged, trust)
    except UNREADABLE as error:  # of contents that are none of DeepSpeed's
        reason = reason_of(error)
        raise UserError(f"{folder}: its shards do not fit together ({reason}); copy all files of one checkpoint together") from error


def _gathered(folder: Path, averaged: bool, trust: bool) -> LazyTensors:
    if any(folder.glob(SAT_FILES)):
        if averaged:
            raise UserError(f"{folder}: holds no averaged weights; name the folder <n>-ema, or leave --weights ema out")
        return LazyTensors(_sat_makers(_load_all(folder, SAT_FILES, trust)))
    optimizers = [_part(content, "optimizer_state_dict", folder) for content in _load_all(folder, OPTIMIZER_FILES, trust)]
    if any(folder.glob(MODEL_FILES)):
        models = _load_all(folder, MODEL_FILES, trust)
        makers = _zero_3_makers(models, optimizers, averaged, folder)
    else:
        models = [load_tensors(folder / MODEL_STATES, trust)]
        makers = _zero_2_makers(models, optimizers, averaged, folder)
    for name, tensor in _part(models[0], "module", folder).items():
        if tensor.numel() and name not in makers:  # buffers
            makers[name] = lambda tensor=tensor: tensor
    return LazyTensors(makers)


def gathered_digest(folder: Path) -> str:
    """Name the content of all of a checkpoint's files."""
    files = {file for pattern in (OPTIMIZER_FILES, MODEL_FILES, SAT_FILES, MODEL_STATES) for file in folder.glob(pattern)}
    digests = "\n".join(weights_digest(file) for file in sorted(files))
    return f"shards:{text_digest(digests)}"


def _load_all(folder: Path, pattern: str, trust: bool) -> list[Any]:
    """The files of processes 0, 1, 2, ... in order."""
    files = {int(re.search(r"(?:pp|z3)_rank_(\d+)", file.name)[1]): file for file in folder.glob(pattern)}
    contents = {rank: load_tensors(file, trust) for rank, file in sorted(files.items())}
    count = max((_count(content) for content in contents.values()), default=1)
    missing = [rank for rank in range(max(count, max(files, default=0) + 1)) if rank not in files]
    if missing:
        some = ", ".join(map(str, missing[:5]))
        raise UserError(f"{folder}: {pattern}: the files of processes {some} are missing; copy those of all processes here")
    return list(contents.values())


def _count(content: Any) -> int:
    """How many processes a shard says there were."""
    if not isinstance(content, dict):
        return 1
    optimizer = content.get("optimizer_state_dict")
    count = optimizer.get("partition_count", 1) if isinstance(optimizer, dict) else content.get("dp_world_size", 1)
    return max(count) if isinstance(count, list) else int(count)


def _sat_makers(ranks: Sequence[Any]) -> Makers:
    def whole(name: str) -> Tensor:
        parts = [content["module"][name] for content in ranks]
        shape = getattr(parts[0], "ds_shape", None)
        return parts[0] if shape is None else torch.cat([part.flatten() for part in parts])[: shape.numel()].view(shape)

    return {name: partial(whole, name) for name in ranks[0]["module"]}


def _zero_2_makers(models: Sequence[Any], optimizers: Sequence[dict], averaged: bool, folder: Path) -> Makers:
    """A group's parameters follow one another in the joined parts of all processes, each with some padding behind it."""
    makers: Makers = {name: lambda tensor=tensor: tensor for name, tensor in (models[0].get("frozen_param_fragments") or {}).items()}
    of_ranks = [_flat_groups(optimizer, "single_partition_of_fp32_groups", averaged, folder) for optimizer in optimizers]
    paddings = optimizers[0].get("param_alignment_paddings")
    for group, shapes in enumerate(_part(models[0], "param_shapes", folder)):
        parts, start = [groups[group] for groups in of_ranks], 0
        for index, (name, shape) in enumerate(shapes.items()):
            makers[name] = partial(_stretch, parts, start, torch.Size(shape))
            start += torch.Size(shape).numel() + (paddings[group][index] if paddings else 0)
        _check_sum(folder, start, sum(part.numel() for part in parts), 4 * len(parts))
    return makers


def _zero_3_makers(models: Sequence[Any], optimizers: Sequence[dict], averaged: bool, folder: Path) -> Makers:
    """Every process holds an equal part of each parameter, all at the same place of its own groups, which are laid end to end."""
    makers: Makers = {}
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        fragments = [[content["frozen_param_fragments"][name]] for content in models]
        makers[name] = partial(_joined, fragments, 0, torch.Size(shape))
    of_ranks = [_flat_groups(optimizer, "fp32_flat_groups", averaged, folder) for optimizer in optimizers]
    start = 0
    for shapes in _part(models[0], "param_shapes", folder):
        for name, shape in shapes.items():
            makers[name] = partial(_joined, of_ranks, start, torch.Size(shape))
            start += ceil(torch.Size(shape).numel() / len(of_ranks))
    _check_sum(folder, start, sum(part.numel() for part in of_ranks[0]), 0)
    return makers


def _flat_groups(optimizer: dict, masters: str, averaged: bool, folder: Path) -> list[Tensor]:
    """One process's flat parts of all groups: the masters, or the averages among the optimizer's states."""
    if not averaged:
        return list(_part(optimizer, masters, folder))
    states = optimizer.get("base_optimizer_state") or optimizer.get("optimizer_state_dict") or {}
    groups = [state for _, state in sorted((states.get("state") or {}).items())] if isinstance(states, dict) else []
    name = next((name for name in AVERAGES if groups and name in groups[0]), None)
    if name is None:
        raise UserError(f"{folder}: holds no averaged weights; leave --weights ema out")
    return [state[name] for state in groups]


def _stretch(parts: Iterable[Tensor], start: int, shape: torch.Size) -> Tensor:
    """The numbers from `start` on of parts laid end to end."""
    pieces, end = [], start + shape.numel()
    for part in parts:
        pieces.append(part[max(start, 0) : max(min(end, part.numel()), 0)])
        start, end = start - part.numel(), end - part.numel()
    return torch.cat(pieces).view(shape)


def _joined(of_ranks: Sequence[Sequence[Tensor]], start: int, shape: torch.Size) -> Tensor:
    """One parameter from equal parts of all processes; the last is padded."""
    share = torch.Size([ceil(shape.numel() / len(of_ranks))])
    return torch.cat([_stretch(parts, start, share) for parts in of_ranks])[: shape.numel()].view(shape)


def _check_sum(folder: Path, used: int, held: int, slack: int) -> None:
    if not used <= held <= used + slack:
        raise UserError(f"{folder}: the shards hold {held:,} numbers, expected {used:,}; copy all files of one checkpoint together")


def _part(content: Any, name: str, folder: Path) -> Any:
    if not isinstance(content, Mapping) or name not in content:
        raise UserError(f"{folder}: a file has no entry '{name}', expected a checkpoint as DeepSpeed writes it; copy it again")
    return content[name]
