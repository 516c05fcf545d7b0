"""Classifier-free guidance: how far to go from the unconditional estimate through the conditional one."""

import math
from collections.abc import Callable, Sequence
from functools import partial

GuidanceScale = Callable[[int, int], float]
"""Scale of (step index, timestep)."""


def guidance_scale(kind: str, scale: float, num_steps: int, exponent: float = 5.0) -> GuidanceScale:
    """Choose the scale's schedule: "constant", "dynamic" (as released) or "dynamic_intended".

    Dynamic: 1 + scale * (1 - cos(pi * (i / n)^exponent)) / 2 at i of n steps, which rises from 1 to 1 + scale.
    """
    if kind == "constant":
        return lambda step, timestep: scale
    rising = partial(_rising, scale=scale, num_steps=num_steps, exponent=exponent)
    if kind == "dynamic":
        # As released: i is the number of steps minus the *timestep* on the 0..999 scale, so that the scale
        # oscillates instead of rising. diffusers' CogVideoX pipeline does the same.
        return lambda step, timestep: rising(num_steps - timestep)
    if kind == "dynamic_intended":
        return lambda step, timestep: rising(step)
    raise ValueError(f"guidance {kind!r} is none of constant, dynamic, dynamic_intended")


def count_branches(kind: str, scale: float, ref_scales: Sequence[float]) -> int:
    """Tell how many estimates a step combines: one where every scale is 1, else two and one more for each other reference scale."""
    others = set(ref_scales) - {1.0}
    return 2 + len(others) if others or kind != "constant" or scale != 1 else 1


def _rising(i: float, scale: float, num_steps: int, exponent: float) -> float:
    return 1 + scale * (1 - math.cos(math.pi * (i / num_steps) ** exponent)) / 2
