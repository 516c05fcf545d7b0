"""Pictures: reading them, fitting them into a frame, and the way to tensors and back."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from concat_id.errors import UserError

BLACK = (0, 0, 0)


def load_image(path: str | Path) -> Image.Image:
    """Read a picture as RGB, upright as its EXIF orientation says, transparent parts black.

    Raises `UserError` if the file is missing, unreadable, damaged or no picture.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: found {found}, expected a picture; check the path")
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture that can be read; expected JPEG, PNG, WebP or the like, convert it") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: the picture is too large to be read ({error}); make it smaller") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"{path}: the picture cannot be read ({error}); check its permissions or save it anew") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*BLACK, 255)), image).convert("RGB")
    return image.convert("RGB")


def fit_and_pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a picture to fit into `size` (height, width), keeping its aspect ratio, and centre it on black."""
    height, width = size
    scale = min(width / image.width, height / image.height)
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), BLACK)
    # Pillow's bicubic filter widens with the scale when it makes pictures smaller, so it does not alias.
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    return canvas


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB picture into float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous().float() / 127.5 - 1


def to_pil(tensor: Tensor) -> Image.Image:
    """Turn (3, H, W) in [-1, 1] into a picture; values outside are clipped."""
    pixels = ((tensor.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
