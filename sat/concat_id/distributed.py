"""Which process this is among those started together, and which device it works on."""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch

from concat_id.errors import UserError

Item = TypeVar("Item")


def rank() -> int:
    """Index of this process among all, as torchrun sets it; 0 when started alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Index of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_share(items: Sequence[Item]) -> list[Item]:
    """The items that fall to this process; together the processes cover each item once."""
    return list(items[rank() :: world_size()])


def choose_device(name: str) -> torch.device:
    """Turn "auto" into this process's accelerator or else the CPU; other names are taken as torch's.

    Raises `UserError` for a device that is not there.
    """
    if name == "auto":
        accelerator = _accelerator()
        return torch.device("cpu") if accelerator is None else torch.device(accelerator, local_rank())
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device: {name!r} cannot be used ({reason}); choose auto, cpu or one that torch sees") from error
    return device


def _accelerator() -> str | None:
    """The kind of accelerator that torch was built for and finds."""
    if hasattr(torch, "accelerator"):  # torch >= 2.6
        return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else None
    return next((kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()), None)
