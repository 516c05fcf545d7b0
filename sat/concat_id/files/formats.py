"""Which files are images and which are videos: one list for every tool, asked of the libraries that read them."""

import re
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from unicodedata import normalize

from concat_id.errors import UserError
from concat_id.files.paths import on_disk, require_file

# What a photograph may be. Pillow reads more, but not as images alone: EPS and PDF are programs, WMF asks the system, FITS is data.
PHOTO_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "JPEG2000", "PPM", "GIF")
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# Containers of single files, which name no other file, by ffmpeg's demuxer: what people call them, and their suffixes.
CONTAINERS = {
    "mov": ("MP4", {".mp4", ".m4v", ".mov", ".3gp", ".3g2"}),
    "matroska": ("Matroska", {".mkv", ".webm"}),
    "avi": ("AVI", {".avi"}),
    "flv": ("Flash video", {".flv"}),
    "asf": ("Windows Media", {".wmv", ".asf"}),
    "mpeg": ("MPEG-PS", {".mpg", ".mpeg", ".vob"}),
    "mpegts": ("MPEG-TS", {".ts", ".mts", ".m2ts"}),
    "ogg": ("Ogg", {".ogv"}),
    "gif": ("GIF", {".gif"}),
}
VIDEOS = frozenset().union(*(suffixes for _, suffixes in CONTAINERS.values()))
# How they begin: so strict that no library takes one for a playlist. A transport stream's sync byte G returns at equal distances.
MAGIC = {
    "mov": rb"(?:\0\0\0[\1\x08-\xff]|(?!\0\0\0)....)(?:ftyp|styp|sidx|moov|moof|mdat|free|skip|junk|wide|pnot|pict|uuid|udta)",
    "matroska": rb"\x1aE\xdf\xa3.{,256}?(?:matroska|webm)",
    "avi": rb"RIFF....AVI",
    "flv": rb"FLV\x01.\0",
    "asf": rb"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel",
    "mpeg": rb"\0\0\x01\xba",
    "ogg": rb"OggS\0",
    "gif": rb"GIF8[79]a",
    "mpegts": rb".{,203}?G(?:(?:.{187}G){4}|(?:.{191}G){4}|(?:.{203}G){4})",
}
LEAVE_OUT = "; convert it or leave it out"
HEAD = 4096  # bytes that tell a container


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the images that Pillow reads here, and HEIC's, which a package adds. A .gif counts as a video: it mostly moves."""
    from PIL import Image  # where clips are decoded, there is no need of it

    registered = {suffix for suffix, name in Image.registered_extensions().items() if name in PHOTO_FORMATS and name in Image.OPEN}
    return frozenset(registered | HEIF_SUFFIXES) - VIDEOS


def is_image(path: Path) -> bool:
    """Whether a file is called like an image."""
    return Path(path).suffix.lower() in image_suffixes()


def is_video(path: Path) -> bool:
    """Whether a file is called like a video."""
    return Path(path).suffix.lower() in VIDEOS


def media_in(folder: Path, wanted: Callable[[Path], bool], deep: bool = False) -> list[Path]:
    """List what is `is_image` or `is_video` in a folder, in order, and in the folders in it if `deep`, without hidden ones.

    Hidden are `._name.mp4` of macOS, and what is not finished.
    """
    found = Path(folder).rglob("*") if deep else Path(folder).iterdir()
    hidden = (path for path in found if wanted(path))
    return sorted(path for path in hidden if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def by_stem(folder: Path) -> dict[str, list[Path]]:
    """Group the images of a folder by name without suffix, in Unicode's form NFC, in order."""
    groups: dict[str, list[Path]] = {}
    for path in media_in(folder, is_image):
        groups.setdefault(normalize("NFC", path.stem), []).append(path)
    return groups


def beside(path: Path, suffix: str) -> Path:
    """Find the file of the same name with another suffix in any case, C.TXT beside C.MP4; as asked for, if there is none."""
    cases = ("".join(letters) for letters in product(*((letter, letter.upper()) for letter in suffix.lower())))
    candidates = [path.with_suffix(case) for case in dict.fromkeys(cases)]
    return next((found for found in map(on_disk, candidates) if found.exists()), candidates[0])


def container_of(path: Path) -> str:
    """Tell a video's container by its first bytes, whatever it is called; return ffmpeg's name of it.

    Raises `UserError` for what is no regular file, and for everything else, such as playlists, which lead to other files.
    """
    require_file(path, "a video")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a video; check its permissions") from error
    found = next((container for container, magic in MAGIC.items() if re.match(magic, head, re.DOTALL)), None)
    if found is None:
        names = ", ".join(name for name, _ in CONTAINERS.values())
        raise UserError(f"{path}: not a video that can be read: found {_shown(head)}, expected {names}{LEAVE_OUT}")
    return found


def is_heif(head: bytes) -> bool:
    """Whether a file that begins so is a HEIC or HEIF image; AVIF, which Pillow reads itself, is not."""
    brands = {head[start : start + 4] for start in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
    return head[4:8] == b"ftyp" and bool(brands & HEIF_BRANDS) and not brands & {b"avif", b"avis"}


def _shown(head: bytes) -> str:
    return "an empty file" if not head else "text" if head.isascii() and b"\0" not in head else "other data"
