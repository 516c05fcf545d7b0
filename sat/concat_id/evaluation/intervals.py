"""Confidence intervals by the bootstrap: what the mean would have been with other frames or other videos."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Bound the mean of independent values (N,) with 95 % confidence (percentile bootstrap); None for fewer than two values."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_with_interval(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Return `mean`, 95 % bounds `low` and `high` (None for fewer than two values) and the number `n` of values (N,), N from 1."""
    low, high = mean_interval(values) or (None, None)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "n": len(values)}
