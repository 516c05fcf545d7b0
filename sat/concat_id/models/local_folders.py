"""Networks of transformers and diffusers from local folders of safetensors, loaded as data and whole."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from concat_id.distributed import is_out_of_memory
from concat_id.errors import UserError, reason_of
from concat_id.files.json_files import read_json
from concat_id.weights.folders import STEMS, weight_files
from concat_id.weights.loading import check_whole

LOCAL = {"local_files_only": True, "trust_remote_code": False}  # nothing is fetched, no code of the folder is run
SAFE = LOCAL | {"use_safetensors": True}


def check_folder(folder: Path, expected: str, option: str) -> None:
    """Raise `UserError` unless a folder has settings, and weights that are safetensors and not cut short."""
    read_json(folder / "config.json", f"settings of {expected}", f"correct {option}, or download it again")
    for file in weight_files(folder, STEMS, variants=False):
        if file.suffix != ".safetensors":
            raise UserError(f"{file}: found pickled weights, expected model.safetensors; download that")
        check_whole(file)


def check_words(tokenizer: Any, folder: Path) -> None:
    """Raise `UserError` for a tokenizer that knows no words: one whose files are missing is made without a warning."""
    tokens = tokenizer("a person", add_special_tokens=False)["input_ids"]
    if not set(tokens) - {tokenizer.unk_token_id}:
        raise UserError(f"{folder}: found a tokenizer that knows no words, expected tokenizer.json or its vocabulary; download it again")


def load_network(kind: Any, folder: Path, device: torch.device, expected: str, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """Load a network of the class `kind` onto `device`, bfloat16 but on a CPU. Raises `UserError` where it is not all there."""
    disable_progress_bar()
    with room_on(device, folder), told(folder, expected):
        network, found = kind.from_pretrained(folder, dtype=dtype or usual_dtype(device), output_loading_info=True, **SAFE | options)
        network = network.eval().requires_grad_(False).to(device)
    if found["missing_keys"]:
        raise UserError(f"{folder}: found no {sorted(found['missing_keys'])[0]} in the weights; download the folder again")
    return network


def usual_dtype(device: torch.device) -> torch.dtype:
    """Return what networks are computed in where it is not asked for."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


@contextmanager
def told(folder: Path, expected: str) -> Iterator[None]:
    """Turn what the libraries raise inside the block into a `UserError` about the folder: the readers raise whatever they like."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: cannot be loaded as {expected} ({reason_of(error, 150)}); download it again") from error


@contextmanager
def room_on(device: torch.device, folder: Path) -> Iterator[None]:
    """Say in a line that a device has no room for the network of a folder, or for what it computes."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: {device} has no room for it; choose a smaller model, or --device cpu") from error


@contextmanager
def silent() -> Iterator[None]:
    """Keep what the libraries log to themselves: what matters they raise as well."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
