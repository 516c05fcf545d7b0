"""Colours by name, and those of skin, hair and eyes. Source of all: chosen by eye in sRGB, used as linear light."""

import numpy as np

GAMMA = 2.2
NAMED = {
    "red": (0.80, 0.11, 0.12), "blue": (0.14, 0.27, 0.76), "green": (0.13, 0.52, 0.22), "yellow": (0.93, 0.79, 0.16),
    "white": (0.93, 0.93, 0.92), "black": (0.10, 0.10, 0.11), "orange": (0.93, 0.48, 0.10), "purple": (0.45, 0.18, 0.62),
    "pink": (0.95, 0.56, 0.70), "gray": (0.52, 0.53, 0.55), "brown": (0.42, 0.26, 0.15),
}  # fmt: skip
SKIN = (
    (0.98, 0.85, 0.76),
    (0.93, 0.76, 0.64),
    (0.86, 0.66, 0.52),
    (0.74, 0.54, 0.40),
    (0.60, 0.41, 0.29),
    (0.48, 0.33, 0.25),
    (0.38, 0.26, 0.20),
)
HAIR = (
    (0.10, 0.09, 0.09),
    (0.22, 0.14, 0.10),
    (0.38, 0.24, 0.14),
    (0.52, 0.36, 0.20),
    (0.85, 0.69, 0.42),
    (0.66, 0.29, 0.12),
    (0.70, 0.70, 0.70),
    (0.90, 0.88, 0.84),
)
IRIS = ((0.28, 0.16, 0.09), (0.40, 0.25, 0.12), (0.30, 0.48, 0.70), (0.36, 0.52, 0.36), (0.50, 0.54, 0.56))


def linear(colour: tuple | np.ndarray) -> np.ndarray:
    """Turn sRGB in [0, 1] into linear light, float32."""
    return (np.clip(np.asarray(colour, np.float64), 0, 1) ** GAMMA).astype(np.float32)


def named(name: str) -> np.ndarray:
    """Linear light of a colour's name."""
    return linear(NAMED[name])


def between(colours: tuple, position: float) -> np.ndarray:
    """Linear light at a position in [0, 1] along a row of sRGB colours."""
    table, place = np.array(colours), position * (len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    return linear(table[low] + (place - low) * (table[low + 1] - table[low]))
