"""The digest that a weight file came with, where a download or git has kept one, and whether the file still has it."""

import hashlib
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

from concat_id.errors import UserError, reason_of
from concat_id.files.paths import read_text

DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")  # SHA-256 of the file, or git's name for it
RECORDS = Path(".cache", "huggingface", "download")  # in the folder of a download: FILE.metadata, three lines: commit, etag, time
POINTER = re.compile(r"\Aversion https://git-lfs.*^oid sha256:([0-9a-f]{64})$", re.DOTALL | re.MULTILINE)
LONGEST_POINTER = 1024  # bytes
SHOWN = 16  # digits


def known_digest(file: Path) -> str | None:
    """Return the digest of what was downloaded or committed as `file`: 64 hexadecimal digits (SHA-256) or 40 (git), None if unknown."""
    real = Path(os.path.realpath(file))
    if real.parent.name == "blobs" and DIGEST.fullmatch(real.name):  # of the hub's cache
        return real.name
    return _recorded(file) or _recorded(real) or _committed(real)


def check_digest(file: Path, expected: str) -> None:
    """Read a file in whole. Raises `UserError` if its digest is another one than `expected`."""
    real = os.path.realpath(file)  # a link to a damaged file would be made anew
    remedy = f"remove {real} and fetch it again"
    try:
        found = _digest(file, of_git=len(expected) == 40)
    except OSError as error:
        raise UserError(f"{file}: damaged: found {reason_of(error)}, expected a file that can be read; {remedy}") from error
    if found != expected:
        raise UserError(f"{file}: damaged: found digest {found[:SHOWN]}, expected {expected[:SHOWN]} as it was downloaded; {remedy}")


def _recorded(file: Path) -> str | None:
    """What Hugging Face's downloads to a folder write beside them; its own reader takes locks and makes folders."""
    for folder in file.absolute().parents:
        record = folder / RECORDS / f"{file.absolute().relative_to(folder)}.metadata"
        with suppress(UserError, OSError, IndexError):
            etag = read_text(record, "a record").splitlines()[1].strip().strip('"')
            return etag if DIGEST.fullmatch(etag) else None
    return None


def _committed(file: Path) -> str | None:
    """What git has of a file in a repository; where that is a pointer of Git LFS, what the pointer says."""
    mode, blob, *_ = *_git(file.parent, "ls-files", "-s", "--", file.name).split(), "", ""
    size = _git(file.parent, "cat-file", "-s", blob) if mode.startswith("100") and len(blob) == 40 else ""
    if not size:
        return None
    pointer = POINTER.match(_git(file.parent, "cat-file", "blob", blob)) if int(size) <= LONGEST_POINTER else None
    return pointer[1] if pointer else blob


def _git(folder: Path, *command: str) -> str:
    with suppress(OSError):
        ended = subprocess.run(["git", "--literal-pathspecs", "-C", folder, *command], capture_output=True, check=False)
        return ended.stdout.decode(errors="replace")
    return ""


def _digest(file: Path, of_git: bool) -> str:
    head = f"blob {os.path.getsize(file)}\0".encode()  # which git puts before a file
    with open(file, "rb") as stream:
        made = hashlib.file_digest(stream, (lambda: hashlib.sha1(head, usedforsecurity=False)) if of_git else "sha256")
    return made.hexdigest()
