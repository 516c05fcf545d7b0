"""The five parts of a face that ConsistentID knows: from the classes of its pixels to masks and images.

Source: ConsistentID (JackAILab/ConsistentID), whose parser numbers CelebAMask's classes in the order of BiSeNet; the Segformer that this
project uses has another order. Everything here takes the Segformer's numbers, `CLASSES`.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from concat_id.video.colours import BLACK
from concat_id.video.transforms import CLIP_SIZE, clip_pixels

CLASSES = (
    *("background", "skin", "nose", "glasses", "left eye", "right eye", "left brow", "right brow", "left ear", "right ear"),
    *("mouth", "upper lip", "lower lip", "hair", "hat", "earring", "necklace", "neck", "cloth"),
)
# As BiSeNet (zllrunning/face-parsing.PyTorch) was trained; the names in ConsistentID's own table are partly wrong.
RELEASED_CLASSES = (
    *("background", "skin", "left brow", "right brow", "left eye", "right eye", "glasses", "left ear", "right ear", "earring"),
    *("nose", "mouth", "upper lip", "lower lip", "neck", "necklace", "cloth", "hair", "hat"),
)
_TO_RELEASED, _FROM_RELEASED = (
    np.array([target.index(name) for name in source], np.uint8)
    for source, target in ((CLASSES, RELEASED_CLASSES), (RELEASED_CLASSES, CLASSES))
)
# As released: in this order, and of each pair the first one that is there.
PART_CLASSES = {
    "face": ("skin",), "eyes": ("left eye", "right eye"), "ears": ("left ear", "right ear"), "nose": ("nose",),
    "mouth": ("upper lip", "lower lip"),
}  # fmt: skip
PARTS = tuple(PART_CLASSES)
FACE_CAPTION = "The person has one face, one nose, two eyes, two ears, and one mouth."  # as released, where nobody describes the face
PARSED_SIZE = 512  # pixels of the side of a photograph that is parsed


def to_released(labels: np.ndarray) -> np.ndarray:
    """Renumber classes from `CLASSES` to `RELEASED_CLASSES`, uint8."""
    return _TO_RELEASED[labels]


def from_released(labels: np.ndarray) -> np.ndarray:
    """Renumber classes from `RELEASED_CLASSES` to `CLASSES`, uint8."""
    return _FROM_RELEASED[labels]


def squeezed(photo: Image.Image) -> Image.Image:
    """Scale a photograph to the square that is parsed; its aspect ratio is lost."""
    return photo.convert("RGB").resize((PARSED_SIZE, PARSED_SIZE), Image.Resampling.BILINEAR)


def part_masks(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mask, bool (H, W), of each part that the labels (H, W) have, in the order of `PARTS`, holes filled.

    So the face includes eyes, nose and mouth.
    """
    there = set(np.unique(labels).tolist())
    chosen = {part: next((CLASSES.index(name) for name in names if CLASSES.index(name) in there), None)
              for part, names in PART_CLASSES.items()}  # fmt: skip
    return {part: filled(labels == number) for part, number in chosen.items() if number is not None}


def filled(region: np.ndarray) -> np.ndarray:
    """Fill what the outer contours of a region, bool (H, W), enclose."""
    from scipy.ndimage import binary_fill_holes  # sampling of videos has no need of it

    return binary_fill_holes(region)


def without_background(labels: np.ndarray) -> np.ndarray:
    """Return what is not background, bool (H, W)."""
    return labels != CLASSES.index("background")


def mask_of(region: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Turn a region, bool (H, W), into a mask of `size` (width, height) for an image, with soft edges where it is scaled."""
    return Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)


def part_images(photo: Image.Image, masks: Mapping[str, np.ndarray]) -> list[Image.Image]:
    """Cut each part out of a photograph: the same frame, black outside the part's mask."""
    black = Image.new("RGB", photo.size, BLACK)
    return [Image.composite(photo.convert("RGB"), black, mask_of(mask, photo.size)) for mask in masks.values()]


def part_pixels(images: Iterable[Image.Image]) -> Tensor:
    """Turn the images of the parts that are there into CLIP's pixels (5, 3, 224, 224); zeros stand in the places that remain."""
    pixels = torch.zeros(len(PARTS), 3, CLIP_SIZE, CLIP_SIZE)
    for place, image in enumerate(images):
        pixels[place] = clip_pixels(image)
    return pixels
