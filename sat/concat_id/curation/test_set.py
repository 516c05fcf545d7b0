"""What measures a model on the test people: prompts, photos of them, and the clips that prompts describe."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import numpy as np

from concat_id.curation.identities import NamedClip
from concat_id.curation.training_lists import joined
from concat_id.data.manifest import Appearance, Clip
from concat_id.errors import UserError, reason_of
from concat_id.files.json_files import recall_json, write_json
from concat_id.files.paths import SEPARATOR, safe_name, text_digest, write_text, written_whole
from concat_id.video.transforms import load_image
from concat_id.video.writing import write_image

TEST_SET = "test_set.json"  # names the files of the test set, so that the next run removes no other


def write_test_set(folder: Path, clips: Sequence[NamedClip], captions: int, people: int | None) -> dict[str, int]:
    """Write what measures a model on the test people: prompts, photos, and clips that prompts describe; return how many prompts.

    A line `caption@@photo` of `test_prompts_<people>.txt` has the caption of a clip and, of everybody in it, a photo from elsewhere: up to
    `captions` lines for each person or group, of the first `people` of them, those of videos before those of photographs.
    `test_people/<name>.png` are these photos, `test_people/<name>/` hold others of the same person, with which sat/evaluate_identity.py
    calibrates. `test_clips_<people>/` are the clips themselves as outputs of sat/sample_video.py: what they score, a perfect model scores.
    """
    made = folder / ".test_set.partial"  # takes the old one's place when all of it is there
    former = _former_test_set(folder)
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        written = _make_test_set(made, folder, clips, captions, people)
        write_json(folder / TEST_SET, {"files": sorted(_files_in(made.iterdir(), made) | _files_in(former, folder))})
        for old in former:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        for new in made.iterdir():
            new.rename(folder / new.name)
    except OSError as error:
        raise UserError(f"{folder}: the test set cannot be written ({reason_of(error)}); choose another folder") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return written


def _files_in(paths: Iterable[Path], folder: Path) -> set[str]:
    """Name the files that `paths` are or hold, as seen from `folder`."""
    inner = (file for path in paths for file in (path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]))
    return {str(file.relative_to(folder)) for file in inner if file.is_symlink() or not file.is_dir()}


def _former_test_set(folder: Path) -> list[Path]:
    """List the test set that a former run wrote into `folder`; raise `UserError` if anything else would go with it."""
    found = [*folder.glob("test_prompts_[0-9]*.txt"), *folder.glob("test_people"), *folder.glob("test_clips_[0-9]*")]
    noted = (recall_json(folder / TEST_SET) or {}).get("files")
    strange = _files_in(found, folder).difference(map(str, noted if isinstance(noted, list) else []))
    if strange:
        raise UserError(f"{folder / min(strange)}: found a file that this command has not written among those it replaces, "
                        f"{len(strange)} in all; move what you want to keep, remove the rest, or choose another --output")  # fmt: skip
    return found


def _make_test_set(made: Path, folder: Path, clips: Sequence[NamedClip], captions: int, people: int | None) -> dict[str, int]:
    """Write it into the folder `made`, with paths as they will be in `folder`."""
    groups: dict[tuple[str, ...], list[NamedClip]] = defaultdict(list)
    shown: dict[str, list[tuple[NamedClip, Appearance]]] = defaultdict(list)
    for clip in clips:
        if clip.split == "test":
            groups[clip.identities].append(clip)
            for name, person in zip(clip.identities, clip.clip.people, strict=True):
                shown[name].append((clip, person))
    photos = {name: photos_of(seen) for name, seen in shown.items()}
    written: Counter = Counter()
    for size in sorted({len(group) for group in groups}):
        lines, chosen = [], sorted(group for group in groups if len(group) == size)[:people]
        for group in chosen:
            told = _captions_of(groups[group], {next(iter(photos[name])) for name in group})
            for number, (caption, clip) in enumerate(list(told.items())[:captions]):
                files = [str(_photo_file(folder, name).absolute()) for name in group]
                lines.append(f"{caption}{SEPARATOR}{joined(files)}\n")
                if not clip.is_image:
                    _write_clip(made / f"test_clips_{size}" / _own_name(f"{'_'.join(group)}_{number}"), clip.video, caption, files)
        if not lines:
            continue
        for name in {name for group in chosen for name in group}:
            first = _photo_file(made, name)
            for number, photo in enumerate(photos[name].values()):  # others of the same person lie in the folder beside the first
                write_image(first.with_suffix("") / f"{number - 1}.png" if number else first, load_image(photo))
        write_text(made / f"test_prompts_{size}.txt", "".join(lines))
        written["one person" if size == 1 else f"{size} people"] = len(lines)
    return dict(written)


def _captions_of(clips: Sequence[NamedClip], used: Container[str]) -> dict[str, Clip]:
    """Choose a clip for each caption, moving ones first, of which no photo was taken: their recordings are not `used`."""
    told: dict[str, Clip] = {}
    for clip in sorted(clips, key=lambda clip: clip.clip.is_image):
        if clip.clip.origin not in used:
            told.setdefault(" ".join(clip.clip.caption.replace(SEPARATOR, " ").split()), clip.clip)  # one line, with people behind it
    return told


def _write_clip(folder: Path, clip: Path, caption: str, photos: Sequence[str]) -> None:
    """Copy a clip to where sat/evaluate_identity.py takes it for an output of sat/sample_video.py."""
    with written_whole(folder / "video.mp4") as temporary:
        shutil.copyfile(clip, temporary)
    write_json(folder / "info.json", {"prompt": caption, "references": [{"image": photo} for photo in photos], "files": ["video.mp4"]})


def photos_of(shown: Sequence[tuple[NamedClip, Appearance]]) -> dict[str, Path]:
    """One image of a test person from each recording, by its name: those that are whole first, then crops.

    Of a recording, and first of all: those most like the others, by mean cosine. A photograph in sunglasses does not stand for its person.
    """
    middle = np.mean([person.vectors[0] for _, person in shown], axis=0)
    found = [(len(clip.identities) == 1 and clip.clip.is_image, clip.clip, person) for clip, person in shown]
    best: dict[str, Path] = {}
    for whole, clip, person in sorted(found, key=lambda item: (not item[0], -float(item[2].vectors[0] @ middle))):
        best.setdefault(clip.origin, clip.video if whole else person.image(0))
    return best


def _photo_file(folder: Path, name: str) -> Path:
    return folder / "test_people" / f"{_own_name(name)}.png"


def _own_name(name: str) -> str:
    """Turn a name into that of a file which no other name has."""
    safe = safe_name(name)
    return safe if safe == name else f"{safe}-{text_digest(name)[:6]}"
