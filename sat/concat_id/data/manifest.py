"""What sat/prepare_clips.py found: clips, the people in them, pictures and vectors."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concat_id.data.records import PICTURES
from concat_id.errors import UserError

SPLITS = ("train", "valid", "test")
VECTORS = "vectors.npz"
COMMAND = "prepare the clips again with sat/prepare_clips.py"


@dataclass(frozen=True, eq=False)
class Appearance:
    """One person in one clip: pictures with their vectors (N, D) of length 1, the best first; `identity` if the list named it.

    `box` is where the face is in the clip's frames: left, top, right, bottom as shares of width and height.
    """

    pictures: tuple[Path, ...]
    masks: tuple[Path, ...]
    vectors: np.ndarray
    identity: str | None = None
    box: tuple[float, ...] | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean of the vectors (D,), whose product with another vector is that one's mean cosine with the pictures."""
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
    def is_picture(self) -> bool:
        """Whether it is a single picture."""
        return self.video.suffix.lower() in PICTURES

    @property
    def origin(self) -> str:
        """What two clips have in common if neither shows a person anew."""
        return self.recording or str(self.video)


def read_manifest(file: Path) -> tuple[str, list[Clip]]:
    """Read manifest.json and the vectors beside it; return the recogniser's name and the clips. Raises `UserError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        recognizer, entries = str(content["recognizer"]), list(content["clips"])
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such manifest; `python sat/prepare_clips.py --videos ... --output {file.parent}` makes it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: found no manifest of sat/prepare_clips.py ({type(error).__name__}: {error}); {COMMAND}") from error
    if not entries:
        raise UserError(f"{file}: found no clips, expected at least one; its `discarded` says why each was discarded")
    vectors: dict[Path, dict[str, np.ndarray]] = {}
    return recognizer, [_clip(entry, file, f"{file}: clips[{number}]", vectors) for number, entry in enumerate(entries)]


def _clip(entry: dict[str, Any], file: Path, place: str, known: dict[Path, dict[str, np.ndarray]]) -> Clip:
    try:
        video, caption, split, people = Path(entry["video_path"]), entry["caption"], entry["split"], entry["people"]
        appearances = tuple(_appearance(file.parent / person["folder"], person, place, known) for person in people)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: not an entry of sat/prepare_clips.py ({type(error).__name__}: {error}); {COMMAND}") from error
    if split not in (None, *SPLITS):
        raise UserError(f"{place}: split: found {split!r}, expected one of {', '.join(SPLITS)}")
    return Clip(file.parent / video, caption, appearances, split, entry.get("recording"))


def _appearance(folder: Path, person: dict[str, Any], place: str, known: dict[Path, dict[str, np.ndarray]]) -> Appearance:
    home = folder.parent
    if home not in known:
        try:
            with np.load(home / VECTORS, allow_pickle=False) as content:
                known[home] = dict(zip(content["files"].tolist(), content["vectors"], strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{place}: {home / VECTORS} cannot be read ({error}); {COMMAND}") from error
    pictures = tuple(sorted(folder.glob("*.png"), key=lambda picture: int(picture.stem) if picture.stem.isdecimal() else -1))
    names = [f"{folder.name}/{picture.name}" for picture in pictures]
    missing = [name for name in names if name not in known[home]]
    if missing or not names:
        raise UserError(f"{place}: found {missing or 'no pictures'} in {folder}, expected those of {VECTORS}; {COMMAND}")
    masks = tuple(folder.with_name(f"{folder.name}.masks") / picture.name for picture in pictures)
    vectors = np.stack([known[home][name] for name in names])
    return Appearance(pictures, masks, vectors, person["identity"], tuple(person.get("box") or ()) or None)
