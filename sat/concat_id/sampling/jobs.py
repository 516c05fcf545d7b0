"""What to generate: lines of a prompt file, which of them are finished already, and what a finished one leaves in its folder."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image

from concat_id.errors import UserError, is_text
from concat_id.face.reference import PreparedReference
from concat_id.files.json_files import recall_json, write_json
from concat_id.files.locks import InUseError, locked
from concat_id.files.paths import SEPARATOR, file_digest, kind_of, read_text, remove_partial_files, resolve_path, safe_name, visible_files
from concat_id.versions import versions
from concat_id.video.writing import contact_sheet, write_image, write_video

PLUS = "+"  # between photos of one
INFO = "info.json"  # written last: a folder that has it is finished
TAKES = ".takes.json"  # the finished takes of a folder that is not finished
LOCK = ".lock"
RESULTS = re.compile(r"(video(_\d+)?\.mp4|(portrait|sheet)(_\d+)?\.png|takes\.png|reference_\d+(_crop)?\.png)")
PACKAGES = ("torch", "SwissArmyTransformer", "diffusers", "transformers", "insightface")


@dataclass(frozen=True)
class Job:
    """One video to make: photos of every person, left to right; `source` says where it was asked for, for messages."""

    index: int
    prompt: str
    people: tuple[tuple[Path, ...], ...]
    source: str

    @property
    def name(self) -> str:
        """What its folder is called where no other result is called so."""
        return f"{self.index:04d}_{safe_name(self.prompt)}"

    def fingerprint(self, settings: dict[str, Any]) -> str:
        """Hash of everything the result depends on: prompt, images, and `settings` (model, seed, sizes, steps).

        Raises `UserError` for an image that cannot be read.
        """
        digests = [[file_digest(photo) for photo in photos] for photos in self.people]
        content = {"prompt": self.prompt, "images": [each if len(each) > 1 else each[0] for each in digests], **settings}
        if all(len(each) == 1 for each in digests):
            content.pop("photos", None)  # says what becomes of several
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def finished_folders(output_dir: Path) -> dict[str, Path]:
    """Find the finished results of an output folder by their fingerprints, whatever their folders are called."""
    folders = (info.parent for info in visible_files(output_dir, f"*/{INFO}"))
    return {fingerprint: folder for folder in folders if (fingerprint := _finished(folder))}


def _finished(folder: Path) -> str | None:
    """The fingerprint of the result in a folder, None if it is not all there."""
    try:
        state = os.stat(folder / INFO)
    except OSError:
        return None
    fingerprint, files = _told(folder, state.st_ino, state.st_mtime_ns, state.st_size)
    return fingerprint if all(os.path.isfile(os.path.join(folder, name)) for name in files) else None


@functools.cache
def _told(folder: Path, *state: int) -> tuple[str | None, list[str]]:
    """Fingerprint and files by the info.json of such a state; each video looks at all, of which there may be 20,000."""
    info = recall_json(folder / INFO) or {}
    files, fingerprint = info.get("files"), info.get("fingerprint")
    whole = isinstance(files, list) and all(isinstance(name, str) for name in files) and isinstance(fingerprint, str)
    return (fingerprint, files) if whole else (None, [])


def _is_of_another(folder: Path, fingerprint: str) -> bool:
    """Whether a folder was finished as something else than the job of a fingerprint; what a damaged info.json stands by may be anything."""
    return os.path.lexists(folder / INFO) and (recall_json(folder / INFO) or {}).get("fingerprint") != fingerprint


@contextmanager
def claimed(job: Job, fingerprint: str, output_dir: Path, again: Path | None = None) -> Iterator[Path | None]:
    """Yield the folder to make a job in, which no other process uses meanwhile; None if one has finished the job, under whatever name.

    That is `again`, a finished one to be made again, or the first of `name`, `name_2`, ... without another job's result. Raises
    `InUseError` if another process is making the job.
    """
    with locked(output_dir / f".{fingerprint[:16]}{LOCK}", job.source), ExitStack() as held:
        if again is None and fingerprint in finished_folders(output_dir):
            yield None
            return
        for number in count(1):
            folder = again or output_dir / (job.name if number == 1 else f"{job.name}_{number}")
            if again is None and (os.path.lexists(folder) and not folder.is_dir() or _is_of_another(folder, fingerprint)):
                continue
            try:
                held.enter_context(locked(folder / LOCK, str(folder)))
            except InUseError:
                if again is None:
                    continue
                raise
            if again is not None or not _is_of_another(folder, fingerprint):
                break
            held.close()
        try:
            yield folder
        finally:
            held.close()
            with suppress(OSError):  # as it should be: something is in it
                folder.rmdir()


def make_job(
    index: int, prompt: str, images: Sequence[str | Sequence[str]], source: str, max_refs: int, beside: Path | None = None
) -> Job:
    """Check one request; images, of a person each, are looked for in the folder `beside` first. Raises `UserError` naming `source`."""
    prompt = normalize("NFC", prompt).removeprefix("\ufeff")  # of what reads the same, and of files that were joined, there is one video
    if not prompt:
        raise UserError(f"{source}: the prompt is empty; write `prompt@@image`")
    if not is_text(prompt):
        raise UserError(f"{source}: the prompt {prompt[:60]!r} has bytes that are no UTF-8; set the terminal to UTF-8, or PYTHONUTF8=0")
    if not any(images):
        raise UserError(f"{source}: no reference image; write `prompt@@image` or `prompt@@image1@@image2`")
    if len(images) > max_refs:
        raise UserError(f"{source}: {len(images)} reference images, the model takes at most {max_refs}; remove some")
    return Job(index, prompt, tuple(_photos(image, source, beside) for image in images), source)


def _photos(image: str | Sequence[str], source: str, beside: Path | None) -> tuple[Path, ...]:
    """The photos of a person: the file of that name, or those joined by +, or a list of them."""
    if not isinstance(image, str):
        return tuple(photo for each in image for photo in _photos(each, source, beside))
    if not image:
        raise UserError(f"{source}: found a reference image without a name, expected an image file; remove the last '@@' or '+'")
    path = _found(image, beside, source) if PLUS in image else resolve_path(image, beside, source)
    found = kind_of(path) if path else "no such file"
    if found == "a file":
        return (path,)
    parts = image.split(PLUS)
    for end in range(len(parts) - 1, 0, -1):  # names may have a + themselves
        name = PLUS.join(parts[:end]).strip()
        if name and (path := _found(name, beside, source)) and kind_of(path) == "a file":
            return path, *_photos(PLUS.join(parts[end:]).strip(), source, beside)
    remedy = "download it first" if found == "a web address" else "check the path"
    raise UserError(f"{source}: reference image {parts[0].strip()[:200]!r}: found {found}, expected an image file; {remedy}")


def _found(name: str, beside: Path | None, source: str) -> Path | None:
    """Where an image would be; None for what cannot be a path."""
    try:
        return resolve_path(name, beside, source)
    except UserError:
        return None


def read_prompt_file(path: Path, max_refs: int) -> tuple[list[Job], list[str]]:
    """Read `prompt@@image[@@image]` lines; blank ones are skipped. Returns the good jobs and what is wrong with the others.

    Images are looked for beside the file, then in the working folder. Raises `UserError` when the file is missing, not text, or has
    no line at all.
    """
    found = resolve_path(path, place="args.input_file")
    text = read_text(found, "a prompt file", "set args.input_file or give --prompt and --image", errors="surrogateescape")
    jobs, problems = [], []
    numbered = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise UserError(f"{path}: the prompt file is empty; write one `prompt@@image` per line")
    for index, (number, line) in enumerate(numbered):
        source = f"{path}:{number}"
        try:
            if not is_text(line.partition(SEPARATOR)[0]):
                shown = line.encode(errors="surrogateescape").decode("latin-1")[:60]
                raise UserError(f"{source}: {shown!r} has bytes that are no UTF-8 text; save the file as UTF-8")
            if SEPARATOR not in line:
                remedy = "remove it: there are no comments here" if line[0] == "#" else "write `prompt@@image` or `prompt@@image1@@image2`"
                raise UserError(f"{source}: no {SEPARATOR!r} in {line[:60]!r}; {remedy}")
            prompt, *images = (part.strip() for part in line.split(SEPARATOR))
            jobs.append(make_job(index, prompt, images, source, max_refs, found.parent))
        except UserError as error:
            problems.append(str(error))
    return jobs, problems


def save_references(folder: Path, references: Sequence[PreparedReference]) -> list[str]:
    """Remove files that a killed run did not finish, then write each person's prepared image and unmasked crop; returns their names."""
    remove_partial_files(folder)
    names = []
    for number, reference in enumerate(references, 1):
        for name, image in ((f"reference_{number}.png", reference.image), (f"reference_{number}_crop.png", reference.crop)):
            write_image(folder / name, image)
            names.append(name)
    return names


def save_sample(
    folder: Path, prompt: str, frames: np.ndarray, references: Sequence[Image.Image], fps: float, suffix: str = ""
) -> list[str]:
    """Write uint8 frames (F, H, W, 3) as mp4, or as PNG if there is but one, and a contact sheet; returns the file names."""
    if len(frames) == 1:
        names = [f"portrait{suffix}.png"]
        write_image(folder / names[0], Image.fromarray(frames[0]))
    else:
        names = [f"video{suffix}.mp4"]
        write_video(folder / names[0], frames, fps)
    names.append(f"sheet{suffix}.png")
    write_image(folder / names[1], contact_sheet(references, frames, prompt))
    return names


def save_info(folder: Path, fingerprint: str, files: list[str], **details: Any) -> None:
    """Remove earlier results that are none of `files`, then write info.json: its presence says that the folder is complete."""
    for path in folder.iterdir():
        if RESULTS.fullmatch(path.name) and path.name not in files:
            path.unlink()
    info = {**details, "versions": versions(PACKAGES), "files": files, "fingerprint": fingerprint}
    write_json(folder / INFO, info)
    (folder / TAKES).unlink(missing_ok=True)
