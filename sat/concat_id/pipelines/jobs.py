"""What to generate: lines of a prompt file, their output folders, and which of them are finished already."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concat_id.errors import UserError
from concat_id.files import file_digest, resolve_path, safe_name

SEPARATOR = "@@"
INFO = "info.json"  # written last: a folder that has it is finished


@dataclass(frozen=True)
class Job:
    """One video to make: `source` says where it was asked for, for messages."""

    index: int
    prompt: str
    images: tuple[Path, ...]
    folder: Path
    source: str

    def fingerprint(self, settings: dict[str, Any]) -> str:
        """Hash of everything the result depends on: prompt, pictures, and `settings` (model, seed, sizes, steps).

        Raises `UserError` for a picture that cannot be read.
        """
        content = {"prompt": self.prompt, "images": [self._digest(image) for image in self.images], **settings}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _digest(self, image: Path) -> str:
        try:
            return file_digest(image)
        except OSError as error:
            raise UserError(f"{self.source}: {image}: the picture cannot be read ({error.strerror}); check its permissions") from error

    def is_finished(self, fingerprint: str) -> bool:
        """Whether the folder holds the result of exactly this job."""
        try:
            info = json.loads((self.folder / INFO).read_text(encoding="utf-8"))
            return info["fingerprint"] == fingerprint and all((self.folder / name).is_file() for name in info["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


def make_job(index: int, prompt: str, images: list[str], output_dir: Path, source: str, max_refs: int) -> Job:
    """Check one request. Raises `UserError` naming `source`."""
    if not prompt:
        raise UserError(f"{source}: the prompt is empty; write `prompt@@image`")
    if not any(images):
        raise UserError(f"{source}: no reference image; write `prompt@@image` or `prompt@@image1@@image2`")
    if len(images) > max_refs:
        raise UserError(f"{source}: {len(images)} reference images, the model takes at most {max_refs}; remove some")
    paths = tuple(resolve_path(image, place=source) for image in images)
    for image, path in zip(images, paths, strict=True):
        if not os.path.isfile(path):  # which takes any text for a path
            found = "has no name" if not image else "is a folder" if os.path.isdir(path) else "does not exist"
            raise UserError(f"{source}: reference image {image[:200]!r} {found}, expected a picture file; check the path")
    return Job(index, prompt, paths, output_dir / f"{index:04d}_{safe_name(prompt)}", source)


def read_prompt_file(path: Path, output_dir: Path, max_refs: int) -> tuple[list[Job], list[str]]:
    """Read `prompt@@image[@@image]` lines; blank ones are skipped. Returns the good jobs and what is wrong with the others.

    Raises `UserError` when the file is missing, not text, or has no line at all.
    """
    try:
        lines = resolve_path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such prompt file; set args.input_file or give --prompt and --image") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
    jobs, problems = [], []
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{path}: the prompt file is empty; write one `prompt@@image` per line")
    for index, (number, line) in enumerate(numbered):
        source = f"{path}:{number}"
        try:
            if SEPARATOR not in line:
                raise UserError(f"{source}: no {SEPARATOR!r} in {line[:60]!r}; write `prompt@@image` or `prompt@@image1@@image2`")
            prompt, *images = (part.strip() for part in line.split(SEPARATOR))
            jobs.append(make_job(index, prompt, images, output_dir, source, max_refs))
        except UserError as error:
            problems.append(str(error))
    return jobs, problems
