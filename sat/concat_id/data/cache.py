"""Encodings of clips on disk, named by all they depend on, for any number of readers and writers at once.

What is cached is the posterior, not a sample of it, so samples still vary. The start of a window cannot vary freely, though: each
clip is encoded at a fixed number of places (`ClipDataset(windows=...)`). Nor can the noise on references, which is added to pixels:
they are cached only where each has a fixed number of noises (`ClipDataset(ref_noises=...)`).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from concat_id.errors import UserError, warn
from concat_id.files import written_whole

CLIPS, REFERENCES = ("windows", "moments", "video"), ("ref_keys", "ref_moments", "refs")  # keys, cached and pixels in a batch
VERSION = 1  # raise it when the same clip and autoencoder would give other encodings


class CachedTensors:
    """Lists of tensors by key, any JSON value. `identity` names what all of them depend on besides the key.

    A damaged file counts as absent. A folder that cannot be written is worth a warning, not the run.
    """

    def __init__(self, folder: str | Path, identity: Any):
        self.folder, self.identity, self._writable = Path(folder), identity, True

    def path(self, key: Any) -> Path:
        """Where the tensors of a key are or would be."""
        name = hashlib.sha256(json.dumps([VERSION, self.identity, key], sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, key: Any) -> tuple[Tensor, ...] | None:
        """The tensors of a key, None if they are absent or damaged."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                tensors = tuple(file.get_tensor(str(number)) for number in range(len(file.keys())))
                return tensors if (file.metadata() or {}).get("sha256") == _checksum(tensors) else None
        except (OSError, SafetensorError, ValueError):
            return None

    def write(self, key: Any, tensors: tuple[Tensor, ...]) -> None:
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

    def get(self, key: Any, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The tensors of a key, computed and kept if they are not there yet."""
        tensors = self.read(key)
        if tensors is None:
            tensors = compute()
            self.write(key, tensors)
        return tensors


class CachedLatents(CachedTensors):
    """Mean and standard deviation of latents, each (T, C, H, W), of clips by `window` keys and of a sample's references by `ref_keys`.

    `identity` names the autoencoder: the digest of its weights, its scale factor and the dtype it computes in.
    """

    def complete(
        self, batch: dict[str, Any], encode: Callable[[Tensor, Any], tuple[Tensor, Tensor]], kind: tuple[str, str, str] = CLIPS
    ) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, T, C, H, W) of a collated batch's clips, or REFERENCES (R for T), on the CPU.

        `encode` (pixels (1, ...) and their key to both, (1, T, C, H, W)) is called for what is not cached, and its results are kept.
        """
        keys, cached, pixels = (batch.get(name) for name in kind)
        moments, pixels = list(cached), iter(() if pixels is None else pixels.split(1))
        for index, key in enumerate(keys):
            if moments[index] is None:
                moments[index] = tuple(tensor[0].cpu() for tensor in encode(next(pixels), key))
                self.write(key, moments[index])
        mean, std = (torch.stack(tensors) for tensors in zip(*moments, strict=True))
        return mean, std


def _checksum(tensors: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
