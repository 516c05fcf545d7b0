"""Samples for training: a window of a clip, its caption and its people's references, the same for the same (seed, epoch, index)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from concat_id.config.args import DataConfig
from concat_id.data.clips import BadFiles, ClipReader, UnreadableClipError, Window, file_state, read_image, readable
from concat_id.data.records import Record
from concat_id.errors import UserError
from concat_id.video.transforms import fit_and_pad, to_tensor
from concat_id.weights.tensor_cache import TensorCache

MASK_PROBABILITY = 0.9  # as released
MIRRORED = 0.5  # of the clothes; nothing else is, as a mirrored face is another face
ATTEMPTS = 20  # other clips tried before so many failures are taken for a mistake in the list
WINDOWS = 4  # places of a clip that are encoded where encodings are cached


@dataclass
class Batch:
    """B samples of one kind, each a clip of F frames and its R people.

    `refs` (B, R, 3, H, W) in [-1, 1]; `video` (b, 3, F, H, W) of those whose encoding is not cached, None if there are none, uint8 between
    processes and else float32 in [-1, 1]. Of the rest one a sample: `moments`, the mean and standard deviation (T, C, h, w) of the encoding
    that came from the cache; `windows`, the keys of encodings; `indices` of the records that were read; `replaced`, whether the one asked
    for cannot be read; `held`, how many frames at the end repeat the clip's last one.
    """

    captions: list[str]
    refs: Tensor
    video: Tensor | None
    moments: list[tuple[Tensor, Tensor] | None]
    windows: list[dict[str, Any] | None]
    indices: list[int]
    replaced: list[bool]
    held: list[int]

    def as_floats(self) -> "Batch":
        """Turn a uint8 `video` into float32 in [-1, 1], in place."""
        if self.video is not None and self.video.dtype == torch.uint8:
            self.video = self.video.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)
        return self


def joined(batches: Sequence[Any]) -> Any:
    """Put batches of one kind together: lists, and tensors along the first dimension; what is None in all of them stays so."""
    columns = {}
    for name in vars(batches[0]):
        parts = [part for batch in batches if (part := getattr(batch, name)) is not None]
        columns[name] = torch.cat(parts) if parts and isinstance(parts[0], Tensor) else [*chain(*parts)] or None
    return type(batches[0])(**columns)


class ReplacingDataset(Dataset):
    """Batches of one sample by (epoch, record index); what cannot be read is noted in `bad_files`, and another record of its kind takes
    its place.

    `kinds` says which samples can share a batch, as `joined` makes it. A subclass has `_files` and `_sample`.
    """

    noun, remedy = "clips", "check the list with sat/check_dataset.py"
    any_kind = False  # batches are of one sample, so that one of another kind may stand in when none of its own can be read

    def __init__(self, records: Sequence[Any], kinds: Sequence[int], seed: int, bad_files: Path | None):
        if not records:
            raise UserError(f"train_data: no {self.noun}, expected at least one; check args.train_data")
        self.records, self.kinds, self.seed, self.bad_files = list(records), list(kinds), seed, BadFiles(bad_files)
        self._alike = {kind: np.flatnonzero(np.array(self.kinds) == kind) for kind in set(self.kinds)}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Return the sample of (epoch, record index); raises `UserError` when neither it nor its many replacements can be read."""
        failures: list[str] = []
        epoch, asked = key
        for index in self._candidates(epoch, asked):
            record = self.records[index]
            reason = next(filter(None, map(self.bad_files.reason, self._files(record))), None)
            if reason is None:
                try:
                    return self._sample(record, epoch, index, replaced=index != asked)
                except UnreadableClipError as error:
                    self.bad_files.add(error.path, error.reason, record.source)
                    reason = error.reason
            failures.append(f"{record.source}: {reason}")
        raise UserError(f"{len(failures)} {self.noun} in a row cannot be read, the first is {failures[0]}; {self.remedy}")

    def _candidates(self, epoch: int, index: int):
        """The record asked for, then others of its kind in an order of its own, then those of others where that will do."""
        yield int(index)
        alike, order = self._alike[self.kinds[index]], np.random.default_rng([self.seed, epoch, index, 1])
        yield from order.permutation(alike[alike != index])[:ATTEMPTS].tolist()
        if self.any_kind:
            yield from order.permutation(np.setdiff1d(np.arange(len(self)), alike))[:ATTEMPTS].tolist()


class ClipDataset(ReplacingDataset):
    """Samples of records by (epoch, record index). References of clothes are mirrored now and then, others never.

    Records whose video is an image give one frame. `kinds` says which samples can share a batch: the number of people, negative for
    images. With `latents`, windows start at one of `windows` places, and what is cached is not decoded.
    """

    windows = WINDOWS

    def __init__(
        self,
        records: Sequence[Record],
        data: DataConfig,
        training: bool = True,
        seed: int = 42,
        bad_clips: Path | None = None,
        latents: TensorCache | None = None,
    ):
        super().__init__(records, [-record.num_refs if record.is_image else record.num_refs for record in records], seed, bad_clips)
        self.data, self.training, self.reader, self.latents = data, training, ClipReader(), latents

    def _files(self, record: Record) -> tuple[Path, ...]:
        """Those that need not be tried when they are known to be unreadable."""
        return (record.video,)

    def _sample(self, record: Record, epoch: int, index: int, replaced: bool) -> Batch:
        random = np.random.default_rng([self.seed, epoch, index, 0]) if self.training else None
        window = self._window(record, random)
        refs = self._references(record, random)[None]
        key, moments, video, held = None, None, None, 0
        if self.latents is not None:
            key = window_key(record, window)
            moments = self.latents.read(key)
        if moments is None:
            frames = read_image(record.video, window.size) if record.is_image else self.reader.read(record.video, window)
            video, held = frames.pixels.permute(3, 0, 1, 2)[None], frames.held
        return Batch([record.caption], refs, video, [moments], [key], [index], [replaced], [held])

    def _window(self, record: Record, random: np.random.Generator | None) -> Window:
        position = 0.5
        if random is not None:  # always draws once, so that what is drawn later does not depend on the cache
            position = float(random.random())
            if self.latents is not None:
                position = (int(position * self.windows) + 0.5) / self.windows
        data = self.data
        if record.is_image:
            return Window(data.fps, 1, 0, tuple(data.video_size))
        return Window(data.fps, data.max_num_frames, data.skip_frms_num, tuple(data.video_size), position)

    def _references(self, record: Record, random: np.random.Generator | None) -> Tensor:
        """Choose an image of each person, and load them: (R, 3, H, W)."""
        chosen = [_choose(record, person, random) for person in range(record.num_refs)]
        return torch.stack([self._reference(record, *files) for files in chosen])

    def _reference(self, record: Record, path: Path, mask: Path | None, mirrored: bool) -> Tensor:
        """Load an image, or the first frame of a clip that training sees, as (3, H, W) in [-1, 1], what its mask does not cover black."""
        if not record.shows_itself:
            image = readable(path)
        else:
            first = Window(self.data.fps, 1, self.data.skip_frms_num, tuple(self.data.video_size), 0.0)
            image = Image.fromarray(self.reader.read(path, first).pixels[0].numpy())
        if mask is not None:
            image = apply_mask(image, readable(mask))
        return to_tensor(fit_and_pad(ImageOps.mirror(image) if mirrored else image, tuple(self.data.video_size)))


def _choose(record: Record, person: int, random: np.random.Generator | None) -> tuple[Path, Path | None, bool]:
    """Draw one of a person's images, whether to use its mask, and whether to mirror it (the paper's supplement, B.2)."""
    images, masks = record.images[person], record.masks[person] if record.masks else ()
    chosen, masked = (0, True) if random is None else (int(random.integers(len(images))), random.random() < MASK_PROBABILITY)
    mirrored = random is not None and record.kinds[person] == "clothes" and random.random() < MIRRORED
    return images[chosen], masks[chosen] if masks and masked else None, mirrored


def window_key(record: Record, window: Window) -> dict[str, Any]:
    """Name what the frames of a window depend on: the file, by path, size and time of change, and the window."""
    return {"clip": [str(record.video.resolve()), file_state(record.video)], "window": [*vars(window).values()]}


def apply_mask(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Blacken an image where its mask is black; as released, every other value keeps it, such as the number of a class."""
    kept = mask.convert("L").point(lambda value: 255 * (value > 0))
    return ImageChops.multiply(image, kept.resize(image.size, Image.Resampling.BILINEAR).convert("RGB"))
