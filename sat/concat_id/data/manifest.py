"""What sat/prepare_clips.py found: clips, the people in them, images and vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concat_id.errors import UserError
from concat_id.files.arrays import read_arrays
from concat_id.files.formats import is_image
from concat_id.files.json_files import OBJECT, TEXT, WORDS, list_of, one_of, read_json, take
from concat_id.files.paths import kind_of, visible_files

SPLITS = ("train", "valid", "test")
VECTORS = "vectors.npz"
TOLERANCE = 0.01  # of the vectors' length
COMMAND = "prepare the clips again with sat/prepare_clips.py"


@dataclass(frozen=True, eq=False)
class Appearance:
    """One person in one clip: images with their vectors (N, D) of length 1, the best first; `identity` if the list named it."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    vectors: np.ndarray
    identity: str | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean of the vectors (D,), whose product with another vector is that one's mean cosine with the images."""
        return self.vectors.mean(axis=0)


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip with its people from left to right; `recording` names what it was taken from, if more clips were."""

    video: Path
    caption: str
    people: tuple[Appearance, ...]
    split: str | None = None
    recording: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether it is a single image."""
        return is_image(self.video)

    @property
    def origin(self) -> str:
        """What two clips have in common if neither shows a person anew."""
        return self.recording or str(self.video)


def read_manifest(file: Path) -> tuple[str, list[Clip]]:
    """Read manifest.json and the vectors beside it; return the recogniser's name and the clips. Raises `UserError`."""
    if kind_of(file) == "no such file":
        raise UserError(f"{file}: no such manifest; `python sat/prepare_clips.py --videos ... --output {file.parent}` makes it")
    content = read_json(file, "a manifest of sat/prepare_clips.py", COMMAND)
    recognizer, entries = (take(content, key, kind, str(file), COMMAND) for key, kind in (("recognizer", TEXT), ("clips", list_of(OBJECT))))
    if not entries:
        raise UserError(f"{file}: found no clips, expected at least one; its `discarded` says why each was discarded")
    clips = read_clips(entries, file.parent, f"{file}: clips")
    sizes = sorted({person.vectors.shape[1] for clip in clips for person in clip.people})
    if len(sizes) > 1:
        raise UserError(f"{file}: found vectors of {sizes[0]} and of {sizes[-1]} numbers, expected one recogniser's; {COMMAND}")
    return recognizer, clips


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
    return Clip(folder / video, caption, appearances, split, recording)


def _appearance(person: dict[str, Any], home: Path, place: str, known: dict[Path, dict[str, np.ndarray]]) -> Appearance:
    identity = take(person, "identity", TEXT, place, COMMAND, optional=True)
    name = Path(take(person, "folder", TEXT, place, COMMAND))
    if not name.name or name.is_absolute() or ".." in name.parts:
        raise UserError(f"{place}: folder: found {str(name)!r}, expected one inside {home}; {COMMAND}")
    folder = home / name
    if folder.parent not in known:
        known[folder.parent] = _read_vectors(folder.parent / VECTORS)
    images = sorted((path for path in visible_files(folder, "*.png") if kind_of(path) == "a file"), key=_number)
    names = [f"{folder.name}/{image.name}" for image in images]
    missing = [image for image in names if image not in known[folder.parent]]
    if missing or not names:
        raise UserError(f"{place}: found {', '.join(missing) or 'no images'} in {folder}, expected those of {VECTORS}; {COMMAND}")
    masks = tuple(folder.with_name(f"{folder.name}.masks") / image.name for image in images)
    return Appearance(tuple(images), masks, np.stack([known[folder.parent][image] for image in names]), identity)


def _read_vectors(file: Path) -> dict[str, np.ndarray]:
    """Return the vectors (D,) by image."""
    files, vectors = read_arrays(file, "files", "vectors", remedy=COMMAND)
    fits = files.dtype.kind == "U" and vectors.dtype.kind == "f" and vectors.size and files.shape == vectors.shape[:1] == vectors.shape[:-1]
    if not fits or not (np.abs(vectors) <= 1 + TOLERANCE).all():  # NaN does not pass either
        raise UserError(f"{file}: found no names with vectors of length 1; {COMMAND}")
    return dict(zip(files.tolist(), vectors, strict=True))


def _number(image: Path) -> int:
    return int(image.stem) if image.stem.isdecimal() else -1
