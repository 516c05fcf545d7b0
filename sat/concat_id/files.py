"""Files that are whole or absent, and names that stay inside their folder."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from concat_id.errors import UserError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name when the block ends, and vanishes if the block fails.

    The temporary name keeps the suffix, which encoders go by. Raises `UserError` when the disk is full or the folder
    cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=f".partial{path.suffix}", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot write here ({error.strerror}); choose another folder") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error}); free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder and try it, so that hours of work do not end in a folder that takes no file. Raises `UserError`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write here ({error.strerror}); choose another folder") from error


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left of `written_whole` in a folder."""
    for file in Path(folder).glob(".*.partial*"):
        file.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name when the block ends, and vanishes if the block fails.

    Raises `UserError` if `path` exists, the disk is full or the parent cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists already; choose another name or remove it first")
    temporary = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            file.chmod(0o666 & ~_umask())  # some libraries write for their owner alone
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error}); free some space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def safe_name(text: str, max_length: int = 60) -> str:
    """Shorten `text` to a file name of word characters, so that no prompt can leave its folder."""
    words = re.sub(r"[^\w-]+", "_", text, flags=re.ASCII).strip("_-")
    return words[:max_length].rstrip("_-") or "untitled"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


PROJECT_ROOT = Path(__file__).resolve().parents[2]


def resolve_path(path: str | Path) -> Path:
    """Find a path of a configuration: as it is, or else from the project's root, so that commands work from any folder."""
    path = Path(os.path.expanduser(path))  # unlike Path.expanduser and Path.exists, these take any text for a path
    from_root = PROJECT_ROOT / path
    return from_root if not os.path.exists(path) and os.path.exists(from_root) else path
