"""Training lists: what each clip is, which words and which people's pictures belong to it.

A list is JSON: `[{"video_path": ..., "caption": ..., "image_path": "a.png" | "a.png@@b.png" | "folder"}, ...]`, people from left to
right, optionally with a `mask_path` of the same form, and with `face_boxes`: where each person's face is in the frames,
`[[left, top, right, bottom], ...]` as shares of width and height, for args.face_weight. A folder in the place of a picture holds
alternatives, of which one is drawn per epoch. Relative paths start at the list's folder, else at the current one.

A folder can stand for a list. Each `name.mp4` in it needs `name.txt`, the caption, and its people: `name.png` (or another picture),
or a folder `name/` with one person's alternative pictures, or with one folder per person (`name/1/`, `name/2/`, left to right).
Masks are optional and take the same forms, called `name.masks.png` or `name.masks/`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concat_id.errors import UserError, warn
from concat_id.files import read_text
from concat_id.json_files import parse_list
from concat_id.typed import nearest

SEPARATOR = "@@"
REQUIRED, OPTIONAL, BOXES = ("video_path", "caption", "image_path"), ("mask_path",), "face_boxes"
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SHOWN = 3  # problems in one message


@dataclass(frozen=True)
class Record:
    """A clip, or a picture as a video of one frame. `images` holds, per person from left to right, the alternative pictures; `masks`
    theirs, or nothing at all; `boxes` where their faces are, (left, top, right, bottom) as shares of the frame, or nothing.

    `source` says where it was written, for messages.
    """

    video: Path
    caption: str
    images: tuple[tuple[Path, ...], ...]
    masks: tuple[tuple[Path, ...], ...]
    source: str
    boxes: tuple[tuple[float, ...], ...] = ()

    @property
    def num_refs(self) -> int:
        """How many people have a picture."""
        return len(self.images)

    @property
    def is_picture(self) -> bool:
        """Whether the "video" is a single picture."""
        return self.video.suffix.lower() in PICTURES


def read_records(paths: Sequence[str | Path]) -> list[Record]:
    """Read lists and folders, one after the other.

    Raises `UserError` naming line and column of broken JSON, or the first few entries that are wrong or name files that are not there.
    """
    records, problems = inspect_records(paths)
    if problems:
        first, more = "; ".join(problems[:SHOWN]), f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{first}{more}; see all of them with `python sat/check_dataset.py {' '.join(map(str, paths))}`")
    if not records:
        raise UserError(f"{', '.join(map(str, paths)) or 'train_data'}: no clips found; add entries or correct args.train_data")
    return records


def words_of(caption: str) -> set[str]:
    """Split a caption into its words, in lower case."""
    return set(re.findall(r"[\w-]+", caption.lower()))


def repeat_rare(records: Sequence[Record], words: Sequence[str], times: int) -> list[Record]:
    """Put in every record `times` times whose caption has one of `words`: whole words, in any case. Warns of words that none has."""
    said = [words_of(record.caption) for record in records]
    unknown = sorted({word.lower() for word in words} - set().union(*said))
    if unknown:
        warn(f"data.rare_words: {', '.join(unknown)} in no caption of the {len(records)}")
    rare = {word.lower() for word in words}
    return [record for record, own in zip(records, said, strict=True) for _ in range(times if own & rare else 1)]


def inspect_records(paths: Sequence[str | Path]) -> tuple[list[Record], list[str]]:
    """Read lists and folders; return the good entries and what is wrong with the others, a line each."""
    records, problems = [], []
    for path in (Path(path).expanduser() for path in paths):
        for source, entry in _folder_entries(path) if path.is_dir() else _list_entries(path):
            base = path if path.is_dir() else path.parent
            try:
                records.append(_make_record(entry, base, source))
            except UserError as error:
                problems.append(str(error))
    return records, problems


def _list_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, entry) of a JSON list."""
    if path.suffix.lower() in VIDEOS | PICTURES:
        kind = "video" if path.suffix.lower() in VIDEOS else "picture"
        raise UserError(f"{path}: found a {kind}, expected a JSON list or a folder; name one")
    text = read_text(path, "a JSON list of clips or a folder", "check args.train_data and args.valid_data")
    return ((f"{path}:{line}", entry) for line, entry in parse_list(text, str(path)))


def _folder_entries(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file, entry) for each video of a folder; what stands beside it has its name."""
    for video in sorted(folder.iterdir()):
        if video.suffix.lower() not in VIDEOS:
            continue
        entry: dict[str, Any] = {"video_path": str(video.absolute())}
        try:
            entry["caption"] = video.with_suffix(".txt").read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            entry["caption"] = ""
        except (OSError, UnicodeDecodeError) as error:
            yield str(video), UserError(f"{video.with_suffix('.txt')}: cannot be read as UTF-8 text ({error}); save it as UTF-8")
            continue
        entry["image_path"] = _people_beside(video.with_suffix("")) or f"{video.with_suffix('').absolute()}.png"
        masks = _people_beside(video.with_suffix(".masks"))
        yield str(video), entry | ({"mask_path": masks} if masks else {})


def _people_beside(stem: Path) -> str:
    """The people of a folder's video as the `image_path` of a list, '' if there are none."""
    if stem.is_dir():
        people = [person for person in sorted(stem.iterdir(), key=_by_number) if person.is_dir()]
        return SEPARATOR.join(str(person.absolute()) for person in people or [stem])
    pictures = (stem.with_name(stem.name + suffix) for suffix in sorted(PICTURES))
    return next((str(picture.absolute()) for picture in pictures if picture.is_file()), "")


def _by_number(path: Path) -> list[Any]:
    """Sort key by which 10 comes after 9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", path.name)]


def _make_record(entry: Any, base: Path, source: str) -> Record:
    """Check one entry. Raises `UserError` naming `source`, all that is wrong with the entry in one line."""
    if isinstance(entry, UserError):
        raise entry
    if not isinstance(entry, dict):
        raise UserError(f"{source}: found {_shown(entry)}, expected an entry {{{', '.join(REQUIRED)}}}")
    known = (*REQUIRED, *OPTIONAL, BOXES)
    problems = [f"{key}: unknown key; the nearest known key is {nearest(key, known)}" for key in entry if key not in known]
    problems += [f"{key}: missing, expected text" for key in REQUIRED if key not in entry]
    texts = {key: value for key, value in entry.items() if isinstance(value, str) and value.strip()}
    for key, value in entry.items():
        if key in REQUIRED + OPTIONAL and key not in texts:
            join = f'; write several people as "a.png{SEPARATOR}b.png"' if isinstance(value, list) else ""
            problems.append(f"{key}: found {_shown(value)}, expected text that is not empty{join}")
    video = _resolve(texts["video_path"], base) if "video_path" in texts else None
    if video and (not video.exists() or video.is_dir()):
        problems.append(f"video_path: found {'a folder' if video.is_dir() else 'no file'} {texts['video_path']!r}, expected a video")
    images, masks = (_people(texts[key], key, base, problems) if key in texts else () for key in ("image_path", "mask_path"))
    masks = _match_masks(images, masks, problems) if masks and not problems else ()
    boxes = _boxes(entry[BOXES], len(images), problems) if BOXES in entry and not problems else ()
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")
    return Record(video, " ".join(texts["caption"].split()), images, masks, source, boxes)


def _people(text: str, key: str, base: Path, problems: list[str]) -> tuple[tuple[Path, ...], ...]:
    """Resolve `a@@b` to each person's alternatives; what is wrong is added to `problems`."""
    people = []
    for part in (part.strip() for part in text.split(SEPARATOR)):
        path = _resolve(part, base)
        if part and path.is_dir():
            found = sorted(item for item in path.iterdir() if item.suffix.lower() in PICTURES and not item.name.startswith("."))
            if not found:
                problems.append(f"{key}: found no pictures in the folder {part!r}, expected at least one")
            people.append(tuple(found))
        else:
            if not part or not path.is_file():
                problems.append(f"{key}: found no file {part!r}, expected a picture or a folder of pictures")
            people.append((path,))
    return tuple(people)


def _match_masks(
    images: tuple[tuple[Path, ...], ...], masks: tuple[tuple[Path, ...], ...], problems: list[str]
) -> tuple[tuple[Path, ...], ...]:
    """Put masks in the order of the pictures: one to one, or by file name where there are alternatives."""
    if len(images) != len(masks):
        problems.append(f"mask_path: found {len(masks)} people, expected {len(images)} as in image_path")
        return ()
    matched = []
    for pictures, own in zip(images, masks, strict=True):
        by_name = {mask.stem: mask for mask in own}
        chosen = [own[0] if len(own) == len(pictures) == 1 else by_name.get(picture.stem) for picture in pictures]
        missing = [picture.name for picture, mask in zip(pictures, chosen, strict=True) if mask is None]
        if missing:
            problems.append(f"mask_path: found no mask for {missing[0]!r}, expected one of the same name in the folder of masks")
        matched.append(tuple(mask for mask in chosen if mask is not None))
    return tuple(matched)


def _boxes(found: Any, people: int, problems: list[str]) -> tuple[tuple[float, ...], ...]:
    """Check the boxes of `people` faces; what is wrong is added to `problems`."""
    try:
        boxes = tuple((float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in found)
        if len(boxes) == people and all(box[0] < box[2] and box[1] < box[3] and max(box[:2]) < 1 and min(box[2:]) > 0 for box in boxes):
            return boxes
    except (TypeError, ValueError):
        pass
    problems.append(f"{BOXES}: found {_shown(found)}, expected [left, top, right, bottom] of each of {people}, as shares of the frame")
    return ()


def _resolve(text: str, base: Path) -> Path:
    path = Path(text.strip()).expanduser()
    return path if path.is_absolute() or not (base / path).exists() else base / path


def _shown(value: Any) -> str:
    found = "null" if value is None else json.dumps(value, ensure_ascii=False)
    return found if len(found) <= 60 else found[:57] + "..."
