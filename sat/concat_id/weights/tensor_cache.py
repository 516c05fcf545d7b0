"""Tensors on disk, named by all they depend on, for any number of readers and writers at once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from concat_id.errors import UserError, warn
from concat_id.files.paths import written_whole

VERSION = 2  # raise it when the same key and identity would give other tensors


class TensorCache:
    """Tuples of tensors by key, any JSON value. `identity` names what all of them depend on besides the key, such as weights.

    A damaged file counts as absent. A folder that cannot be written is worth a warning, not the run.
    """

    def __init__(self, folder: str | Path, identity: Any):
        self.folder, self.identity, self._writable = Path(folder), identity, True

    def path(self, key: Any) -> Path:
        """Return where the tensors of a key are or would be."""
        name = hashlib.sha256(json.dumps([VERSION, self.identity, key], sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def holds(self, key: Any) -> bool:
        """Whether there is a file for a key; `read` tells whether it is whole."""
        return self.path(key).is_file()

    def read(self, key: Any) -> tuple[Tensor, ...] | None:
        """Return the tensors of a key, None if they are absent or damaged."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                tensors = tuple(file.get_tensor(str(number)) for number in range(len(file.keys())))
                return tensors if (file.metadata() or {}).get("sha256") == _checksum(tensors) else None
        except (OSError, SafetensorError, ValueError):
            return None

    def write(self, key: Any, *tensors: Tensor) -> None:
        """Keep the tensors of a key."""
        if not self._writable:
            return
        tensors = tuple(tensor.detach().cpu().contiguous() for tensor in tensors)
        named = {str(number): tensor for number, tensor in enumerate(tensors)}
        try:
            with written_whole(self.path(key)) as temporary:
                temporary.write_bytes(safetensors.torch.save(named, {"sha256": _checksum(tensors)}))
        except UserError as error:
            self._writable = False
            warn(f"encodings are not cached: {error}")


def _checksum(tensors: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
