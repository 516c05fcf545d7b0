"""Training lists: what each clip is, which words and which people's images belong to it.

A list is JSON: `[{"video_path": ..., "caption": ..., "image_path": "a.png" | "a.png@@b.png" | "folder"}, ...]`, people from left to right,
optionally with a `mask_path` of the same form. A folder in the place of an image holds alternatives, of which one is drawn per epoch.
`"image_path": ""` stands for the clip's first frame, `"mask_path": ""` for no mask; so does an empty part of `a.png@@`. A single mask
beside anything but a single image is not read, as in the original. Relative paths start at the list's folder, else at the current one.
`"kind": "face@@clothes@@background"` says what the images show, all of them faces without it. Other keys are left alone.

A folder can stand for a list. Each `name.mp4` in it and in its sub-folders needs its people: `name.png` (or another image), or a folder
`name/` with one person's alternative images, or with one folder per person (`name/1/`, `name/2/`, left to right). The first line with
words of `name.txt` is its caption, empty where there is no such file. Masks are optional and take the same forms, called `name.masks.png`
or `name.masks/`. A folder as the original has it will do as well, or its `videos` alone: `videos/name.mp4`, `labels/name.txt`,
`images/name/`.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

from concat_id.config.typed import nearest
from concat_id.distributed import rank
from concat_id.errors import UserError, is_text, warn
from concat_id.files.formats import beside, by_stem, is_image, is_video, media_in
from concat_id.files.json_files import as_json, parse_list
from concat_id.files.paths import SEPARATOR, kind_of, on_disk, read_text, resolve_path

REQUIRED, OPTIONAL = ("video_path", "caption", "image_path"), ("mask_path", "kind")
KNOWN = (*REQUIRED, *OPTIONAL)
MAY_BE_EMPTY = ("caption", "image_path", "mask_path")
KINDS = ("face", "clothes", "background")  # of references
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
SHOWN = 3  # problems in one message


@dataclass(frozen=True)
class Record:
    """A clip, or an image as a video of one frame. `images` holds, per person from left to right, the alternative images; `masks`
    theirs, or nothing at all. Clothes and a background are references like people, of another of the `kinds`.

    `source` says where it was written, for messages.
    """

    video: Path
    caption: str
    images: tuple[tuple[Path, ...], ...]
    masks: tuple[tuple[Path, ...], ...]
    kinds: tuple[str, ...]
    source: str

    @property
    def num_refs(self) -> int:
        """How many references there are."""
        return len(self.images)

    @property
    def is_image(self) -> bool:
        """Whether the "video" is a single image."""
        return is_image(self.video)

    @property
    def shows_itself(self) -> bool:
        """Whether the clip's first frame is the reference."""
        return self.images == ((self.video,),) and not self.is_image


def read_records(paths: Sequence[str | Path]) -> list[Record]:
    """Read lists and folders, one after the other.

    Raises `UserError` naming line and column of broken JSON, or the first few entries that are wrong or name files that are not there.
    """
    records, problems, notes = inspect_records(paths)
    warn(*(notes if rank() == 0 else ()))
    if problems:
        first, more = "; ".join(problems[:SHOWN]), f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{first}{more}; see all of them with `python sat/check_dataset.py {shlex.join(map(str, paths))}`")
    if not records:
        raise UserError(f"{', '.join(map(str, paths)) or 'train_data'}: no clips found; add entries or correct args.train_data")
    return records


def inspect_records(paths: Sequence[str | Path]) -> tuple[list[Record], list[str], list[str]]:
    """Read lists and folders; return the good entries, what is wrong with the others, a line each, and what is worth a note."""
    records, problems, notes = [], [], []
    for path in (resolve_path(path, place="train_data") for path in paths):
        is_folder, foreign, silent, unmasked = os.path.isdir(path), Counter(), 0, 0
        try:
            for source, entry in _folder_entries(path) if is_folder else _list_entries(path):
                foreign.update(_foreign(entry) if isinstance(entry, dict) else ())
                base = path if is_folder else path.parent
                if _has_a_stray_mask(entry, base):
                    entry, unmasked = entry | {"mask_path": ""}, unmasked + 1
                try:
                    records.append(_make_record(entry, base, source))
                    silent += not records[-1].caption
                except UserError as error:
                    problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename}: cannot be read ({error.strerror}), expected a folder of clips; check its permissions")
        notes += notes_of_foreign(path, foreign, KNOWN)
        if unmasked:
            reason = "as in the original: one mask for several people, a folder or no image; name one for each image"
            notes.append(f"{path}: mask_path: in {unmasked} entries not read, {reason}")
        if silent:
            notes.append(f"{path}: {silent} entries have an empty caption, so that they are trained without words")
    return records, problems, notes


def _list_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, entry) of a JSON list."""
    if is_video(path) or is_image(path):
        kind = "a video" if is_video(path) else "an image"
        raise UserError(f"{path}: found {kind}, expected a JSON list or a folder; name one")
    text = read_text(path, "a JSON list of clips or a folder", "check its path, or args.train_data and args.valid_data")
    return ((f"{path}:{line}", entry) for line, entry in parse_list(text, str(path)))


def _folder_entries(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file, entry) for each video of a folder and of the folders in it; what belongs to a video has its name."""
    folder = folder.absolute()
    images_in, own = cache(by_stem), (folder, folder / "videos")
    places = [folder, *media_in(folder, lambda path: path.is_dir() and (path in own or not path.is_symlink()), deep=True)]
    videos = (video for place in places for video in media_in(place, is_video))
    for video in sorted(video for video in videos if video.parent in own or video.suffix.lower() != ".gif"):  # which can be someone's image
        entry: dict[str, Any] = {"video_path": str(video.absolute()), "caption": ""}
        files = (beside(place, ".txt") for place in _places(video, folder, "labels"))
        try:
            for words in [file for file in files if file.exists()][:1]:
                entry["caption"] = re.split(r"[\r\n]", read_text(words, "the caption of a video", "write it").strip(), maxsplit=1)[0]
        except UserError as error:
            yield str(video), error
            continue
        people = _places(video, folder, "images")
        found = [_people_beside(place.with_suffix(""), images_in(video.parent) if place == video else {}) for place in people]
        expected = people[1].with_suffix(".png" if people[1] == video else "").absolute()
        entry["image_path"] = next(filter(None, found), str(expected))
        masks = _people_beside(video.with_suffix(".masks"), images_in(video.parent))
        yield str(video), entry | ({"mask_path": masks} if masks else {})


def _places(video: Path, folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Say where the `labels` or `images` of a video may be.

    Where the original has them, which replaces "videos" all over the path; with folders of that name replaced, from `folder` on; beside it.
    """
    *folders, file = video.relative_to(folder.parent).parts
    inner = (name if part == "videos" else part for part in folders)
    return Path(str(video).replace("videos", name)), folder.parent.joinpath(*inner, file), video


def _people_beside(stem: Path, images: dict[str, list[Path]]) -> str:
    """The people of a folder's video as the `image_path` of a list, "" if there are none."""
    if (stem := on_disk(stem)).is_dir():
        people = sorted(media_in(stem, Path.is_dir), key=_by_number)
        return SEPARATOR.join(str(person.absolute()) for person in people or [stem])
    return next((str(image.absolute()) for image in (stem, *images.get(normalize("NFC", stem.name), ())) if image.is_file()), "")


def _by_number(path: Path) -> list[Any]:
    """Sort key by which 10 comes after 9."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(number % 2 == 0, int(part) if number % 2 else 0, part) for number, part in enumerate(parts)]


def _make_record(entry: Any, base: Path, source: str) -> Record:
    """Check one entry. Raises `UserError` naming `source`, all that is wrong with the entry in one line."""
    if isinstance(entry, UserError):
        raise entry
    if not isinstance(entry, dict):
        raise UserError(f"{source}: found {as_json(entry)}, expected an entry {{{', '.join(REQUIRED)}}}")
    problems = []
    for key in (key for key in REQUIRED if key not in entry):
        meant = [f" (is {as_json(other)} meant?)" for other in _foreign(entry) if nearest(other, KNOWN) == key]
        problems.append(f"{key}: missing, expected text{''.join(meant[:1])}")
    for key in REQUIRED + OPTIONAL:
        if key in entry and not (isinstance(entry[key], str) and (key in MAY_BE_EMPTY or entry[key].strip())):
            join = f'; write several people as "a.png{SEPARATOR}b.png"' if isinstance(entry[key], list) else ""
            problems.append(f"{key}: found {as_json(entry[key])}, expected text{'' if key in MAY_BE_EMPTY else ' that is not empty'}{join}")
    texts = {key: value for key, value in entry.items() if isinstance(value, str)}
    caption = texts.get("caption", "")
    if not is_text(caption):
        problems.append(f"caption: found {as_json(caption)}, which has half of a character; mend its escapes")
    video = Path()
    if texts.get("video_path", "").strip():
        ((video,),) = _files(texts["video_path"], "video_path", base, problems, "a video", several=False)
    images, masks = (_files(texts[key], key, base, problems) if texts.get(key, "").strip() else () for key in ("image_path", "mask_path"))
    images = images or ((video,),)
    masks = _match_masks(images, masks, problems) if masks and not problems else ()
    kinds = _kinds(texts.get("kind", "").strip() or None, len(images), problems)
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")
    return Record(video, " ".join(caption.split()), images, masks, kinds, source)


def _has_a_stray_mask(entry: Any, base: Path) -> bool:
    """Whether a single mask stands beside anything but a single image, where the original looks for none."""
    texts = [entry.get(key) for key in ("mask_path", "image_path")] if isinstance(entry, dict) else []
    return all(isinstance(text, str) for text in texts) and [_is_one_file(text, base) for text in texts] == [True, False]


def _is_one_file(text: str, base: Path) -> bool:
    """Whether a path is that of one file, be it there or not."""
    try:
        return bool(text.strip()) and SEPARATOR not in text and kind_of(resolve_path(text.strip(), base)) != "a folder"
    except UserError:
        return True  # which is told where it is read


def notes_of_foreign(path: Path, found: Counter, known: Sequence[str]) -> list[str]:
    """Note the keys of a list's entries that are none of the `known`: key -> number of entries."""
    told = "entries and not read; the nearest key that is read is"
    return [f"{path}: {key}: in {number} {told} {nearest(key, known)}" for key, number in found.items()]


def _foreign(entry: dict[str, Any]) -> list[str]:
    return [key for key in entry if key not in KNOWN]


def _kinds(text: str | None, number: int, problems: list[str]) -> tuple[str, ...]:
    """Read `face@@clothes`, the kind of each of the references; what is wrong is added to `problems`."""
    kinds = (KINDS[0],) * number if text is None else tuple(part.strip() for part in text.split(SEPARATOR))
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        problems.append(f"kind: found {wrong[0]!r}, expected {', '.join(KINDS[:-1])} or {KINDS[-1]} for each reference")
    elif len(kinds) != number and not problems:
        problems.append(f"kind: found {len(kinds)}, expected {number} as in image_path")
    return kinds


def _files(
    text: str, key: str, base: Path, problems: list[str], expected: str = "an image or a folder of images", several: bool = True
) -> tuple[tuple[Path, ...], ...]:
    """Resolve `a@@b` to each person's alternatives, the images of a folder; what is wrong is added to `problems`."""
    people = []
    for part in (part.strip() for part in (text.split(SEPARATOR) if several else [text])):
        try:
            path = resolve_path(part, base, key)
        except UserError as error:
            problems.append(str(error))
            people.append((Path(part),))
            continue
        found = kind_of(path).replace("no such file", "no file") if part else "nothing"
        found = "a path of Windows" if found == "no file" and WINDOWS.match(part) else found
        if key == "mask_path" and not part:
            people.append(())
            continue
        alternatives = [path]
        if several and found == "a folder":
            alternatives = media_in(path, is_image)
            if not alternatives:
                problems.append(f"{key}: found no images in the folder {part!r}, expected at least one")
        elif found != "a file":
            where = " beside the list or in the working folder" if found == "no file" and not path.is_absolute() else ""
            problems.append(f"{key}: found {found} {part!r}{where}, expected {expected}")
        people.append(tuple(alternatives))
    return tuple(people)


def _match_masks(
    images: tuple[tuple[Path, ...], ...], masks: tuple[tuple[Path, ...], ...], problems: list[str]
) -> tuple[tuple[Path, ...], ...]:
    """Put masks in the order of the images: one to one, or by file name where there are alternatives."""
    if len(images) != len(masks):
        problems.append(f"mask_path: found {len(masks)} people, expected {len(images)} as in image_path")
        return ()
    matched = []
    for alternatives, own in zip(images, masks, strict=True):
        if not own:
            matched.append(())
            continue
        by_name = {mask.stem: mask for mask in own}
        chosen = [own[0] if len(own) == len(alternatives) == 1 else by_name.get(path.stem) for path in alternatives]
        missing = [path.name for path, mask in zip(alternatives, chosen, strict=True) if mask is None]
        if missing:
            problems.append(f"mask_path: found no mask for {missing[0]!r}, expected one of the same name in the folder of masks")
        matched.append(tuple(mask for mask in chosen if mask is not None))
    return tuple(matched)
