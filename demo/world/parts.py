"""Geometry that the head does not have: teeth, long hair, shoulders, collars, hats and glasses."""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from world.head import HeadModel
from world.meshes import Mesh, ellipsoid, grid_triangles, join, mesh, tube
from world.paint import HOODIE, JACKET, SHIRT

HAIR_MIDDLE = -0.06  # depth of the axis that hair and hats go round
# The trunk from the neck down to below every image: height, half width, half depth, depth of its middle
TRUNK = np.array(
    [
        (-0.34, 0.185, 0.18, 0.045),
        (-0.42, 0.20, 0.205, 0.04),
        (-0.465, 0.235, 0.225, 0.03),
        (-0.505, 0.36, 0.25, 0.01),
        (-0.55, 0.56, 0.29, -0.02),
        (-0.60, 0.72, 0.32, -0.03),
        (-0.68, 0.81, 0.35, -0.03),
        (-0.90, 0.85, 0.37, -0.03),
        (-1.5, 0.84, 0.37, -0.03),
    ]
)


class Fit(NamedTuple):
    """How a head differs from the average: scale (3,) and offset (3,) of what is worn on the skull, and where its features are."""

    scale: np.ndarray
    offset: np.ndarray
    eyes: np.ndarray  # (2, 3), image's left first
    bridge: np.ndarray
    mouth: np.ndarray
    neck: float  # width against the average

    def worn(self, part: Mesh) -> Mesh:
        """Put a part made for the average head on this one."""
        return mesh(part.vertices * self.scale + self.offset, part.triangles, part.canon)


def fit_to(head: HeadModel, vertices: np.ndarray) -> Fit:
    """Measure a person's vertices (V, 3) at rest."""
    rest = head.rest
    band = (rest[:, 1] > 0.2) & (rest[:, 1] < 0.34)

    eyes, eyes_rest = (np.stack([(v[eye].max(axis=0) + v[eye].min(axis=0)) / 2 for eye in head.eyes]) for v in (vertices, rest))
    top, top_rest = (v[rest[:, 1] > 0.2][:, 1].max() for v in (vertices, rest))
    up = (top - eyes[:, 1].mean()) / (top_rest - eyes_rest[:, 1].mean())
    scale = np.array([np.ptp(vertices[band][:, 0]) / np.ptp(rest[band][:, 0]), up, np.ptp(vertices[band][:, 2]) / np.ptp(rest[band][:, 2])])
    offset = np.array([0.0, top - up * top_rest, vertices[band][:, 2].min() - scale[2] * rest[band][:, 2].min()])
    bridge = np.abs(rest - [0, 0.115, 0.37]).sum(axis=1).argmin()
    neck = (rest[:, 1] < -0.42) & (rest[:, 2] < 0.3)
    return Fit(scale.astype(np.float32), offset.astype(np.float32), eyes, vertices[bridge], vertices[head.masks[:, 0] > 0.5].mean(axis=0),
               float(np.ptp(vertices[neck][:, 0]) / np.ptp(rest[neck][:, 0])))  # fmt: skip


def teeth(fit: Fit) -> Mesh:
    """Two rows of teeth behind the lips."""
    angle = np.linspace(-1.25, 1.25, 25)
    arch = np.stack([0.085 * np.sin(angle), 0 * angle, 0.075 * np.cos(angle) - 0.095], axis=1)
    rows = []
    for top, bottom in ((0.040, -0.002), (-0.012, -0.045)):
        points = np.stack([arch + [0, height, 0] for height in (top, bottom)]).reshape(-1, 3)
        rows.append(mesh(points + fit.mouth, grid_triangles(2, len(angle), closed=False), points))
    return join(rows)


def trunk(fit: Fit, width: float) -> Mesh:
    """Neck, shoulders and chest in one surface; `width` scales the shoulders."""
    heights = np.concatenate([np.linspace(-0.34, -0.72, 30), np.linspace(-0.8, -1.5, 6)])
    half_width, half_depth, middle = (PchipInterpolator(-TRUNK[:, 0], TRUNK[:, k])(-heights)[:, None] for k in (1, 2, 3))
    shoulder = np.clip((-heights - 0.45) / 0.12, 0, 1)[:, None]
    half_width = half_width * (fit.neck * (1 - shoulder) + width * shoulder)
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)[None]
    power = 1 - 0.18 * shoulder  # rounder than an ellipse below the neck
    x = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * half_width
    z = middle + np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * half_depth
    points = np.stack([x, np.broadcast_to(heights[:, None], x.shape), z], axis=-1).reshape(-1, 3)
    return mesh(points, grid_triangles(len(heights), angle.shape[1], closed=True))


def collar(kind: int, fit: Fit) -> Mesh | None:
    """The collar of a shirt or jacket, the hood of a hoodie; nothing for the others."""
    if kind == HOODIE:
        angle = np.linspace(0.75, 2 * np.pi - 0.75, 40)
        drop = np.cos(angle)
        points = np.stack([0.30 * fit.neck * np.sin(angle), -0.455 - 0.05 * drop, 0.02 + 0.26 * np.cos(angle)], axis=1)
        return tube(points, 0.062, closed=False, sides=12)
    if kind not in (SHIRT, JACKET):
        return None
    gap = 0.32 if kind == SHIRT else 0.62
    angle = np.linspace(gap, 2 * np.pi - gap, 60)
    forward = np.minimum(angle, 2 * np.pi - angle) - gap  # 0 at the opening
    point = (0.055 if kind == SHIRT else 0.09) * np.exp(-((forward / 0.28) ** 2))
    lean = 0.05 * np.cos(angle)
    bottom, top = -0.49 - lean, -0.40 - 1.3 * lean
    rows = []
    for height, lift in ((bottom, 0.006), (top, 0.016), (top - 0.02, 0.034), (bottom + 0.01 - 0.3 * point, 0.034), (bottom - point, 0.02)):
        half_width, half_depth, middle = (PchipInterpolator(-TRUNK[:, 0], TRUNK[:, k])(-height) for k in (1, 2, 3))
        rows.append(
            np.stack([(half_width * fit.neck + lift) * np.sin(angle), height, middle + (half_depth + lift) * np.cos(angle)], axis=1)
        )
    return mesh(np.concatenate(rows), grid_triangles(len(rows), len(angle), closed=False))


def hair_part(kind: str, curl_phase: float) -> Mesh | None:
    """Hair beyond the scalp, for the average head."""
    if kind == "afro":
        ball = ellipsoid((0, 0.20, -0.13), (0.47, 0.46, 0.44), rings=40)
        bumps = 1 + 0.02 * np.sin(31 * ball.canon[:, :1] + curl_phase) * np.sin(29 * ball.canon[:, 1:2]) * np.sin(33 * ball.canon[:, 2:])
        return mesh((ball.vertices - [0, 0.2, -0.13]) * bumps + [0, 0.2, -0.13], ball.triangles, ball.canon)
    if kind == "bun":
        return ellipsoid((0, 0.56, -0.16), (0.16, 0.13, 0.16), rings=20)
    if kind == "side bun":
        return join([ellipsoid((side * 0.32, 0.46, -0.12), (0.14, 0.13, 0.14), rings=18) for side in (-1, 1)])
    if kind == "ponytail":
        return join(
            [ellipsoid((0, 0.40, -0.50), (0.11, 0.12, 0.13), rings=16), ellipsoid((0.16, 0.02, -0.58), (0.14, 0.42, 0.11), rings=24)]
        )
    if kind == "none":
        return None
    return curtain(bottom={"bob": -0.27, "long": -0.74, "wavy": -0.68}[kind], wave=0.045 if kind == "wavy" else 0.008, phase=curl_phase)


def curtain(bottom: float, wave: float, phase: float) -> Mesh:
    """Hair that hangs round the back and over the ears, open before the face."""
    heights = np.concatenate([np.linspace(0.46, 0.1, 14), np.linspace(0.06, bottom, 22)])[:, None]
    edge = np.interp(-heights, [-0.46, -0.2, 0.05, 0.3, 0.8], [1.0, 1.12, 1.22, 1.12, 0.95])
    share = np.linspace(-1, 1, 61)[None]
    angle = np.pi + share * (np.pi - edge)  # 0 is the front
    round_top = np.sqrt(np.clip(1 - (np.clip(heights - 0.06, 0, None) / 0.47) ** 2, 0.02, 1))
    flare = 1 + 0.10 * np.clip(0.1 - heights, 0, 0.35) / 0.35 - 0.10 * np.clip((bottom + 0.12 - heights) / 0.12, 0, 1)
    ripple = 1 + wave * np.sin(17 * heights + phase + 2.0 * np.sin(3 * angle)) * np.clip(0.25 - heights, 0, 0.4) / 0.4
    reach = round_top * flare * ripple
    x = 0.385 * np.sin(angle) * reach
    z = HAIR_MIDDLE + 0.46 * np.cos(angle) * np.where(np.cos(angle) > 0, round_top * ripple, reach)
    y = heights + 0.03 * np.abs(share) ** 3 * (heights < 0)
    points = np.stack([x, np.broadcast_to(y, x.shape), z], axis=-1).reshape(-1, 3)
    return mesh(points, grid_triangles(len(heights), share.shape[1], closed=False))


def hat(kind: str, volume: float) -> Mesh:
    """A cap, a beanie or a hat with a brim, for the average head with hair of a volume; its front edge above the brows."""
    wide, deep = 0.335 + volume, 0.435 + volume
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    height = {"cap": 0.30, "beanie": 0.36, "hat": 0.36}[kind]
    dome = ellipsoid((0, 0.23, HAIR_MIDDLE), (wide, height, deep), rings=24, lowest=np.pi / 2)
    points = dome.vertices.copy()
    if kind == "hat":  # a flat crown
        up = (points[:, 1] - 0.23) / height
        points[:, 1] = 0.23 + height * np.minimum(1.35 * up, 1 - 0.06 * (1 - up)) * 0.9
        around = np.clip(1.0 + 0.35 * up, 1, 1.3)[:, None]
        points[:, [0, 2]] = (points[:, [0, 2]] - [0, HAIR_MIDDLE]) * around + [0, HAIR_MIDDLE]
    pieces = [mesh(points, dome.triangles, dome.canon)]
    if kind == "beanie":
        rows = [(1.0, 0.30), (1.055, 0.29), (1.06, 0.20), (1.0, 0.185)]
        pieces.append(_rings([(wide * k, deep * k, y) for k, y in rows], angle))
    elif kind == "hat":
        pieces.append(_rings([(wide * 0.99, deep * 0.99, 0.25), (wide * 1.3, deep * 1.22, 0.235), (wide * 1.62, deep * 1.42, 0.25)], angle))
    else:
        share, out = np.meshgrid(np.linspace(-1.15, 1.15, 33), np.linspace(0, 1, 8), indexing="ij")
        reach = 0.30 * np.cos(share / 1.15 * np.pi / 2) ** 0.6
        x, z = np.sin(share) * wide * (1 + 0.1 * out), HAIR_MIDDLE + np.cos(share) * deep + out * reach
        y = 0.245 - 0.07 * out**1.5 - 0.10 * (x / wide) ** 2 * out
        pieces.append(mesh(np.stack([x, y, z], axis=-1).reshape(-1, 3), grid_triangles(33, 8, closed=False)))
    whole = join(pieces)
    tilted = whole.vertices.copy()
    tilted[:, 1] += 0.14 * (tilted[:, 2] - 0.3) + (0.065 if kind == "hat" else 0.03)
    return mesh(tilted, whole.triangles, whole.canon)


def _rings(levels: list[tuple[float, float, float]], angle: np.ndarray) -> Mesh:
    rows = [
        np.stack([wide * np.sin(angle), np.full_like(angle, y), HAIR_MIDDLE + deep * np.cos(angle)], axis=1) for wide, deep, y in levels
    ]
    return mesh(np.concatenate(rows), grid_triangles(len(rows), len(angle), closed=True))


def glasses(fit: Fit, shape: tuple[float, float, float], thickness: float) -> tuple[Mesh, Mesh]:
    """Frame and lenses before a person's eyes; `shape` is half width, half height and squareness (2 is an ellipse)."""
    wide, high, power = shape
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = wide * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / power)
    y = high * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / power)
    depth = float(max(fit.bridge[2] + 0.015, fit.eyes[:, 2].max() + 0.085))
    wires, lenses, inner = [], [], []
    for side, eye in zip((-1, 1), fit.eyes, strict=True):
        centre = np.array([eye[0] + side * 0.008, eye[1] - 0.012, depth])
        back = -0.35 * np.clip(side * (x + centre[0]) - 0.1, 0, None) ** 1.3  # the glasses follow the face
        rim = np.stack([centre[0] + x, centre[1] + y, centre[2] + back], axis=1)
        wires.append(tube(rim, thickness, closed=True))
        fan = np.concatenate([rim, rim.mean(axis=0, keepdims=True)])
        lenses.append(mesh(fan, np.stack([np.arange(48), (np.arange(48) + 1) % 48, np.full(48, 48)], axis=1)))
        outer = rim[np.argmax(side * rim[:, 0])] + [0, 0.02, 0]
        ear = np.array([side * 0.345 * fit.scale[0], eye[1] - 0.03, -0.02])
        wires.append(tube(np.linspace(outer, ear, 8), thickness, closed=False))
        inner.append(rim[np.argmin(side * rim[:, 0])])
    bow = np.linspace(*inner, 9) + np.stack(
        [np.zeros(9), 0.018 * np.sin(np.linspace(0, np.pi, 9)), 0.02 * np.sin(np.linspace(0, np.pi, 9))], axis=1
    )
    return join([*wires, tube(bow, thickness, closed=False)]), join(lenses)
