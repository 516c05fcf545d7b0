"""Training lists of all stages and splits in the released format, and a summary."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from concat_id.curation.identities import NamedClip, assign_splits, name_people, too_close
from concat_id.curation.pairs import Stage
from concat_id.data.manifest import COMMAND, SPLITS, Clip
from concat_id.errors import UserError, one_line
from concat_id.files.json_files import write_json_list
from concat_id.files.paths import SEPARATOR, require_file


def require_videos(clips: Sequence[Clip]) -> None:
    """Raise `UserError` unless the videos of all clips are there."""
    for clip in clips:
        require_file(clip.video, "the video of a clip", COMMAND)


def place_clips(clips: Sequence[Clip], threshold: float, shares: tuple[float, float], seed: int) -> tuple[list[NamedClip], Counter]:
    """Name the people of all clips and put these into splits; return them, and why others are left out: reason -> number.

    `threshold` is the cosine from which unnamed people are one, `shares` are those of validation and test.
    """
    identities = name_people(clips, threshold)
    splits = assign_splits(clips, identities, *shares, seed)
    clear = [NamedClip(*placed) for placed in zip(clips, identities, splits, strict=True) if len(set(placed[1])) == len(placed[1])]
    alike = len(clips) - len(clear)
    return clear, Counter({"people of a clip cannot be told apart": alike} if alike else {})


def without_trained_on(clips: Sequence[NamedClip], threshold: float) -> tuple[list[NamedClip], dict[str, float]]:
    """Leave out the clips of evaluation identities closer than `threshold` to training; return the others, and those identities."""
    close = too_close(clips, threshold)
    return [clip for clip in clips if clip.split == "train" or not close.keys() & set(clip.identities)], close


def write_lists(folder: Path, stages: Mapping[str, Callable[[], Stage]], masks: bool) -> dict[str, Any]:
    """Make stages one by one; write `stage_<n>_<split>.json` for what is not empty, remove what is; return counts and reasons."""
    summary = {}
    for number, make in stages.items():
        stage, counts = make(), {}
        for split in SPLITS:
            pairs = [pair for pair in stage.pairs if pair.clip.split == split]
            file = folder / f"stage_{number}_{split}.json"
            if pairs:
                write_json_list(file, (entry(folder, pair.clip.clip.video, pair.clip.clip.caption, pair.images, pair.masks if masks else ())
                                       for pair in pairs))  # fmt: skip
            else:
                file.unlink(missing_ok=True)
            counts[split] = len(pairs)
        cosines = [cosine for pair in stage.pairs for cosine in pair.cosines]
        spread = {"cosine": [round(float(value), 4) for value in (min(cosines), np.mean(cosines), max(cosines))]} if cosines else {}
        summary[f"stage {number}"] = {"clips": counts, **spread, "dropped": dict(stage.dropped)}
    return summary


def entry(folder: Path, video: Path, caption: str, images: Iterable[Path], masks: Sequence[Path | None] = ()) -> dict[str, Any]:
    """Make an entry of a list in `folder`; without images the clip shows itself, None is no mask. Raises `UserError`."""
    made = {"video_path": path_from(video, folder), "caption": caption, "image_path": joined(path_from(image, folder) for image in images)}
    return made | ({"mask_path": joined(path_from(mask, folder) if mask else "" for mask in masks)} if masks else {})


def joined(paths: Iterable[str]) -> str:
    """Put paths behind one another as lists and prompts do. Raises `UserError` for one that would be taken for several."""
    paths = list(paths)
    for path in paths:
        if SEPARATOR in path or "\n" in path:
            raise UserError(f"{path}: found {SEPARATOR} or the end of a line in a path, which lists cannot hold; rename the folder")
    return SEPARATOR.join(paths)


def path_from(path: Path, folder: Path) -> str:
    """Name a file as seen from the lists' folder where both are in one place, else from the root."""
    path, folder = path.absolute(), folder.absolute()
    found, home = str(path), str(folder)
    beside = home[: home.rindex("/") + 1]
    if found.startswith(beside) and not found.startswith(home) and "/.." not in found:
        return f"../{found[len(beside) :]}"  # what the next lines say, in a tenth of the time
    shared = os.path.commonpath([path, folder.parent]) == str(folder.parent)
    return os.path.relpath(path, folder) if shared else found


def describe(clips: Sequence[NamedClip], dropped: Counter, close: Mapping[str, float]) -> dict[str, Any]:
    """Count clips and people by split, and tell who was left out."""
    people = {split: len({name for clip in clips if clip.split == split for name in clip.identities}) for split in SPLITS}
    count = Counter(clip.split for clip in clips)
    return {
        "clips": {split: count[split] for split in SPLITS},
        "people": people,
        "dropped": dict(dropped),
        "too close to training": {name: round(cosine, 4) for name, cosine in sorted(close.items())},
    }


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Put a summary into lines for the screen."""
    told = []
    for name, value in summary.items():
        if name == "prompts":
            told.append(f"{name:<11}{', '.join(f'{number} of {people}' for people, number in value.items()) or 'none'}")
        elif name.startswith("stage"):
            cosine = "; cosine {:.3f} to {:.3f}, mean {:.3f}".format(*(value["cosine"][i] for i in (0, 2, 1))) if "cosine" in value else ""
            told.append(f"{name:<11}{_counts(value['clips'])}{cosine}")
            told += [f"{'':<11}{number} dropped: {reason}" for reason, number in value["dropped"].items()]
        elif name in ("clips", "people"):
            told.append(f"{name:<11}{_counts(value)}")
        elif name == "thresholds":
            bands = ", ".join(f"{key} {value[key][0]:.3f}-{value[key][1]:.3f}" for key in ("cross", "cross_two", "trade_off"))
            told.append(f"{name:<11}{one_line(value['recognizer'])}: {bands}, hygiene {value['hygiene']:.3f}")
        elif name == "measured":
            told += [f"{name:<11}{kind}: mean {found['mean']:.3f} over {found['number']}" for kind, found in value.items()]
        elif name == "dropped":
            told += [f"{'':<11}{number} clips dropped: {reason}" for reason, number in value.items()]
        else:
            told += [f"{'':<11}{one_line(who)} dropped from evaluation: cosine {cosine:.3f} to training" for who, cosine in value.items()]
    return told


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {split}" for split, number in counts.items())
