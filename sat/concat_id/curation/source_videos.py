"""The videos and images to prepare, with what is known about each: caption, identities from left to right, split, recording."""

import os
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

from concat_id.data.manifest import SPLITS
from concat_id.data.records import notes_of_foreign
from concat_id.errors import UserError, reason_of, warn
from concat_id.files.formats import VIDEOS, beside, is_image, is_video, media_in
from concat_id.files.json_files import OBJECT, TEXT, WORDS, Kind, list_of, one_of, parse_list, read_json, recall_json, require, take
from concat_id.files.paths import copies_among, kind_of, read_text, resolve_path

RECORD = "video.json"  # of a folder that prepare_clips.py has made
KEYS = ("video_path", "image_path", "caption", "identities", "split", "recording")  # of a list's entries
NAME = Kind("a name", lambda value: isinstance(value, str) and bool(value.strip()))
NAMES = Kind("a list of names from left to right", lambda value: list_of(NAME).fits(value) and len(value) > 0)


@dataclass(frozen=True)
class SourceVideo:
    """A video, or an image as a video of one frame. `identities` are those of the people from left to right, None if nobody told; so is
    `split`, and `recording`, which names what several clips were taken from: none of them counts as another clip to the others.
    """

    path: Path
    caption: str
    identities: tuple[str, ...] | None = None
    split: str | None = None
    recording: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether it is a single image."""
        return is_image(self.path)

    @property
    def told(self) -> dict[str, str | None]:
        """What clips of it have in manifests that changes nothing of their crops."""
        return {"caption": self.caption, "split": self.split, "recording": self.recording}


class Captions:
    """Captions from a JSON object by a video's path, name or stem, from `name.txt` beside it, or else one for all.

    `option` is what the one for all is called on the command line, `suffix` what stands beside videos, None for nothing. Where they are
    `optional`, that of a video without one is empty.
    """

    def __init__(self, file: Path | None = None, default: str | None = None, option: str = "caption", suffix: str | None = ".txt",
                 optional: bool = False):  # fmt: skip
        self.default = " ".join(require(default or "", WORDS, f"command line: --{option}").split())
        self._place = f"--{option}s: {file}"
        self._given = {} if file is None else _read_captions(file, self._place)
        self._used: dict[str, Path | None] = {}  # by key: whose it is, None if only videos with captions of their own fit
        self._option, self._suffix, self._optional = option, suffix, optional

    def of(self, video: Path, own: str = "") -> str:
        """Return the caption of a video, its `own` if it has one. Raises `UserError` for none, or if the file's is another video's too."""
        for key in (normalize("NFC", name) for name in (str(video), video.name, video.stem)):
            if key in self._given:
                first = self._used[key] = self._used.get(key) or (None if own else video)
                if not own and first != video and not copies_among((first, video)):
                    raise UserError(f"{self._place}: {key}: found {first} and {video}, expected one file; write their paths")
                return own or self._given[key]
        if own:
            return own
        words = beside(video, self._suffix) if self._suffix else None
        if words and kind_of(words) == "a file" and (text := " ".join(read_text(words, "a caption").split())):
            return text
        if self.default or self._optional:
            return self.default
        places = f"--{self._option}s, {f'{words.name} beside it, ' if words else ''}or --{self._option} for all"
        raise UserError(f"{video}: found no caption, expected one in {places}")

    def warn_of_unused(self) -> None:
        """Tell how many captions of the file are no video's."""
        if unused := [key for key in self._given if key not in self._used]:
            told = "captions are not used; expected a path, a name or a stem of what is prepared, found first"
            warn(f"{self._place}: {len(unused)} {told} {unused[0]!r}")


def read_sources(videos: Sequence[Path], captions: Captions) -> tuple[list[SourceVideo], list[str]]:
    """Collect videos from files, folders and JSON lists; return them and what is wrong with the others, a line each.

    Raises `UserError` for a list that is no JSON.
    """
    sources, problems = {}, []
    for argument in videos:
        try:
            entries = list(_entries_of(argument))
        except OSError as error:
            problems.append(f"{argument}: cannot be read ({reason_of(error)}); check its permissions")
            continue
        if not entries and kind_of(argument) == "a folder":
            problems.append(f"{argument}: found no video in this folder, expected {', '.join(sorted(VIDEOS))}")
        foreign = Counter(key for _, entry in entries if isinstance(entry, dict) for key in entry if key not in KEYS)
        warn(*notes_of_foreign(argument, foreign, KEYS))
        for place, entry in entries:
            try:
                source = _source_of(entry, argument.parent, place, captions, sources)
                sources[os.path.realpath(source.path)] = source
            except UserError as error:
                problems.append(str(error))
    captions.warn_of_unused()
    copies = copies_among(source.path for source in sources.values())
    problems += [f"{copy}: a copy of {first}; the first is used" for copy, first in copies.items()]
    return [source for source in sources.values() if source.path not in copies], problems


def _entries_of(argument: Path) -> Iterator[tuple[str, Any]]:
    """Yield what an argument names, paths or entries of a list, each with its place for messages."""
    if kind_of(argument) == "a folder":
        is_prepared = cache(lambda folder: (recall_json(folder / RECORD) or {}).keys() >= {"fingerprint", "source"})
        found = media_in(argument, lambda path: is_video(path) and not is_prepared(path.parent), deep=True)
        yield from (("--videos", path) for path in found)  # none that an earlier run has cut
    elif argument.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv"):
        text = read_text(argument, "a JSON list of videos")
        yield from ((f"{argument}:{line}", entry) for line, entry in parse_list(text, str(argument)))
    else:
        yield "--videos", argument


def _source_of(entry: Any, base: Path, place: str, captions: Captions, named: Container[str]) -> SourceVideo:
    """Make the source of a path or of a list's entry, whose paths are from `base`, unless its real path is `named` already."""
    if isinstance(entry, Path):
        return SourceVideo(_new(entry, place, named), captions.of(entry))
    key = "image_path" if "video_path" not in require(entry, OBJECT, place) else "video_path"
    path = resolve_path(take(entry, key, TEXT, place), base, f"{place}: {key}")
    _new(path, f"{place}: {key}", named)
    caption = " ".join((take(entry, "caption", WORDS, place, optional=True) or "").split())
    identities = take(entry, "identities", NAMES, place, optional=True)
    split = take(entry, "split", one_of(*SPLITS), place, optional=True)
    recording = _name(take(entry, "recording", TEXT, place, optional=True) or "") or None
    return SourceVideo(path, captions.of(path, caption), tuple(map(_name, identities)) if identities else None, split, recording)


def _name(text: str) -> str:
    """Write what is the same to a reader the same way, in one form of Unicode and with single spaces."""
    return " ".join(normalize("NFC", text).split())


def _new(path: Path, place: str, named: Container[str]) -> Path:
    if (found := kind_of(path)) != "a file":
        raise UserError(f"{place}: found {found}, {str(path)!r}, expected a video, a folder or a .json list; check the path")
    if os.path.realpath(path) in named:
        raise UserError(f"{path}: named twice; the first is used")
    return path


def _read_captions(file: Path, place: str) -> dict[str, str]:
    given = require(read_json(file, "a JSON object with captions"), OBJECT, place)
    for name in given:
        if not take(given, name, WORDS, place).strip():
            raise UserError(f"{place}: {name}: found no words, expected a caption; write one, or remove the line")
    return {normalize("NFC", name): " ".join(text.split()) for name, text in given.items()}
