"""What to generate: lines of a prompt file, their output folders, and which of them are finished already."""

import hashlib
import json
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
        """Hash of everything the result depends on: prompt, pictures, and `settings` (model, seed, sizes, steps)."""
        content = {"prompt": self.prompt, "images": [file_digest(image) for image in self.images], **settings}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

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
    paths = tuple(resolve_path(image) for image in images)
    for image, path in zip(images, paths, strict=True):
        if not path.is_file():
            raise UserError(f"{source}: reference image {image!r} does not exist; check the path")
    return Job(index, prompt, paths, output_dir / f"{index:04d}_{safe_name(prompt)}", source)


def read_prompt_file(path: Path, output_dir: Path, max_refs: int) -> tuple[list[Job], list[str]]:
    """Read `prompt@@image[@@image]` lines; blank ones are skipped. Returns the good jobs and what is wrong with the others.

    Raises `UserError` when the file is missing, not text, or has no line at all.
    """
    try:
        lines = resolve_path(path).read_text(encoding="utf-8-sig").splitlines()
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
