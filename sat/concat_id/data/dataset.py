"""Samples for training: a window of a clip, its caption and its people's pictures, the same for the same (seed, epoch, index)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.utils.data import Dataset

from concat_id.config import DataConfig
from concat_id.data.cache import CachedLatents
from concat_id.data.clips import BadFiles, ClipReader, UnreadableClipError, Window, file_state, read_picture
from concat_id.data.records import Record
from concat_id.errors import UserError
from concat_id.transforms import fit_and_pad, load_image, to_tensor

MASK_PROBABILITY = 0.9  # as released
ATTEMPTS = 20  # other clips tried before so many failures are taken for a mistake in the list

Sample = dict[str, Any]


class ClipDataset(Dataset):
    """Samples of records by (epoch, record index).

    A sample has `video` (3, F, H, W) and `refs` (R, 3, H, W) in [-1, 1], `caption`, `boxes` of the faces (none or R), the `index` of the
    record that was read, whether it is `replaced` because the one asked for cannot be read, and how many frames at its end are `held`.
    Pictures are not flipped: a mirrored face is another face.

    Records whose video is a picture give one frame. `kinds` says which samples can share a batch: the number of people, negative for
    pictures.

    With `latents`, windows start at one of `windows` places, and a sample whose encoding is cached has `moments` instead of `video`;
    `window` is its key. With `ref_noises` as well, each picture has so many noises, one of which is drawn: cached references are
    `ref_moments` instead of `refs`, by `ref_key`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        data: DataConfig,
        training: bool = True,
        seed: int = 42,
        bad_clips: Path | None = None,
        timeout_s: float = 60.0,
        latents: CachedLatents | None = None,
        windows: int = 4,
        ref_noises: int | None = None,
    ):
        if not records:
            raise UserError("train_data: no clips, expected at least one; check args.train_data")
        self.records, self.data, self.training, self.seed = list(records), data, training, seed
        self.bad_files, self.reader = BadFiles(bad_clips), ClipReader(timeout_s)
        self.latents, self.windows, self.ref_noises = latents, windows, ref_noises
        self.kinds = [-record.num_refs if record.is_picture else record.num_refs for record in self.records]
        self._alike = {kind: np.flatnonzero(np.array(self.kinds) == kind) for kind in set(self.kinds)}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the sample of (epoch, record index); raises `UserError` when neither it nor its many replacements can be read."""
        return as_floats(self.read(key))

    def read(self, key: tuple[int, int]) -> Sample:
        """Return the sample with `video` as uint8, a fourth of the size between processes."""
        failures: list[str] = []
        epoch, asked = key
        for index in self._candidates(epoch, asked):
            record = self.records[index]
            reason = self.bad_files.reason(record.video)
            if reason is None:
                try:
                    return self._sample(record, epoch, index) | {"index": index, "replaced": index != asked}
                except UnreadableClipError as error:
                    self.bad_files.add(error.path, error.reason, record.source)
                    reason = error.reason
            failures.append(f"{record.source}: {reason}")
        raise UserError(
            f"{len(failures)} clips in a row cannot be read, the first is {failures[0]}; check the list with sat/check_dataset.py"
        )

    def _candidates(self, epoch: int, index: int):
        """The record asked for, then others of its kind in an order of its own."""
        yield int(index)
        others = self._alike[self.kinds[index]]
        others = others[others != index]
        yield from np.random.default_rng([self.seed, epoch, index, 1]).permutation(others)[:ATTEMPTS].tolist()

    def _sample(self, record: Record, epoch: int, index: int) -> Sample:
        random = np.random.default_rng([self.seed, epoch, index, 0]) if self.training else None
        window = self._window(record, random)
        sample: Sample = {"caption": record.caption, "boxes": record.boxes, "held": 0} | self._references(record, random)
        if self.latents is not None:
            sample["window"] = window_key(record, window)
            sample["moments"] = self.latents.read(sample["window"])
            if sample["moments"] is not None:
                return sample
        frames = read_picture(record.video, window.size) if record.is_picture else self.reader.read(record.video, window)
        return sample | {"video": frames.pixels.permute(3, 0, 1, 2), "held": frames.held}

    def _window(self, record: Record, random: np.random.Generator | None) -> Window:
        position = 0.5
        if random is not None:  # always draws once, so that what is drawn later does not depend on the cache
            position = float(random.random())
            if self.latents is not None:
                position = (int(position * self.windows) + 0.5) / self.windows
        data = self.data
        if record.is_picture:
            return Window(data.fps, 1, 0, tuple(data.video_size))
        return Window(data.fps, data.max_num_frames, data.skip_frms_num, tuple(data.video_size), position)

    def _references(self, record: Record, random: np.random.Generator | None) -> Sample:
        """Choose a picture of each person, and load them as `refs` (R, 3, H, W) unless they are cached."""
        chosen = [_choose(record, person, random) for person in range(record.num_refs)]
        found: Sample = {}
        if self.latents is not None and self.ref_noises:
            found["ref_key"] = reference_key(chosen, int(random.integers(self.ref_noises)), tuple(self.data.video_size))
            found["ref_moments"] = self.latents.read(found["ref_key"])
            if found["ref_moments"] is not None:
                return found
        return found | {"refs": torch.stack([self._reference(record, *files) for files in chosen])}

    def _reference(self, record: Record, picture: Path, mask: Path | None) -> Tensor:
        """Load a picture, or the first frame of a clip that training sees, as (3, H, W) in [-1, 1], what its mask does not cover black."""
        if not record.shows_itself:
            image = _load(picture)
        else:
            first = Window(self.data.fps, 1, self.data.skip_frms_num, tuple(self.data.video_size), 0.0)
            image = Image.fromarray(self.reader.read(picture, first).pixels[0].numpy())
        if mask is not None:
            image = apply_mask(image, _load(mask))
        return to_tensor(fit_and_pad(image, tuple(self.data.video_size)))


def _choose(record: Record, person: int, random: np.random.Generator | None) -> tuple[Path, Path | None]:
    """Draw one of a person's pictures, and whether to use its mask."""
    pictures = record.images[person]
    chosen, masked = (0, True) if random is None else (int(random.integers(len(pictures))), random.random() < MASK_PROBABILITY)
    return pictures[chosen], record.masks[person][chosen] if record.masks and masked else None


def reference_key(chosen: Sequence[tuple[Path, Path | None]], noise: int, size: tuple[int, int]) -> dict[str, Any]:
    """Name what a sample's references depend on: pictures and masks, by path, size and time of change, the noise, the frames' size."""
    files = [[str(file.resolve()), file_state(file)] if file else None for pair in chosen for file in pair]
    return {"references": files, "noise": noise, "size": list(size)}


def window_key(record: Record, window: Window) -> dict[str, Any]:
    """Name what the frames of a window depend on: the file, by path, size and time of change, and the window."""
    return {"clip": [str(record.video.resolve()), file_state(record.video)], "window": [*vars(window).values()]}


def apply_mask(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Multiply a picture by a mask: white keeps, black blackens. A mask of zeros and ones counts as black and white."""
    grey = mask.convert("L")
    if grey.getextrema()[1] == 1:
        grey = grey.point(lambda value: 255 * value)
    return ImageChops.multiply(image, grey.resize(image.size, Image.Resampling.BILINEAR).convert("RGB"))


def _load(path: Path) -> Image.Image:
    try:
        return load_image(path)
    except UserError as error:
        raise UnreadableClipError(path, str(error).removeprefix(f"{path}: ")) from error


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples of one kind: `video` (B, 3, F, H, W), `refs` (B, R, 3, H, W), the rest as lists in the plural.

    With cached latents, `moments` is a list with None for those that are not cached, and `video` holds only these, if there are any;
    so are `ref_moments` and `refs`.
    """
    plural = {"caption": "captions", "boxes": "boxes", "index": "indices", "replaced": "replaced", "held": "held", "window": "windows",
              "moments": "moments", "ref_key": "ref_keys", "ref_moments": "ref_moments"}  # fmt: skip
    batch: dict[str, Any] = {name: [sample[key] for sample in samples] for key, name in plural.items() if key in samples[0]}
    for name in ("refs", "video"):
        there = [sample[name] for sample in samples if name in sample]
        batch |= {name: torch.stack(there)} if there else {}
    return batch


def as_floats(sample: dict[str, Any]) -> dict[str, Any]:
    """Turn the uint8 `video` of a sample or batch into float32 in [-1, 1]."""
    if "video" not in sample:
        return sample
    video = sample["video"].to(torch.float32, memory_format=torch.contiguous_format)
    return sample | {"video": video.div_(127.5).sub_(1)}
