"""The colour of each point of a person's surface, in coordinates that stay with the surface."""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

SKIN, MOUTH, TONGUE, EYE, TEETH, HAIR, TORSO, CLOTH, HAT, FRAME, LENS = range(11)  # materials; the first four as in head.py

# Classes of the masks, numbered as in concat_id.face.parsing.CLASSES
C_SKIN, C_NOSE, C_GLASSES, C_LEFT_EYE, C_RIGHT_EYE, C_LEFT_BROW, C_RIGHT_BROW, C_LEFT_EAR, C_RIGHT_EAR = range(1, 10)
C_MOUTH, C_UPPER_LIP, C_LOWER_LIP, C_HAIR, C_HAT, _, _, C_NECK, C_CLOTH = range(10, 19)  # nobody wears earrings or necklaces

CLEAN, STRAIGHT, SWEPT, PARTED, RECEDING, JAGGED = range(6)  # fringes
T_SHIRT, SHIRT, SWEATER, JACKET, HOODIE = range(5)  # clothes
EYE_X, EYE_Y = 0.128, 0.1135  # of the average head


Colour = tuple[float, float, float]


class Paint(NamedTuple):
    """Everything that colours one person in one shot; colours in linear light, lengths in head units.

    Numbers and tuples alone: compiled code counts the users of every array at every call.
    """

    skin: Colour
    lips: Colour
    iris: Colour
    hair: Colour
    brows: Colour
    cloth: Colour
    inner: Colour  # what shows under an open jacket, and the collar's or cord's colour
    hat: Colour
    frame: Colour
    blush: float
    freckles: float
    stubble: float  # darkness of a shaved beard
    beard: float
    moustache: float
    wrinkles: float
    mole: tuple[float, float]  # (x, y)
    brow_height: float
    brow_thickness: float
    brow_tilt: float
    brow_arch: float
    brow_length: float
    brow_gap: float
    lash: float
    iris_size: float
    hair_cover: float  # 0 bald .. 1
    hair_line: float
    fringe: int
    fringe_size: float
    sweep: float
    curl: float
    nape: float
    clothes: int
    phase: float


@njit(cache=True, fastmath=True)
def step(x: float, low: float, high: float) -> float:
    """A smooth step from 0 at `low` to 1 at `high`."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


@njit(cache=True)
def scatter(i: int, j: int, k: int) -> float:
    """A number in [0, 1) that looks random."""
    h = (i * 73856093) ^ (j * 19349663) ^ (k * 83492791)
    h = (h ^ (h >> 13)) * 1274126177
    return ((h ^ (h >> 16)) & 0xFFFF) / 65536.0


@njit(cache=True, fastmath=True)
def noise(x: float, y: float, z: float) -> float:
    """Smooth noise in [-1, 1] whose features are about one unit large."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    i, j, k = int(fx), int(fy), int(fz)
    x, y, z = x - fx, y - fy, z - fz
    x, y, z = x * x * (3 - 2 * x), y * y * (3 - 2 * y), z * z * (3 - 2 * z)
    low = (scatter(i, j, k) * (1 - x) + scatter(i + 1, j, k) * x) * (1 - y) + (
        scatter(i, j + 1, k) * (1 - x) + scatter(i + 1, j + 1, k) * x
    ) * y
    k += 1
    high = (scatter(i, j, k) * (1 - x) + scatter(i + 1, j, k) * x) * (1 - y) + (
        scatter(i, j + 1, k) * (1 - x) + scatter(i + 1, j + 1, k) * x
    ) * y
    return 2 * (low * (1 - z) + high * z) - 1


@njit(cache=True, fastmath=True)
def hair_edge(x: float, z: float, p: Paint) -> float:
    """Height above which the scalp has hair, going round the head from the forehead to the nape."""
    round_ = math.atan2(abs(x), z + 0.02)
    line = p.hair_line
    if p.fringe == STRAIGHT:
        line -= p.fringe_size
    elif p.fringe == SWEPT:
        line += -0.5 * p.fringe_size + p.sweep * x
    elif p.fringe == PARTED:
        line += 0.05 - p.fringe_size * 1.3 * step(abs(x - 0.15 * p.sweep), 0.0, 0.24)
    elif p.fringe == RECEDING:
        line += 0.02 + 0.07 * step(abs(x), 0.03, 0.14)
    elif p.fringe == JAGGED:
        line -= p.fringe_size * (0.45 + 0.5 * abs(((x + 0.03 * p.phase) * 11) % 2 - 1))
    front = line + (0.0 if p.fringe == CLEAN else 0.006 * math.sin(60 * x + p.phase))
    temple = 0.10 - 0.4 * p.fringe_size * (p.fringe == STRAIGHT or p.fringe == PARTED)
    if round_ < 0.62:
        return front
    if round_ < 1.0:
        return front + (temple - front) * step(round_, 0.62, 1.0)
    if round_ < 1.3:
        return temple + (-0.05 - temple) * step(round_, 1.0, 1.18)
    if round_ < 1.75:
        return -0.05 + 0.06 * step(round_, 1.38, 1.6)
    return 0.01 - (0.01 + p.nape) * step(round_, 1.75, 2.3)


@njit(cache=True, fastmath=True)
def scalp(x: float, y: float, z: float, ear: float, softness: float, p: Paint) -> float:
    """How much of a point of the head is under hair, 0 to 1."""
    if p.hair_cover <= 0 or y < -0.36 or ear > 0.5:
        return 0.0
    edge = hair_edge(x, z, p)
    return step(y, edge - 0.5 * softness, edge + softness) * p.hair_cover * (1 - ear)


@njit(cache=True, fastmath=True)
def strands(x: float, y: float, z: float, p: Paint) -> float:
    """Brightness of hair that runs down from the crown: about 1."""
    if p.curl > 0.5:
        return 1 + 0.30 * noise(26 * x, 26 * y, 26 * z) + 0.15 * noise(60 * x, 60 * y, 60 * z)
    turn = math.atan2(x, z + 0.25) + 0.5 * p.sweep * y
    across = turn * 13 + 1.2 * p.curl * math.sin(16 * y + p.phase)
    return 1 + 0.24 * noise(across * 1.6, 1.5 * y + p.phase, 0.0) + 0.14 * noise(across * 5, 2.0 * y, 7.0)


@njit(cache=True, fastmath=True)
def brow(x: float, y: float, side: float, p: Paint) -> float:
    """How much of a brow is at a point, 0 to 1; `side` is -1 on the image's left."""
    along = (side * x - p.brow_gap) / p.brow_length  # 0 at the nose, 1 at the temple
    if along < -0.15 or along > 1.15:
        return 0.0
    middle = EYE_Y + p.brow_height + p.brow_tilt * (along - 0.5) * 0.12 + p.brow_arch * (0.25 - (along - 0.6) ** 2)
    half = p.brow_thickness * (1 - 0.62 * step(along, 0.45, 1.05))
    hairs = 0.82 + 0.3 * noise(150 * x + 40 * y, 60 * y, p.phase)
    return step(half - abs(y - middle), -0.005, 0.006) * step(along, -0.1, 0.06) * step(1.1 - along, 0.0, 0.16) * min(hairs, 1.0)


@njit(cache=True, fastmath=True)
def beard(x: float, y: float, z: float, lips: float, p: Paint) -> tuple[float, float]:
    """How much beard and how much moustache is at a point, each 0 to 1."""
    if y > 0.0 or z < -0.02 or lips > 0.6:
        return 0.0, 0.0
    ax = abs(x)
    side = step(ax, 0.13, 0.2)
    top = -0.19 + 0.14 * side + 0.11 * step(ax, 0.2, 0.28) - 0.02 * (1 - step(ax, 0.0, 0.05))
    chin = step(top - y, -0.012, 0.02) * step(y, -0.40, -0.36) * step(z, 0.0, 0.06)
    lip = step(-0.075 - y - 0.5 * max(0.0, ax - 0.07), 0.0, 0.012) * step(0.135 - ax, 0.0, 0.03) * step(y + 0.235, 0.0, 0.03)
    rough = 0.85 + 0.3 * noise(90 * x, 45 * y, 60 * z)
    return chin * (1 - step(lips, 0.15, 0.45)) * rough, lip * (1 - step(lips, 0.15, 0.45)) * rough


@njit(cache=True, fastmath=True)
def scalp_cover(points: np.ndarray, ears: np.ndarray, p: Paint) -> np.ndarray:
    """`scalp` of many points (V, 3), with a soft edge: where hair has volume."""
    cover = np.zeros(points.shape[0], np.float32)
    for k in range(points.shape[0]):
        cover[k] = scalp(points[k, 0], points[k, 1], points[k, 2], ears[k], 0.07, p)
    return cover
