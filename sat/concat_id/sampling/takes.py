"""Several takes of one line: those that a killed run finished stay, and a judge says which is the best."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from concat_id.errors import printable
from concat_id.files.json_files import read_json, recall_json, write_json
from concat_id.sampling.jobs import INFO, TAKES
from concat_id.video.writing import write_image

SHEET = "takes.png"
TIE = 2  # decimals; takes that differ by less are told apart by the next score


class Judge(Protocol):
    """What says how good a take is; `name` tells its scores from another judge's."""

    name: str

    def require_face(self, photos: Sequence[Path]) -> None:
        """Raise `UserError` if no photo shows a face, without which there is nothing to judge by."""

    def scores(self, video: Path, photos: Sequence[Path], prompt: str) -> dict[str, float | None]:
        """Score a video, the most telling score first; more is better, None where it cannot be said. Raises `UserError`."""


def begin(folder: Path, fingerprint: str, again: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Take away the sign that a folder is complete, before it changes; returns the takes that a killed run finished, and their files.

    What it left of other results goes, and all of it if the result is to be made `again`.
    """
    found = recall_json(folder / TAKES) or {}
    is_own = not again and found.get("fingerprint") == fingerprint
    for name in (INFO,) if is_own else (INFO, TAKES):
        (folder / name).unlink(missing_ok=True)
    whole = is_own and all((folder / name).is_file() for name in found["files"])
    return (found["samples"], found["files"]) if whole else ([], [])


def save_takes(folder: Path, fingerprint: str, takes: Sequence[dict[str, Any]], files: Sequence[str]) -> None:
    """Note the finished takes of a result in progress."""
    write_json(folder / TAKES, {"fingerprint": fingerprint, "samples": list(takes), "files": list(files)})


def rank_takes(folder: Path, judge: Judge) -> str:
    """Mark the best take of a finished folder in info.json, draw the takes' sheets, the best first, and return a line that says so.

    What the same judge has ranked stays ranked. Raises `UserError` if a take cannot be judged.
    """
    info = read_json(folder / INFO, "what sat/sample_video.py writes", "make it again with --overwrite")
    takes, new = info["samples"], info.get("judge") != judge.name
    photos: dict[int, Path] = {}  # of every person the first, or where it is gone what was cut out of it
    for number, reference in enumerate(info["references"], 1):
        photo = Path(reference["image"])
        photos.setdefault(reference.get("person", number), photo if photo.is_file() else folder / f"reference_{number}_crop.png")
    for index, take in enumerate(takes):
        take["video"], _ = take_files(index, info["files"])
        if new:
            take["scores"] = judge.scores(folder / take["video"], [*photos.values()], info["prompt"])
    ranked = sorted(takes, key=lambda take: [-1 if score is None else round(score, TIE) for score in take["scores"].values()], reverse=True)
    best, *others = ranked
    if new:
        files = [name for name in info["files"] if name != SHEET]
        if others:
            sheets = [take_files(takes.index(take), files)[1] for take in ranked]
            write_image(folder / SHEET, Image.fromarray(np.concatenate([Image.open(folder / sheet).convert("RGB") for sheet in sheets])))
            files.append(SHEET)
        write_json(folder / INFO, {**info, "best": best["video"], "judge": judge.name, "files": files})
    name = next(iter(best["scores"]))
    lesser = ", ".join(f"{take['scores'][name]:.3f}" for take in others)
    found = f"seed {best['seed']}, {name} {best['scores'][name]:.3f}; the others {lesser}"
    return f"{printable(folder / best['video'])}: the best of {len(takes)} takes ({found})"


def take_files(index: int, files: Sequence[str]) -> list[str]:
    """The video, or portrait, and the sheet among the files of a result that belong to the take of an index."""
    suffix = f"_{index + 1}" if index else ""
    return [name for name in files if name in (f"video{suffix}.mp4", f"portrait{suffix}.png", f"sheet{suffix}.png")]
