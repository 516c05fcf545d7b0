"""Portraits for ConsistentID's training: its JSON lists, and samples of photo, parts, identity and words.

A list is JSON: `[{"resize_IMG": ..., "parsing_mask_IMG": ..., "vqa_llva": ..., "vqa_llva_more_face_detail": ...}, ...]`: a photo, a PNG
with the class of each of its pixels in ConsistentID's numbering, words about the photo and about the face. `id_embed_file_origin`, or
else `id_embed_file_resize`, names a tensor with the face's ArcFace vector. sat/prepare_portraits.py writes such lists. Other keys are
left alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from concat_id.config.neighbours import IDENTITY_SIZE
from concat_id.data.clips import readable
from concat_id.data.dataset import ReplacingDataset
from concat_id.data.records import SHOWN
from concat_id.distributed import rank
from concat_id.errors import UserError, warn
from concat_id.files.json_files import OBJECT, TEXT, WORDS, parse_list, require, take
from concat_id.files.paths import kind_of, on_disk, read_text, resolve_path
from concat_id.video.face_parts import (
    PARTS,
    RELEASED_CLASSES,
    from_released,
    mask_of,
    part_images,
    part_masks,
    part_pixels,
    without_background,
)
from concat_id.video.transforms import clip_pixels, fill_square, load_labels
from concat_id.weights.loading import load_tensors

# What the released trainer reads, and behind it what the released README and scripts call the same.
PHOTO, MASK, CAPTION = ("resize_IMG", "IMG"), ("parsing_mask_IMG",), ("vqa_llva",)
FACE_CAPTION = ("vqa_llva_more_face_detail", "vqa_llva_facial", "vqa_llva_face_caption")
IDENTITY = ("id_embed_file_origin", "id_embed_file_resize")
FOLDERS = {  # of the released README and scripts, whose lists leave out those of the scripts
    PHOTO: ("resize_IMG", "FGID_resize"), MASK: ("parsing_mask_IMG", "FGID_parsing_mask"), IDENTITY: ("all_faceID", "FGID_faceID"),
}  # fmt: skip
SIZE = 512
REMEDY = "make it again with sat/prepare_portraits.py"


@dataclass(frozen=True)
class PortraitRecord:
    """A photo of one person, the classes of its pixels, its ArcFace vector if there is one, and words about both.

    `source` says where it was written, for messages.
    """

    photo: Path
    mask: Path
    identity: Path | None
    caption: str
    face_caption: str
    source: str


def read_portraits(paths: Sequence[str | Path]) -> list[PortraitRecord]:
    """Read lists, one after the other; entries without an ArcFace vector are told.

    Raises `UserError` naming line and column of broken JSON, or the first few entries that are wrong or name files that are not there.
    """
    records, problems = [], []
    for path in (resolve_path(path, place="train_data") for path in paths):
        text = read_text(path, "a JSON list of portraits", "name the JSON_all.json that sat/prepare_portraits.py writes")
        for number, (line, entry) in enumerate(parse_list(text, str(path)), 1):
            try:
                records.append(_make_record(entry, path.parent, f"{path}:{line}: entry {number}"))
            except UserError as error:
                problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError("; ".join(problems[:SHOWN]) + more)
    if not records:
        raise UserError(f"{', '.join(map(str, paths)) or 'train_data'}: found no portraits, expected one or more; add entries")
    if (nameless := sum(record.identity is None for record in records)) and rank() == 0:
        warn(f"{nameless} of {len(records)} portraits have no {IDENTITY[0]}; their identity counts as zeros")
    return records


def _make_record(entry: Any, base: Path, source: str) -> PortraitRecord:
    require(entry, OBJECT, source)
    return PortraitRecord(
        _file(entry, PHOTO, base, source, "a photo"),
        _file(entry, MASK, base, source, "an image with the class of each pixel"),
        _file(entry, IDENTITY, base, source, "an ArcFace vector") if entry.get(_key(entry, IDENTITY)) is not None else None,
        take(entry, _key(entry, CAPTION), WORDS, source),
        take(entry, _key(entry, FACE_CAPTION), WORDS, source),
        source,
    )


def _key(entry: dict[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if entry.get(name) is not None), names[0])


def _file(entry: dict[str, Any], names: tuple[str, ...], base: Path, source: str, expected: str) -> Path:
    """Find a file that an entry names: beside the list or where `resolve_path` looks, else in one of the key's `FOLDERS` there."""
    key, folders = _key(entry, names), FOLDERS[names]
    text, place = take(entry, key, TEXT, source), f"{source}: {key}"
    path = resolve_path(text, base, place)
    if (found := kind_of(path)) == "a file":
        return path
    for inner in (on_disk(base / folder / text) for folder in folders):
        if kind_of(inner) == "a file":
            return inner
    raise UserError(f"{place}: found {found} {text!r}, expected {expected} beside the list, or in {' or '.join(folders)} there; correct it")


@dataclass
class PortraitBatch:
    """B portraits, of which `parts` are seen: images and masks of S x S pixels, uint8; the other tensors float32; of the rest one each.

    `images` (B, 3, S, S); `clip_pixels` (B, 3, 224, 224) of the whole photos and `part_pixels` (B, 5, 3, 224, 224) of their parts, as
    CLIP takes them; `part_masks` (B, 5, S, S) and `without_background` (B, 1, S, S), 255 inside. The n-th place belongs to the n-th of
    `parts`; those behind the last part are zeros. `identities` (B, 1, 512). `indices` are the records that were read, `replaced` whether
    the one asked for cannot be.
    """

    captions: list[str]
    face_captions: list[str]
    parts: list[tuple[str, ...]]
    images: Tensor
    clip_pixels: Tensor
    part_pixels: Tensor
    part_masks: Tensor
    without_background: Tensor
    identities: Tensor
    indices: list[int]
    replaced: list[bool]

    def as_floats(self) -> "PortraitBatch":
        """Turn what is uint8 into float32, in place: images in [-1, 1], masks in [0, 1]."""
        if self.images.dtype == torch.uint8:
            self.images = self.images.float().div_(127.5).sub_(1)
            self.part_masks, self.without_background = (masks.float().div_(255) for masks in (self.part_masks, self.without_background))
        return self


class PortraitDataset(ReplacingDataset):
    """Batches of one portrait by (epoch, record index), the same in every epoch; all are of one kind.

    Images are squares of `size` pixels, the middle of the photo. Nothing is left out at random here.
    """

    noun, remedy = "portraits", "make them again with sat/prepare_portraits.py"

    def __init__(self, records: Sequence[PortraitRecord], size: int = SIZE, seed: int = 42, bad_portraits: Path | None = None):
        super().__init__(records, [1] * len(records), seed, bad_portraits)
        self.size = size

    def _files(self, record: PortraitRecord) -> tuple[Path, ...]:
        return tuple(filter(None, (record.photo, record.mask, record.identity)))

    def _sample(self, record: PortraitRecord, epoch: int, index: int, replaced: bool) -> PortraitBatch:
        photo = readable(record.photo)
        labels = from_released(readable(record.mask, partial(load_labels, num_classes=len(RELEASED_CLASSES))))
        parts = part_masks(labels)
        masks = torch.zeros(len(PARTS), self.size, self.size, dtype=torch.uint8)
        for place, mask in enumerate(parts.values()):
            masks[place] = self._square(mask_of(mask, photo.size))[0]
        identity = readable(record.identity, load_identity) if record.identity else torch.zeros(1, IDENTITY_SIZE)
        return PortraitBatch(
            captions=[record.caption],
            face_captions=[record.face_caption],
            parts=[tuple(parts)],
            images=self._square(photo)[None],
            clip_pixels=clip_pixels(photo)[None],
            part_pixels=part_pixels(part_images(photo, parts))[None],
            part_masks=masks[None],
            without_background=self._square(mask_of(without_background(labels), photo.size))[None],
            identities=identity[None],
            indices=[index],
            replaced=[replaced],
        )

    def _square(self, image: Image.Image) -> Tensor:
        """Turn an image into uint8 (C, S, S)."""
        pixels = np.array(fill_square(image, self.size, Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels.reshape(self.size, self.size, -1)).permute(2, 0, 1).contiguous()


def load_identity(path: Path) -> Tensor:
    """Read an ArcFace vector, float32 (1, 512). Raises `UserError` for anything else."""
    vector = load_tensors(path, mmap=False)
    if not isinstance(vector, Tensor) or not vector.is_floating_point() or vector.numel() != IDENTITY_SIZE or not vector.isfinite().all():
        found = f"a tensor {tuple(vector.shape)} of {vector.dtype}" if isinstance(vector, Tensor) else f"a {type(vector).__name__}"
        raise UserError(f"{path}: found {found}, expected an ArcFace vector of {IDENTITY_SIZE} numbers; {REMEDY}")
    return vector.detach().float().reshape(1, IDENTITY_SIZE)
