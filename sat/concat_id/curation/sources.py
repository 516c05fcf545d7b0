"""The videos and pictures to prepare, with what is known about each: caption, identities from left to right, split, recording."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concat_id.data.manifest import SPLITS
from concat_id.errors import UserError
from concat_id.files import read_text, safe_name
from concat_id.formats import VIDEOS, beside, is_picture, is_video, media_in
from concat_id.json_files import parse_list, read_json


@dataclass(frozen=True)
class Source:
    """A video, or a picture as a video of one frame. `identities` are those of the people from left to right, None if nobody told; so is
    `split`, and `recording`, which names what several clips were taken from: none of them counts as another clip to the others.
    """

    path: Path
    caption: str
    identities: tuple[str, ...] | None = None
    split: str | None = None
    recording: str | None = None

    @property
    def is_picture(self) -> bool:
        """Whether it is a single picture."""
        return is_picture(self.path)

    @property
    def name(self) -> str:
        """A folder name that is this video's alone, the same in every run."""
        digest = hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()
        return f"{safe_name(self.path.stem, 40)}-{digest[:6]}"


class Captions:
    """Captions from a JSON object by a video's path, name or stem, from `name.txt` beside it, or else one for all."""

    def __init__(self, file: Path | None = None, default: str | None = None):
        self.default = " ".join((default or "").split())
        self._given = {} if file is None else _read_captions(file)

    def of(self, video: Path) -> str:
        """Return the caption of a video. Raises `UserError` if there is none."""
        for key in (str(video), video.name, video.stem):
            if key in self._given:
                return self._given[key]
        words = beside(video, ".txt")
        if words.is_file():
            try:
                if text := " ".join(words.read_text(encoding="utf-8-sig").split()):
                    return text
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{words}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
        if self.default:
            return self.default
        raise UserError(f"{video}: found no caption, expected one in --captions, {words.name} beside it, or --caption for all")


def read_sources(videos: Sequence[str | Path], captions: Captions) -> tuple[list[Source], list[str]]:
    """Collect videos from files, folders and JSON lists; return them and what is wrong with the others, a line each.

    Raises `UserError` for a list that is no JSON.
    """
    sources, problems = {}, []
    for argument in (Path(video).expanduser() for video in videos):
        for make in _sources_of(argument, captions):
            try:
                source = make()
                if source.path.resolve() in sources:
                    raise UserError(f"{source.path}: named twice; the first is used")
                sources[source.path.resolve()] = source
            except UserError as error:
                problems.append(str(error))
    return list(sources.values()), problems


def _sources_of(argument: Path, captions: Captions) -> Iterator[Any]:
    """Yield a function for each video that makes its source or raises `UserError`."""
    if argument.is_dir():
        found = media_in(argument, is_video)
        if not found:
            yield lambda: _fail(f"{argument}: found no video in this folder, expected {', '.join(sorted(VIDEOS))}")
        for path in found:
            yield lambda path=path: Source(path, captions.of(path))
    elif argument.suffix.lower() == ".json":
        for line, entry in parse_list(read_text(argument, "a JSON list of videos"), str(argument)):
            yield lambda line=line, entry=entry: _source_of_entry(entry, argument.parent, f"{argument}:{line}", captions)
    else:
        yield lambda: Source(_existing(argument, "--videos"), captions.of(argument))


def _source_of_entry(entry: Any, base: Path, place: str, captions: Captions) -> Source:
    key = "image_path" if isinstance(entry, dict) and "video_path" not in entry else "video_path"
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise UserError(f"{place}: found no text under video_path or image_path, expected an entry with a video or a picture")
    path = Path(entry[key]).expanduser()
    path = _existing(base / path if (base / path).exists() else path, f"{place}: {key}")
    caption = entry.get("caption")
    if caption is not None and not isinstance(caption, str):
        raise UserError(f"{place}: caption: found {caption!r}, expected text")
    identities = entry.get("identities")
    if identities is not None and not (isinstance(identities, list) and identities and all(isinstance(name, str) for name in identities)):
        raise UserError(f"{place}: identities: found {identities!r}, expected a list of names from left to right")
    if entry.get("split") not in (None, *SPLITS):
        raise UserError(f"{place}: split: found {entry['split']!r}, expected one of {', '.join(SPLITS)}")
    recording = entry.get("recording")
    if recording is not None and not isinstance(recording, str):
        raise UserError(f"{place}: recording: found {recording!r}, expected text")
    text = " ".join(caption.split()) if caption else ""
    return Source(path, text or captions.of(path), tuple(identities) if identities else None, entry.get("split"), recording)


def _existing(path: Path, place: str) -> Path:
    if not path.is_file():
        raise UserError(f"{place}: found no file {str(path)!r}, expected a video, a folder or a .json list; check the path")
    return path


def _fail(message: str) -> Source:
    raise UserError(message)


def _read_captions(file: Path) -> dict[str, str]:
    given = read_json(file, "a JSON object with captions")
    if not isinstance(given, dict) or not all(isinstance(text, str) and text.strip() for text in given.values()):
        raise UserError(f'--captions: {file}: expected an object {{"video.mp4": "caption", ...}} with a text for each video')
    return {name: " ".join(text.split()) for name, text in given.items()}
