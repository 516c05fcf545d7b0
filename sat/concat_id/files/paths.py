"""The door to the disk: paths as users mean them, text from regular files alone, and files and folders that are whole or absent."""

import argparse
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from concat_id.errors import UserError, is_text, reason_of
from concat_id.files.locks import cannot_write, locked

PROJECT_ROOT = Path(__file__).resolve().parents[3]
MODEL_STATES = "mp_rank_00_model_states.pt"  # of a SAT checkpoint
SEPARATOR = "@@"  # between a prompt and photos, and between people, in lines and lists of the original
LARGEST_TEXT = 2**30  # bytes of a file that is read as text
OTHER_UNICODE = re.compile(rb"\xff\xfe|\xfe\xff|\0\0\xfe\xff|(?:[^\0]\0){4}|(?:\0[^\0]){4}")  # by its mark, or letters of ASCII
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
WEB_ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf|data):/?", re.IGNORECASE)  # `Path` makes one slash of two
PROBLEMS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.ELOOP: "a symbolic link that leads in a circle",
    errno.ENAMETOOLONG: "a name that is too long",
    errno.EACCES: "a path that may not be read",
}


def expand_path(text: str | Path, place: str = "") -> Path:
    """Return the path that `text` means, `~` and `~name` expanded; any text is one. Output paths need no more.

    Raises `UserError`, which begins with `place`, for what no file can be called.
    """
    begin = place and f"{place}: "
    if "\0" in str(text):
        raise UserError(f"{begin}found a zero byte in the path {str(text)!r}, which no file can have; correct it")
    path = os.path.expanduser(text)
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        fault = "this locale cannot write; set LC_ALL=C.UTF-8" if is_text(path) else "no file can have; correct it"
        raise UserError(f"{begin}found characters in the path {str(text)!r} that {fault}") from error
    if path.startswith("~") and not os.path.lexists(path):
        raise UserError(f"{begin}{path}: no user is called {path[1:].partition('/')[0]!r}; write the path out, or ./{path}")
    return Path(path)


def path_argument(text: str) -> Path:
    """Read a path of a command line (argparse's `type`), as `expand_path` does."""
    if not text.strip():
        raise argparse.ArgumentTypeError("found an empty path, expected one")
    try:
        return on_disk(expand_path(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def resolve_path(text: str | Path, beside: Path | None = None, place: str = "") -> Path:
    """Find a path to be read: in the folder `beside` (of the file that names it), else in the working folder, else in the project's.

    What is nowhere is returned as seen from the working folder.
    """
    path = expand_path(text, place)
    candidates = [path, PROJECT_ROOT / path] if beside is None else [beside / path, path, PROJECT_ROOT / path]
    return next((found for found in map(on_disk, candidates) if os.path.lexists(found)), path)  # unlike Path.exists, it takes any text


def on_disk(path: Path) -> Path:
    """Find a path whose names the disk has in another form of Unicode, as macOS writes accents, as far as it is there."""
    if os.path.lexists(path) or str(path).isascii():
        return path
    found = next((parent for parent in path.parents if os.path.lexists(parent)), Path())
    for part in path.parts[len(found.parts) :]:
        forms = {found / unicodedata.normalize(form, part) for form in ("NFC", "NFD")} - {path}
        found = next(filter(os.path.lexists, forms), found / part)
    return found


def kind_of(path: str | Path) -> str:
    """Say what is found at a path: "a file", "a folder", "a named pipe", "no such file", "a web address", ..."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "a file")
    except ValueError:
        return "a path that no file can have"
    except OSError as error:
        if WEB_ADDRESS.match(str(path)):
            return "a web address"
        if error.errno == errno.ENOENT and os.path.islink(path):
            return "a symbolic link that leads nowhere"
        return PROBLEMS.get(error.errno, f"a path that cannot be read ({error.strerror})")


def require_file(path: str | Path, expected: str, remedy: str = "check the path") -> None:
    """Raise `UserError` unless `path` is a regular file, or a link to one: pipes and devices may never end."""
    if (found := kind_of(path)) != "a file":
        remedy = "download it first" if found == "a web address" else remedy
        raise UserError(f"{path}: found {found}, expected {expected}; {remedy}")


def are_whole(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Tell whether all files of a folder that a record names are there, of the bytes that it says."""
    files = [(folder / name, size) for name, size in sizes.items()]
    return all(kind_of(file) == "a file" and file.stat().st_size == size for file, size in files)


def read_text(path: str | Path, expected: str, remedy: str = "check the path", errors: str = "strict") -> str:
    """Read a regular file as UTF-8, a byte-order mark left out. Raises `UserError` that names the line with other bytes."""
    require_file(path, expected, remedy)
    try:
        if os.path.getsize(path) > LARGEST_TEXT:
            raise UserError(f"{path}: found {os.path.getsize(path):,} bytes, expected {expected}; {remedy}")
        content = Path(path).read_bytes()
        if OTHER_UNICODE.match(content):
            raise UserError(f"{path}: line 1: found UTF-16 or UTF-32 text, expected UTF-8; save it as UTF-8")
        if b"\0" in content and not is_text(content.decode(errors="surrogateescape")):  # a lone zero byte is a mistake in one line
            raise UserError(f"{path}: found binary data, expected {expected}; {remedy}")
        return content.removeprefix(b"\xef\xbb\xbf").decode(errors=errors)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected {expected}; check its permissions") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: cannot be read as UTF-8 text ({error.reason}); save it as UTF-8") from error


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all; names of files that are not text keep their bytes."""
    with written_whole(path) as temporary:
        try:
            temporary.write_bytes(text.encode(errors="surrogateescape"))
        except UnicodeEncodeError:
            temporary.write_bytes(text.encode(errors="backslashreplace"))


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """List what matches in a folder, in order, without hidden files: those that are not finished, and the traces of file managers."""
    found = Path(folder).glob(pattern) if kind_of(folder) == "a folder" else ()
    return sorted(path for path in found if not path.name.startswith("."))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name when the block ends, and vanishes if the block fails.

    The temporary name is this call's alone and keeps the suffix, which encoders go by. Raises `UserError` when the disk is full or the
    folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = _held_temporary_file(path)
    except (OSError, ValueError) as error:
        raise cannot_write(path.parent, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _allow(temporary, 0o666)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error}); free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _held_temporary_file(path: Path) -> tuple[int, str]:
    """Make an empty file beside `path` that `remove_partial_files` leaves alone as long as its descriptor is open."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=f".partial{path.suffix}", dir=path.parent)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):
            return descriptor, name
        os.close(descriptor)  # it was taken for a leftover before it was held


def check_writable(folder: Path) -> None:
    """Make a folder and try it, so that hours of work do not end in a folder that takes no file. Raises `UserError`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise cannot_write(folder, error) from error


def refuse_to_overwrite(given: Iterable[str | Path], written: Iterable[Path]) -> None:
    """Raise `UserError` if one of the files to be `written` into the user's --output is one that the user has `given`."""

    def identity(path: str | Path) -> tuple[int, int] | None:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino

    own = {identity(path) for path in given} - {None}
    for path in written:
        if identity(path) in own:
            raise UserError(f"{path}: found one of the files given, which would be overwritten; choose another --output")


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make a folder that two processes must not write at once, and hold it. Raises `UserError`."""
    check_writable(folder)
    with locked(Path(folder) / ".concat_id.lock", str(folder)):
        yield


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left of `written_whole` in a folder; what a living one is writing stays."""
    for file in Path(folder).glob(".*.partial*"):
        if not file.is_file():
            continue
        try:
            with open(file, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)
        except OSError:  # somebody is writing it, or has just finished
            continue


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name when the block ends, and vanishes if the block fails.

    Raises `UserError` if `path` exists, another process is making it, the disk is full or the parent cannot be written.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; choose another name or remove it first")
    with locked(path.with_name(f".{path.name}.lock"), str(path)):
        try:
            for leftover in path.parent.glob(f".{_escaped(path.name)}.*partial"):  # of a killed process, as the lock is ours
                shutil.rmtree(leftover, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be made ({reason_of(error)}); choose another name") from error
        try:
            yield temporary
            _allow(temporary, 0o777)
            for file in filter(Path.is_file, temporary.rglob("*")):
                _allow(file, 0o666)  # some libraries write for their owner alone
            if os.path.lexists(path):
                raise UserError(f"{path}: has been made by somebody else meanwhile; choose another name")
            temporary.rename(path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path}: could not be written ({reason}); free some space or choose another folder") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _allow(path: Path, mode: int) -> None:
    """Give a path the permissions of what is made without a temporary name; file systems of other kinds (exFAT, CIFS) refuse any."""
    mask = os.umask(0)
    os.umask(mask)
    with suppress(PermissionError):
        path.chmod(mode & ~mask)


def safe_name(text: str, max_length: int = 60) -> str:
    """Shorten `text` to a file name of letters and digits of any script, so that no prompt can leave its folder."""
    normal = unicodedata.normalize("NFC", text)
    kept = "".join(letter if letter in "-_" or unicodedata.category(letter)[0] in "LMN" else " " for letter in normal)
    name = "_".join(kept.split()).strip("_-")[:max_length]
    longest = min(3 * max_length, 240)  # bytes, of which names have at most 255, with what is added to this one
    return name.encode()[:longest].decode(errors="ignore").rstrip("_-") or "untitled"


def own_name(path: Path) -> str:
    """Name a folder for what is made of a file: it is that file's alone, also among millions, and the same in every run."""
    return f"{safe_name(path.stem, 40)}-{text_digest(str(path.absolute()))[:16]}"


def text_digest(text: str) -> str:
    """SHA-256 of a text in hexadecimal; names of files, which need not be text, have one as well."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal. Raises `UserError`."""
    require_file(path, "a file")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def copies_among(files: Iterable[Path]) -> dict[Path, Path]:
    """Find files that equal one before them byte by byte; return the first of the kind by each.

    Empty files are no copies, and files that cannot be read are left out. Whole files are read only where size and beginning are equal.
    """

    def parted(files: Iterable[Path], key: Callable[[Path], Any]) -> list[list[Path]]:
        groups = defaultdict(list)
        for file in files:
            with suppress(OSError, UserError):
                groups[key(file)].append(file)
        return [group for value, group in groups.items() if value and len(group) > 1]

    groups = [list(files)]
    for key in (os.path.getsize, _beginning, file_digest):
        groups = [part for group in groups for part in parted(group, key)]
    return {file: group[0] for group in groups for file in group[1:]}


def _beginning(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(1 << 16)
