"""Images of any colours and number range as 8-bit sRGB."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from concat_id.errors import UserError

BLACK = (0, 0, 0)
RANGES = (255, 1023, 4095, 65535, 2**31 - 1)  # of whole numbers of 8, 10, 12, 16 and 32 bits, the last with a sign
FLOAT_RANGES = (1.0, 255.0, 65535.0)
LEAST_SHARE = 1 / 32  # of its range that an image's brightest value fills; below it the range is a guess and the image black
TOLERANCE = 0.01  # of the range, by which filters overshoot
SPACES = {"L": "GRAY", "RGB": "RGB ", "RGBA": "RGB ", "CMYK": "CMYK", "LAB": "Lab "}


def to_8_bits(image: Image.Image, layout: str) -> Image.Image:
    """Turn a loaded image into 8 bits of grey, RGB, RGBA, CMYK or LAB; `layout` says how its file held the pixels.

    Raises `UserError` without a path where the range of its numbers cannot be told.
    """
    if image.mode.startswith(("I", "F")):
        return _scale(image)
    if ";16" in layout:
        extremes = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
        if 0 < max(high for _, high in extremes) < 16:  # of the upper 8 bits, all that Pillow keeps
            raise UserError("found numbers of 10 or 12 bits in 16, expected them to fill their range; save it with 8 bits")
    if image.mode in SPACES and not image.has_transparency_data:
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Turn an image of `to_8_bits` with its embedded profile into sRGB, transparent parts black."""
    if profile or image.mode == "LAB":
        image = _convert(image, profile)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BLACK, 255)), image)
    return image.convert("RGB")


def _convert(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB. A profile that is broken or of other colours is ignored; what is sRGB already stays bit for bit."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        name = (source.profile.profile_description or "").lower() if profile else ""
        if profile and source.profile.xcolor_space != SPACES[image.mode] or "srgb" in name and "linear" not in name:
            return image
        target = ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, mode)
    except Exception:  # whatever a broken profile leads to
        return image


def _scale(image: Image.Image) -> Image.Image:
    """Turn whole numbers of more than 8 bits, or fractions, into 8 bits of grey by the smallest range that holds them."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    ranges = FLOAT_RANGES if image.mode == "F" else RANGES
    top = next((top for top in ranges if high <= top * (1 + TOLERANCE * (image.mode == "F"))), 0)
    if not np.isfinite(low + high) or low < -TOLERANCE * max(top, high) or not top or 0 < high < LEAST_SHARE * top:
        raise UserError(f"found values from {low:g} to {high:g}, expected 0 to one of {', '.join(f'{top:g}' for top in ranges)}; "
                        "save it with 8 bits")  # fmt: skip
    scaled = np.multiply(values, np.float32(255 / top), dtype=np.float32)
    return Image.fromarray(np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8))
