"""Clips and images of lists, small enough to be kept in memory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concat_id.data.clips import ClipReader, UnreadableClipError, Window, read_image
from concat_id.errors import UserError
from concat_id.files.formats import is_image
from networks.captions import is_held_out
from networks.learner import tensors_digest


@dataclass
class Footage:
    """Frames (F, H, W, 3), uint8, of clips, F = 1 for images; `held_out` is only for measuring."""

    learned: list[Tensor] = field(default_factory=list)
    held_out: list[Tensor] = field(default_factory=list)

    @property
    def clips(self) -> list[Tensor]:
        """What moves, of the part to learn from."""
        return [frames for frames in self.learned if len(frames) > 1]

    def digest(self) -> str:
        """Tell this footage from other, by the first frame of everything."""
        return tensors_digest(frames[0] for frames in (*self.learned, *self.held_out))


def read_footage(lists: Sequence[Path], window: Window, most: int) -> Footage:
    """Read what the entries of lists name as `video_path`, or else as `image_path`: `most` of them, evenly spaced.

    Splits other than "train" are held out; entries without a split by chance, the same in every run. Raises `UserError`.
    """
    from tqdm import tqdm

    found = [(path, number, entry) for path in lists for number, entry in enumerate(read_entries(path))]
    step = max(len(found) / most, 1.0)
    chosen = [found[int(index * step)] for index in range(min(most, len(found)))]
    footage, reader = Footage(), ClipReader()
    try:
        for path, number, entry in tqdm(chosen, desc="reading", unit="clip"):
            name = (entry.get("video_path") or entry.get("image_path")) if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise UserError(f"{path}: entry {number}: found no video_path and no image_path, expected a file; correct the list")
            part = footage.held_out if is_held_out(name, entry.get("split")) else footage.learned
            part.append(_read(reader, path.parent / name, window))
    except UnreadableClipError as error:
        raise UserError(f"{error}; correct the list or make the file again") from error
    finally:
        reader.close()
    if not footage.learned or not footage.held_out:
        counts = f"{len(footage.learned)} clips to learn from and {len(footage.held_out)} to measure on"
        raise UserError(f"{', '.join(map(str, lists))}: found {counts}, expected some of both; add entries or correct their splits")
    return footage


def read_entries(path: Path) -> list[Any]:
    """Read a list in JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {str(error)[:80]}"
        raise UserError(f"{path}: cannot be read ({reason}), expected a list in JSON; correct the path or the file") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: found a {type(content).__name__}, expected a list of entries in JSON; correct the file")
    return content


def _read(reader: ClipReader, path: Path, window: Window) -> Tensor:
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the list")
    if is_image(path):
        return read_image(path, window.size).pixels
    return reader.read(path, window).pixels


def to_video(frames: Tensor) -> Tensor:
    """Turn uint8 frames (..., F, H, W, 3) into a video (..., 3, F, H, W) in [-1, 1]."""
    return torch.movedim(frames.float() / 127.5 - 1, -1, -4)
