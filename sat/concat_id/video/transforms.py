"""Images: reading them, fitting them into a frame, and the way to tensors and back."""

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from concat_id.errors import UserError, reason_of, silence
from concat_id.files.formats import PHOTO_FORMATS, is_heif
from concat_id.files.paths import require_file
from concat_id.video.colours import BLACK, to_8_bits, to_srgb

LARGEST = 250_000_000  # pixels of an image; telephones reach 200 million
LARGEST_SIDE = 65_535  # JPEG's own limit
AMPLE = 64_000_000  # pixels beyond which an image is halved until it has no more
STRIP = 256  # rows
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
LONGEST = 32  # sides of a square that its image may be long while it is scaled
CLIP_SIZE = 224
CLIP_MEAN, CLIP_STD = np.float32((0.48145466, 0.4578275, 0.40821073)), np.float32((0.26862954, 0.26130258, 0.27577711))
_one_at_a_time = threading.Lock()
Read = TypeVar("Read")


def load_image(path: str | Path) -> Image.Image:
    """Read a photograph as 8-bit sRGB of at most `AMPLE` pixels, upright as its EXIF orientation says, transparent parts black.

    Raises `UserError` if the file is missing, unreadable, damaged, too large or no image.
    """
    return _load(Path(path), _read)


def load_labels(path: str | Path, num_classes: int) -> np.ndarray:
    """Read an image whose grey values, or places in a palette, are numbers of classes: uint8 (H, W).

    Raises `UserError` for any other image, and for numbers from `num_classes` on.
    """
    labels = _load(Path(path), _read_labels)
    if labels.max() >= num_classes:
        raise UserError(f"{path}: found the number {labels.max()}, expected classes from 0 to {num_classes - 1}; make the mask again")
    return labels


def _load(path: Path, read: Callable[[Image.Image], Read]) -> Read:
    require_file(path, "an image", f"name its files, as {path}/* does" if path.is_dir() else "check the path")
    try:
        with _open(path) as image:
            return read(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that can be read; expected JPEG, PNG or the like; download it anew or convert it") from error
    except MemoryError as error:
        raise UserError(f"{path}: the image takes more memory than there is; make it smaller") from error
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"{path}: the image cannot be read ({reason_of(error)}); check its permissions or download it anew") from error


def _open(path: Path) -> Image.Image:
    """Read the header of an image in one of the formats of photographs."""
    with open(path, "rb") as file:
        head = file.read(256)
    if is_heif(head):
        try:
            from pillow_heif import register_heif_opener  # a package of its own
        except ImportError as error:
            command = f"{sys.executable} -m pip install pillow-heif"
            raise UserError(f"found a HEIC image, which needs another package; run `{command}`, or save as JPEG") from error
        register_heif_opener()
    if not (log := logging.getLogger("PIL")).handlers:
        log.addHandler(logging.NullHandler())  # what it finds wrong is told in our own words
    Image.init()
    formats = [name for name in PHOTO_FORMATS if name in Image.OPEN]
    with _quiet():
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # `_read` has one of its own
        try:
            return Image.open(path, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _quiet(with_libraries: bool = False) -> Iterator[None]:
    """Keep warnings from the screen, and what libraries print there themselves; in one thread at a time."""
    with _one_at_a_time, warnings.catch_warnings(action="ignore"), silence() if with_libraries else nullcontext():
        yield


def _read(image: Image.Image) -> Image.Image:
    """Decode an image. Raises `UserError` without a path."""
    width, height = size = _checked_size(image)
    factor = 1
    while width * height > AMPLE * factor**2:
        factor *= 2
    if factor > 1:
        image.draft(None, (width // factor, height // factor))  # JPEG is made smaller while it is decoded
    layout, is_whole = str(getattr(image, "tile", "")), image.size == size
    if image.format == "TIFF":
        _refuse_misread(image.tag_v2)
    with _quiet(with_libraries=True) if image.format == "TIFF" else nullcontext():  # libtiff prints what it finds wrong
        image.load()
    turn, profile = _turn(image), image.info.get("icc_profile")
    image = to_8_bits(image, layout)
    if factor > 1 and is_whole:
        image = _shrink(image, factor)
    image = to_srgb(image, profile)
    return image if turn is None else image.transpose(turn)


def _refuse_misread(tags: Mapping[int, object]) -> None:
    """Raise `UserError` for a TIFF's tags of what Pillow would read as something else."""
    if tags.get(254, 0) & 1:  # NewSubfileType
        raise UserError("found a thumbnail, as raw files begin with; export it as JPEG")
    if 16 in tags.get(258, ()) and (tags.get(284) == 2 or tags.get(262) == 0):  # bits; separate planes, white as zero
        raise UserError("found 16 bits in separate planes or with white as zero; save it with 8 bits")


def _checked_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if width * height > LARGEST or max(image.size) > LARGEST_SIDE:
        raise UserError(f"found {width}x{height} pixels, expected at most {LARGEST:,} and {LARGEST_SIDE:,} a side; make it smaller")
    return width, height


def _read_labels(image: Image.Image) -> np.ndarray:
    """Decode an image of numbers. Raises `UserError` without a path."""
    _checked_size(image)
    if image.mode not in ("L", "P"):
        raise UserError(f"found an image of mode {image.mode}, expected grey with the number of a class in each pixel; make it again")
    return np.array(image)


def _shrink(image: Image.Image, factor: int) -> Image.Image:
    """Average blocks of pixels, in strips: transparency needs copies."""
    shrunk = Image.new(image.mode, (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, STRIP * factor):
        strip = image.crop((0, top, image.width, min(top + STRIP * factor, image.height)))
        shrunk.paste(strip.reduce(factor), (0, top // factor))
    return shrunk


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Look up how a loaded image is set upright; damaged EXIF says nothing."""
    try:
        with _quiet():
            return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # decoders raise whatever they like
        return None


def fit_and_pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale an image to fit into `size` (height, width), keeping its aspect ratio, and centre it on black."""
    height, width = size
    scale = min(width / image.width, height / image.height)
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), BLACK)
    # Pillow's bicubic filter widens with the scale when it makes images smaller, so it does not alias.
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    return canvas


def fill_square(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    """Scale an image's shorter side to `size`, keeping its aspect ratio, and cut the square out of its middle."""
    shorter = min(image.size)
    if max(image.size) > LONGEST * shorter:  # scaled as a whole, it might need gigabytes
        beyond = [max(0, side - LONGEST * shorter) // 2 for side in image.size]
        image = image.crop((*beyond, image.width - beyond[0], image.height - beyond[1]))
    scaled = image.resize(tuple(int(size * side / shorter) for side in image.size), filter)
    left, top = ((side - size) // 2 for side in scaled.size)
    return scaled.crop((left, top, left + size, top + size))


def clip_pixels(image: Image.Image) -> Tensor:
    """Turn an image into what CLIP's image encoders take, float32 (3, 224, 224): as transformers' CLIPImageProcessorPil, bit for bit."""
    square = fill_square(image.convert("RGB"), CLIP_SIZE, Image.Resampling.BICUBIC)
    pixels = (np.asarray(square).astype(np.float64) * (1 / 255)).astype(np.float32)
    return torch.from_numpy((pixels - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1).contiguous()


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB image into float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous().float() / 127.5 - 1


def to_pil(tensor: Tensor) -> Image.Image:
    """Turn (3, H, W) in [-1, 1] into an image; values outside are clipped."""
    return Image.fromarray(to_frames(tensor.detach()[:, None])[0])


def to_frames(video: Tensor) -> np.ndarray:
    """Turn one video (3, F, H, W) in [-1, 1] into uint8 frames (F, H, W, 3); values outside are clipped."""
    return video.permute(1, 2, 3, 0).float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8).cpu().numpy()
