"""What is behind people: walls and simple rooms, a little out of focus."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from world.palette import named

BACKGROUNDS = {"wall": 0.46, "striped wall": 0.12, "tiled wall": 0.1, "curtain": 0.1, "room": 0.22}  # kinds and how often each is drawn
BLUR = 1 / 140  # of the height


@dataclass(frozen=True)
class Background:
    """A kind of `BACKGROUNDS`, the name of its colour, and the seed of its details."""

    kind: str
    colour: str
    seed: int

    def draw(self, height: int, width: int, light: np.ndarray) -> np.ndarray:
        """Paint it in linear light (H, W, 3), lit from `light` (3,)."""
        rng = np.random.default_rng(self.seed)
        y, x = np.mgrid[:height, :width] / height
        colour = named(self.colour) * 0.92 + 0.012
        image = np.broadcast_to(colour, (height, width, 3)).copy()
        image = PAINTERS[self.kind](image, x, y, width / height, rng)
        image = gaussian_filter(image, (height * BLUR, height * BLUR, 0))
        middle = width / height / 2
        falloff = 1.08 + 0.16 * light[0] * (x - middle) / middle - 0.20 * y - 0.12 * ((x - middle) ** 2 + (y - 0.4) ** 2)
        return np.clip(image * falloff[..., None], 0, 1).astype(np.float32)


def _wall(image: np.ndarray, x: np.ndarray, y: np.ndarray, aspect: float, rng: np.random.Generator) -> np.ndarray:
    rough = gaussian_filter(rng.standard_normal(x.shape), x.shape[0] / 9)
    return image * (1 + 0.05 * rough / max(rough.std(), 1e-6))[..., None]


def _stripes(image: np.ndarray, x: np.ndarray, y: np.ndarray, aspect: float, rng: np.random.Generator) -> np.ndarray:
    period = rng.uniform(0.14, 0.26)
    stripe = np.clip(np.sin(2 * np.pi * (x / period + rng.uniform())) * 8 + 0.5, 0, 1)
    return image * (1 - 0.38 * stripe)[..., None]


def _tiles(image: np.ndarray, x: np.ndarray, y: np.ndarray, aspect: float, rng: np.random.Generator) -> np.ndarray:
    size = rng.uniform(0.16, 0.28)
    shift = np.floor(y / size) % 2 * 0.5 * (rng.random() < 0.5)
    u, v = (x / (size * rng.uniform(1, 2)) + shift), y / size
    tone = rng.uniform(0.86, 1.1, (64, 64))[np.floor(v).astype(int) % 64, np.floor(u).astype(int) % 64]
    joint = np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v))) < 0.035
    return image * (tone * np.where(joint, 0.6, 1.0))[..., None]


def _curtain(image: np.ndarray, x: np.ndarray, y: np.ndarray, aspect: float, rng: np.random.Generator) -> np.ndarray:
    phase = 2 * np.pi * (x + 0.02 * np.sin(5 * y + rng.uniform(0, 6))) / rng.uniform(0.12, 0.2)
    return image * (0.82 + 0.24 * np.sin(phase) + 0.06 * np.sin(2.3 * phase + 1))[..., None]


def _room(image: np.ndarray, x: np.ndarray, y: np.ndarray, aspect: float, rng: np.random.Generator) -> np.ndarray:
    """A wall with one or two things beside the people: a window, an image, a shelf, a lamp, a plant."""
    image = _wall(image, x, y, aspect, rng)
    sides = [(0.02, 0.30), (0.72, 0.98)]
    if rng.random() < 0.45:
        sides = [sides[int(rng.integers(2))]]
    for low, high in sides:
        thing = FURNITURE[int(rng.integers(len(FURNITURE)))]
        left, right = sorted(aspect * np.clip([low + rng.uniform(-0.04, 0.04), high + rng.uniform(-0.04, 0.04)], -0.05, 1.05))
        thing(image, x, y, left, right, rng)
    return image


def _window(image: np.ndarray, x: np.ndarray, y: np.ndarray, left: float, right: float, rng: np.random.Generator) -> None:
    top, bottom = rng.uniform(-0.05, 0.12), rng.uniform(0.5, 0.65)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    bar = (np.abs(x - (left + right) / 2) < 0.012) | (np.abs(y - (top + bottom) / 2) < 0.012)
    edge = (x < left + 0.025) | (x > right - 0.025) | (y < top + 0.025) | (y > bottom - 0.025)
    sky = np.array([0.55, 0.72, 0.90]) + (y - top)[..., None] * np.array([0.35, 0.2, 0.0])
    image[inside] = np.clip(sky, 0, 0.95)[inside]
    image[inside & (bar | edge)] = (0.75, 0.73, 0.68)


def _image(image: np.ndarray, x: np.ndarray, y: np.ndarray, left: float, right: float, rng: np.random.Generator) -> None:
    top, bottom = rng.uniform(0.06, 0.16), rng.uniform(0.36, 0.5)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    first, second = rng.uniform(0.05, 0.6, (2, 3))
    hill = top + (bottom - top) * (0.55 + 0.15 * np.sin(14 * x + rng.uniform(0, 6)))
    image[inside] = np.where((y > hill)[..., None], first, second)[inside]
    image[inside & ((x < left + 0.02) | (x > right - 0.02) | (y < top + 0.02) | (y > bottom - 0.02))] = rng.choice([0.02, 0.6, 0.25])


def _shelf(image: np.ndarray, x: np.ndarray, y: np.ndarray, left: float, right: float, rng: np.random.Generator) -> None:
    for board in np.arange(rng.uniform(0.18, 0.28), 0.9, 0.26):
        place = left + 0.01
        while place < right - 0.05:
            wide, high = rng.uniform(0.025, 0.06), rng.uniform(0.12, 0.2)
            image[(x > place) & (x < min(place + wide, right)) & (y > board - high) & (y < board)] = rng.uniform(0.02, 0.5, 3)
            place += wide + 0.004
        image[(x > left) & (x < right) & (y >= board) & (y < board + 0.025)] = (0.16, 0.08, 0.04)


def _plant(image: np.ndarray, x: np.ndarray, y: np.ndarray, left: float, right: float, rng: np.random.Generator) -> None:
    middle, ground = (left + right) / 2, 0.78
    for _ in range(14):
        lean, long_ = rng.uniform(-1, 1), rng.uniform(0.2, 0.45)
        along = np.clip((ground - y) / long_, 0, 1)
        blade = np.abs(x - middle - lean * 0.2 * along**1.5) < 0.022 * np.sin(np.pi * along) ** 0.7
        image[blade & (y < ground) & (y > ground - long_)] = np.array([0.03, 0.18, 0.05]) * rng.uniform(0.6, 1.8)
    image[(np.abs(x - middle) < 0.09 - 0.12 * (y - ground)) & (y > ground)] = (0.35, 0.13, 0.06)


FURNITURE = (_window, _image, _shelf, _plant)
PAINTERS = {"wall": _wall, "striped wall": _stripes, "tiled wall": _tiles, "curtain": _curtain, "room": _room}
