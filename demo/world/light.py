"""Light on a scene's pixels: a key light with soft shadows, the sky and the room around it."""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from world import paint
from world.paint import Paint, noise, step
from world.surface import hair_colour, head_colour, torso_colour


class Lamp(NamedTuple):
    """The light of a shot: `direction` (3,) toward it, colours (3,) of the key, the sky above and the ground's bounce."""

    direction: np.ndarray
    key: np.ndarray
    sky: np.ndarray
    ground: np.ndarray


class Scene(NamedTuple):
    """One person's triangles as `light_pixels` reads them; per-vertex arrays first, masks of the head's vertices alone."""

    triangles: np.ndarray
    materials: np.ndarray
    positions: np.ndarray
    normals: np.ndarray
    canon: np.ndarray
    masks: np.ndarray


@njit(cache=True, fastmath=True)
def mix(values: np.ndarray, a: int, b: int, c: int, u: float, v: float, k: int) -> float:
    """Interpolate column `k` between three vertices."""
    return (1 - u - v) * values[a, k] + u * values[b, k] + v * values[c, k]


@njit(cache=True, fastmath=True)
def shadow_at(x: float, y: float, z: float, view: np.ndarray, scale: float, depths: np.ndarray, softness: float) -> float:
    """Share of the key light that reaches a point: the mean of nine looks at the depths seen from the light."""
    size = depths.shape[0]
    i = (view[0, 0] * x + view[0, 1] * y + view[0, 2] * z) * scale + size / 2
    j = size / 2 - (view[1, 0] * x + view[1, 1] * y + view[1, 2] * z) * scale
    depth = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + 0.03
    lit = 0.0
    for dj in range(-1, 2):
        for di in range(-1, 2):
            a, b = int(i + di * softness + 0.5), int(j + dj * softness + 0.5)
            if a < 0 or b < 0 or a >= size or b >= size:
                lit += 1.0
            else:
                lit += 1 - step(depths[b, a] - depth, 0.0, 0.03)
    return lit / 9


@njit(cache=True, fastmath=True)
def light_pixels(image: np.ndarray, classes: np.ndarray, seen: np.ndarray, where: np.ndarray, scene: Scene, p: Paint, lamp: Lamp,
                 view: np.ndarray, scale: float, depths: np.ndarray):  # fmt: skip
    """Colour the pixels where a triangle is seen: `image` (H, W, 3) in linear light and `classes` (H, W)."""
    height, width = seen.shape
    colour = np.zeros(3, np.float32)
    bounce = np.zeros(3, np.float32)
    to_light = lamp.direction
    half = to_light + np.array([0.0, 0.0, 1.0], np.float32)
    half /= math.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2)
    for j in range(height):
        for i in range(width):
            t = seen[j, i]
            if t < 0:
                continue
            a, b, c = scene.triangles[t, 0], scene.triangles[t, 1], scene.triangles[t, 2]
            u, v = where[j, i, 0], where[j, i, 1]
            nx, ny, nz = (mix(scene.normals, a, b, c, u, v, 0), mix(scene.normals, a, b, c, u, v, 1), mix(scene.normals, a, b, c, u, v, 2))
            length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
            if nz < 0:
                length = -length
            nx, ny, nz = nx / length, ny / length, nz / length
            x, y, z = mix(scene.canon, a, b, c, u, v, 0), mix(scene.canon, a, b, c, u, v, 1), mix(scene.canon, a, b, c, u, v, 2)
            material = scene.materials[t]
            if material == paint.SKIN:
                lips, ear = mix(scene.masks, a, b, c, u, v, 0), mix(scene.masks, a, b, c, u, v, 1)
                lash, sky_seen = mix(scene.masks, a, b, c, u, v, 2), mix(scene.masks, a, b, c, u, v, 3)
                label, gloss = head_colour(colour, x, y, z, lips, ear, lash, p)
                sharpness, open_, soft = 22.0, 0.25 + 0.75 * sky_seen, 1.0
            else:
                label, gloss, sharpness, open_, soft = surface_colour(colour, material, x, y, z, p)
            lit = shadow_at(mix(scene.positions, a, b, c, u, v, 0), mix(scene.positions, a, b, c, u, v, 1),
                            mix(scene.positions, a, b, c, u, v, 2), view, scale, depths, 1.6)  # fmt: skip
            facing = nx * to_light[0] + ny * to_light[1] + nz * to_light[2]
            shine = max(nx * half[0] + ny * half[1] + nz * half[2], 0.0) ** sharpness * gloss * lit
            if material == paint.EYE:
                shine += catch_light(x, y, z, nx, ny, to_light)
            up = 0.5 + 0.5 * ny
            rim = (1 - nz) ** 3 * 0.10 * max(ny, 0.0)
            for k in range(3):
                wrap = soft * (0.5, 0.25, 0.16)[k]
                direct = max(facing + wrap, 0.0) / (1 + wrap) * (lit + (1 - lit) * (0.12 * soft * (1.0, 0.4, 0.25)[k]))
                bounce[k] = (lamp.ground[k] + (lamp.sky[k] - lamp.ground[k]) * up) * open_
                image[j, i, k] = colour[k] * (lamp.key[k] * direct + bounce[k] + rim * lamp.sky[k]) + shine * lamp.key[k]
            classes[j, i] = label


@njit(cache=True, fastmath=True)
def catch_light(x: float, y: float, z: float, nx: float, ny: float, to_light: np.ndarray) -> float:
    """The lamp's bright reflection in the cornea."""
    gap_x, gap_y = nx - 0.45 * to_light[0], ny - 0.30 - 0.25 * to_light[1]
    return 0.9 * step(0.14 - math.sqrt(gap_x * gap_x + gap_y * gap_y), 0.0, 0.10)


@njit(cache=True, fastmath=True)
def surface_colour(colour: np.ndarray, material: int, x: float, y: float, z: float, p: Paint) -> tuple[int, float, float, float, float]:
    """Put the colour of a point that is not skin into `colour`; returns its class, gloss, the gloss's sharpness, openness and softness."""
    if material == paint.EYE:
        return eye_colour(colour, x, y, p), 0.0, 1.0, 0.5, 0.3
    if material == paint.MOUTH:
        set_colour(colour, 0.16, 0.035, 0.03)
        return paint.C_MOUTH, 0.0, 1.0, 0.35, 0.2
    if material == paint.TONGUE:
        set_colour(colour, 0.42, 0.13, 0.12)
        return paint.C_MOUTH, 0.05, 10.0, 0.5, 0.5
    if material == paint.TEETH:
        gap = 0.82 + 0.18 * step(abs((x * 38) % 1.0 - 0.5), 0.0, 0.12)
        set_colour(colour, 0.78 * gap, 0.73 * gap, 0.64 * gap)
        return paint.C_MOUTH, 0.05, 20.0, 0.6, 0.4
    if material == paint.HAIR:
        hair_colour(colour, x, y, z, p)
        return paint.C_HAIR, 0.035, 12.0, 0.75 - 0.25 * step(-y, 0.1, 0.5), 0.4
    if material == paint.HAT:
        knit = 1 + 0.10 * noise(60 * x, 30 * y, 60 * z)
        set_colour(colour, p.hat[0] * knit, p.hat[1] * knit, p.hat[2] * knit)
        return paint.C_HAT, 0.02, 8.0, 0.8, 0.3
    if material == paint.FRAME:
        set_colour(colour, p.frame[0], p.frame[1], p.frame[2])
        return paint.C_GLASSES, 0.15, 30.0, 0.8, 0.0
    if material == paint.LENS:
        glow = 0.010 + 0.035 * step(y - 0.5 * abs(x), 0.0, 0.12)
        set_colour(colour, glow, glow, glow * 1.1)
        return paint.C_GLASSES, 0.10, 40.0, 0.9, 0.0
    label, open_ = torso_colour(colour, x, y, z, material == paint.TORSO, p)
    if label == paint.C_CLOTH:
        return label, 0.02, 8.0, open_, 0.3
    return label, 0.05, 20.0, open_, 1.0


@njit(cache=True, fastmath=True)
def set_colour(colour: np.ndarray, red: float, green: float, blue: float):
    """Write three numbers."""
    colour[0] = red
    colour[1] = green
    colour[2] = blue


@njit(cache=True, fastmath=True)
def eye_colour(colour: np.ndarray, x: float, y: float, p: Paint) -> int:
    """Iris, pupil and white of an eyeball; it turns by moving the surface."""
    side = -1.0 if x < 0 else 1.0
    dx, dy = x - side * paint.EYE_X, y - paint.EYE_Y
    away = math.sqrt(dx * dx + dy * dy)
    white = 0.72 - 0.25 * step(away, 0.03, 0.065)
    set_colour(colour, white, white * 0.96, white * 0.92)
    inside = 1 - step(away, p.iris_size - 0.003, p.iris_size + 0.003)
    ring = 1 - 0.7 * step(away, p.iris_size * 0.68, p.iris_size)
    rays = 1 + 0.25 * noise(math.atan2(dy, dx) * 6, away * 60, p.phase)
    pupil = step(away, p.iris_size * 0.36, p.iris_size * 0.46)
    for k in range(3):
        iris = p.iris[k] * ring * rays * (0.03 + 0.97 * pupil)
        colour[k] += (iris - colour[k]) * inside
    return paint.C_LEFT_EYE if side < 0 else paint.C_RIGHT_EYE
