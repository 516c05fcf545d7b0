"""Clips as sat/prepare_clips.py found them: the people in them, images and vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concat_id.errors import UserError
from concat_id.files.arrays import read_arrays
from concat_id.files.formats import is_image
from concat_id.files.json_files import OBJECT, TEXT, WORDS, list_of, one_of, take
from concat_id.files.paths import kind_of, visible_files

SPLITS = ("train", "valid", "test")
VECTORS = "vectors.npz"
TOLERANCE = 0.01  # of the vectors' length
COMMAND = "prepare the clips again with sat/prepare_clips.py"


@dataclass(frozen=True, eq=False, slots=True)
class Appearance:
    """One person in one clip: images in `folder` with their vectors (N, D) of length 1, the best first; `identity` if the list named it.

    There may be a million of these: paths are made when asked for, and `rows` may be part of a large array in float16.
    """

    folder: str
    names: tuple[str, ...]
    rows: np.ndarray
    identity: str | None = None

    @property
    def vectors(self) -> np.ndarray:
        """The vectors (N, D) to compute with."""
        return self.rows.astype(np.float32) if self.rows.dtype == np.float16 else self.rows

    @property
    def mean(self) -> np.ndarray:
        """Mean of the vectors (D,), whose product with another vector is that one's mean cosine with the images."""
        return self.vectors.mean(axis=0)

    def image(self, number: int | None = None) -> Path:
        """Name an image, or the folder of all."""
        return Path(self.folder, "" if number is None else self.names[number])

    def mask(self, number: int | None = None) -> Path:
        """Name the mask of an image, or the folder of all."""
        return Path(f"{self.folder}.masks", "" if number is None else self.names[number])


@dataclass(frozen=True, eq=False, slots=True)
class Clip:
    """A clip in `file` with its people from left to right; `recording` names what it was taken from, if more clips were."""

    file: str
    caption: str
    people: tuple[Appearance, ...]
    split: str | None = None
    recording: str | None = None

    @property
    def video(self) -> Path:
        """The file as a path."""
        return Path(self.file)

    @property
    def is_image(self) -> bool:
        """Whether it is a single image."""
        return is_image(self.video)

    @property
    def origin(self) -> str:
        """What two clips have in common if neither shows a person anew."""
        return self.recording or self.file


def read_clips(entries: Sequence[dict[str, Any]], folder: Path, place: str) -> list[Clip]:
    """Make clips of entries whose paths are from `folder`, with the images and vectors that they name. Raises `UserError`."""
    vectors: dict[Path, dict[str, np.ndarray]] = {}
    return [_clip(entry, folder, f"{place}[{number}]", vectors) for number, entry in enumerate(entries)]


def _clip(entry: dict[str, Any], folder: Path, place: str, known: dict[Path, dict[str, np.ndarray]]) -> Clip:
    video, caption = take(entry, "video_path", TEXT, place, COMMAND), take(entry, "caption", WORDS, place, COMMAND)
    split = take(entry, "split", one_of(*SPLITS), place, COMMAND, optional=True)
    recording = take(entry, "recording", TEXT, place, COMMAND, optional=True)
    people = take(entry, "people", list_of(OBJECT), place, COMMAND)
    if not people:
        raise UserError(f"{place}: people: found none, expected at least one; {COMMAND}")
    appearances = tuple(_appearance(person, folder, f"{place}: people[{number}]", known) for number, person in enumerate(people))
    return Clip(str(folder / video), caption, appearances, split, recording)


def folder_inside(home: Path, name: str, place: str) -> Path:
    """Return the folder `name` of `home`. Raises `UserError` for one elsewhere."""
    path = Path(name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{place}: folder: found {str(path)!r}, expected one inside {home}; {COMMAND}")
    return home / path


def _appearance(person: dict[str, Any], home: Path, place: str, known: dict[Path, dict[str, np.ndarray]]) -> Appearance:
    identity = take(person, "identity", TEXT, place, COMMAND, optional=True)
    folder = folder_inside(home, take(person, "folder", TEXT, place, COMMAND), place)
    if folder.parent not in known:
        known[folder.parent] = _read_vectors(folder.parent / VECTORS)
    images = sorted((path for path in visible_files(folder, "*.png") if kind_of(path) == "a file"), key=_number)
    names = [f"{folder.name}/{image.name}" for image in images]
    missing = [image for image in names if image not in known[folder.parent]]
    if missing or not names:
        raise UserError(f"{place}: found {', '.join(missing) or 'no images'} in {folder}, expected those of {VECTORS}; {COMMAND}")
    rows = np.stack([known[folder.parent][image] for image in names])
    return Appearance(str(folder), tuple(image.name for image in images), rows, identity)


def _read_vectors(file: Path) -> dict[str, np.ndarray]:
    """Return the vectors (D,) by image."""
    files, vectors = read_arrays(file, "files", "vectors", remedy=COMMAND)
    fits = files.dtype.kind == "U" and vectors.dtype.kind == "f" and vectors.size and files.shape == vectors.shape[:1] == vectors.shape[:-1]
    if not fits or not are_bounded(vectors):
        raise UserError(f"{file}: found no names with vectors of length 1; {COMMAND}")
    return dict(zip(files.tolist(), vectors, strict=True))


def are_bounded(vectors: np.ndarray) -> bool:
    """Whether no number is larger than a vector of length 1 has, nor NaN."""
    return bool((np.abs(vectors) <= 1 + TOLERANCE).all())


def _number(image: Path) -> int:
    return int(image.stem) if image.stem.isdecimal() else -1
