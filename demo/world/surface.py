"""The colour of skin, hair and clothes at one point."""

import math

import numpy as np
from numba import njit

from world import paint
from world.paint import Paint, beard, brow, noise, scalp, step, strands


@njit(cache=True, fastmath=True)
def blend(colour: np.ndarray, other: np.ndarray, share: float, brightness: float):
    """Move `colour` toward `other` times `brightness` by a share in [0, 1]."""
    for k in range(3):
        colour[k] += (other[k] * brightness - colour[k]) * share


@njit(cache=True, fastmath=True)
def head_colour(colour: np.ndarray, x: float, y: float, z: float, lips: float, ear: float, lash: float, p: Paint) -> tuple[int, float]:
    """Skin with all that is on it: lips, brows, beard, lashes, hair; returns class and gloss."""
    ax, front = abs(x), step(z, 0.05, 0.15)
    skin_colour(colour, x, y, z, ear, p)
    label, gloss = paint.C_SKIN, 0.055
    if ear > 0.5:
        label = paint.C_LEFT_EAR if x < 0 else paint.C_RIGHT_EAR
    elif y < -0.37 - 0.25 * max(0.0, 0.3 - z) * (z < 0.3) or (z < 0.1 and y < -0.2):
        label = paint.C_NECK
    elif ax < 0.035 + 0.05 * step(0.05 - y, 0.0, 0.08) and -0.045 < y < 0.12 and z > 0.25:
        label = paint.C_NOSE
    on_lips = step(lips, 0.25, 0.6)
    if on_lips > 0:
        blend(colour, p.lips, on_lips, 1 + 0.1 * noise(110 * x, 20 * y, 0.0))
        gloss += 0.06 * on_lips
        if on_lips > 0.5:
            label = paint.C_UPPER_LIP if y > -0.128 else paint.C_LOWER_LIP
    chin, lip = beard(x, y, z, lips, p)
    shaved = max(chin, lip) * p.stubble
    blend(colour, p.hair, shaved * 0.5, 1.3)
    hairy = max(chin * p.beard, lip * p.moustache)
    if hairy > 0:
        blend(colour, p.brows, min(hairy, 1.0), 1 + 0.22 * noise(70 * x, 25 * y, 40 * z))
        gloss *= 1 - 0.7 * hairy
    if lash > 0:
        for k in range(3):
            colour[k] *= 1 - p.lash * step(lash, 0.25, 0.9)
    if front > 0:
        share = brow(x, y, -1.0 if x < 0 else 1.0, p)
        blend(colour, p.brows, share * 0.92 * front, 1 + 0.2 * noise(80 * x, 80 * y, 1.0))
        if share > 0.5:
            label = paint.C_LEFT_BROW if x < 0 else paint.C_RIGHT_BROW
    hair = scalp(x, y, z, ear, 0.022, p)
    if hair > 0:
        share = hair * (1 + 0.5 * (1 - p.hair_cover) * noise(90 * x, 90 * y, 90 * z))
        blend(colour, p.hair, share, strands(x, y, z, p))
        gloss *= 1 - 0.4 * hair
        if hair > 0.5:
            label = paint.C_HAIR
    return label, gloss


@njit(cache=True, fastmath=True)
def skin_colour(colour: np.ndarray, x: float, y: float, z: float, ear: float, p: Paint):
    """Skin with its unevenness, blood, freckles, a mole and the lines of age."""
    ax = abs(x)
    uneven = 1 + 0.045 * noise(22 * x, 22 * y, 22 * z) + 0.03 * noise(70 * x, 70 * y, 70 * z)
    red = p.blush * (
        math.exp(-(((ax - 0.19) / 0.08) ** 2) - ((y + 0.05) / 0.075) ** 2) + 0.6 * math.exp(-((ax / 0.05) ** 2) - ((y - 0.01) / 0.04) ** 2)
    )
    red = red * step(z, 0.1, 0.2) + 0.22 * ear
    shade = 0.12 * math.exp(-(((ax - EYE_BAG_X) / 0.06) ** 2) - ((y - 0.055) / 0.022) ** 2) * step(z, 0.1, 0.2)
    if p.freckles > 0 and -0.13 < y < 0.10 and z > 0.1:
        shade += p.freckles * step(noise(62 * x + p.phase, 62 * y, 62 * z), 0.35, 0.55) * math.exp(-((y / 0.09) ** 2))
    if p.wrinkles > 0 and z > 0.15:
        lines = (
            math.exp(-((((y - 0.26 - 0.012 * math.sin(9 * x + p.phase)) % 0.035 - 0.017) / 0.0045) ** 2))
            * step(y, 0.22, 0.24)
            * step(0.33 - y, 0.0, 0.02)
        )
        fold = math.exp(-(((ax - 0.085 - 0.22 * (-0.01 - y)) / 0.008) ** 2)) * step(-0.02 - y, 0.0, 0.03) * step(y, -0.16, -0.1)
        shade += p.wrinkles * (0.22 * lines * step(0.2 - ax, 0.0, 0.1) + 0.3 * fold)
    spot = math.sqrt((x - p.mole[0]) ** 2 + (y - p.mole[1]) ** 2)
    shade += 0.75 * (1 - step(spot, 0.006, 0.012)) * step(z, 0.1, 0.15)
    for k in range(3):
        colour[k] = p.skin[k] * uneven * (1 - red * (0.02, 0.36, 0.30)[k]) * (1 - shade * (0.75, 0.95, 1.0)[k])


EYE_BAG_X = 0.125


@njit(cache=True, fastmath=True)
def hair_colour(colour: np.ndarray, x: float, y: float, z: float, p: Paint):
    """Hair that hangs or stands away from the scalp."""
    bright = strands(x, y, z, p)
    for k in range(3):
        colour[k] = p.hair[k] * bright


@njit(cache=True, fastmath=True)
def torso_colour(colour: np.ndarray, x: float, y: float, z: float, is_torso: bool, p: Paint) -> tuple[int, float]:
    """Neck and clothes: the cut decides where skin ends; returns class and openness."""
    ax = abs(x)
    rim = -0.455 - 0.26 * z  # of a round neckline, lower in front
    if p.clothes == paint.SHIRT or p.clothes == paint.JACKET:
        rim -= 0.12 * step(0.12 - ax, 0.0, 0.11) * (z > 0)
    if is_torso and y > rim:
        for k in range(3):
            colour[k] = p.skin[k] * (1 + 0.04 * noise(22 * x, 22 * y, 22 * z)) * (1.0, 0.97, 0.96)[k]
        return paint.C_NECK, 0.62
    fold = 1 + 0.07 * noise(5 * x, 3 * y, 5 * z) + 0.03 * noise(70 * x, 70 * y, 70 * z)
    below = rim - y
    blend(colour, p.cloth, 1.0, fold)
    if not is_torso:
        blend(colour, p.cloth, 1.0, fold * 0.96)
    elif p.clothes == paint.T_SHIRT or p.clothes == paint.SWEATER:
        band = 0.03 if p.clothes == paint.T_SHIRT else 0.05
        if below < band:
            rib = 0.85 if p.clothes == paint.T_SHIRT else 0.72 + 0.2 * (math.sin(math.atan2(x, z) * 70) > 0)
            blend(colour, p.cloth, 1.0, rib)
        elif p.clothes == paint.SWEATER:
            blend(colour, p.cloth, 1.0, fold * (1 + 0.14 * math.sin(150 * x) * math.sin(110 * y)))
    elif p.clothes == paint.SHIRT:
        if z > 0 and ax < 0.035:
            blend(colour, p.cloth, 1.0, 0.92 if ax < 0.03 else 0.7)
            if ((y + 0.02) % 0.09 - 0.045) ** 2 + x * x < 0.00012:
                blend(colour, p.inner, 1.0, 1.0)
    elif p.clothes == paint.JACKET and z > 0:
        opening = 0.02 + 0.42 * max(0.0, y + 0.86)
        if ax < opening:
            blend(colour, p.inner, 1.0, fold)
        elif ax < opening + 0.012:
            blend(colour, p.cloth, 1.0, 0.45)
        elif ax < opening + 0.10 and ax > opening + 0.09:
            blend(colour, p.cloth, 1.0, 0.6)
    elif p.clothes == paint.HOODIE and z > 0:
        if abs(ax - 0.075 - 0.02 * math.sin(8 * y + p.phase)) < 0.009 and y > -0.75:
            blend(colour, p.inner, 1.0, 1.0)
        elif ax < 0.006:
            blend(colour, p.cloth, 1.0, 0.6)
    return paint.C_CLOTH, 0.85
