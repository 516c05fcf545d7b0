"""Confidence intervals: what the mean may be over other frames or other videos of the same kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

TAIL = 0.025  # of 95 %, on either side
UNBOUNDED = (-np.inf, np.inf)


def mean_interval(values: Sequence[float] | np.ndarray, bounds: tuple[float, float] = UNBOUNDED) -> tuple[float, float] | None:
    """Bound the mean of independent values (N,), which lie within `bounds`, with 95 % confidence; None where they do not tell it.

    Student's t interval, as a bootstrap's is far too narrow for few values. Values that are all alike do not tell how far others lie:
    with confidence, a share of at most 1 - 0.025^(1/N) is elsewhere (Clopper and Pearson's bound for none of N), anywhere within `bounds`.
    """
    values = np.asarray(values, np.float64)
    number, mean = len(values), float(np.mean(values))
    if number < 2:
        return None
    below = above = float(stdtrit(number - 1, 1 - TAIL) * values.std(ddof=1) / np.sqrt(number))
    if np.allclose(values, mean, rtol=1e-9, atol=1e-12):
        elsewhere = 1 - TAIL ** (1 / number)
        below, above = elsewhere * (mean - bounds[0]), elsewhere * (bounds[1] - mean)
    return (max(bounds[0], mean - below), min(bounds[1], mean + above)) if np.isfinite(below) else None


def mean_with_interval(values: Sequence[float] | np.ndarray, bounds: tuple[float, float] = UNBOUNDED) -> dict[str, Any]:
    """Return `mean`, 95 % bounds `low` and `high` (None where there are none) and the number `n` of values (N,), N from 1."""
    low, high = mean_interval(values, bounds) or (None, None)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "n": len(values)}
