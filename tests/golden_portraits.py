"""The photographs and label maps that ConsistentID's golden files were made from."""

import numpy as np
from conftest import golden_meta, seeded
from PIL import Image

META = golden_meta("consistentid_shared")
RELEASED_PARTS = {"Face": "face", "Left_Eye": "eyes", "Left_Ear": "ears", "Nose": "nose", "Upper_Lip": "mouth"}


def image_of(name: str, size) -> Image.Image:
    """The golden files' photograph of this name."""
    pixels = 128 + 40 * seeded(f"consistentid/{name}", (*size, 3)).numpy()
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def ellipses(size: int, drawn) -> np.ndarray:
    """A label map in the released numbering."""
    labels, (y, x) = np.zeros((size, size), np.uint8), np.mgrid[:size, :size]
    for label, cy, cx, ry, rx in drawn:
        labels[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = label
    return labels
