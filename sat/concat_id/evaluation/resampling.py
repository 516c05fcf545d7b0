"""Confidence intervals by the bootstrap: what the mean would have been with other frames or other videos."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Bound the mean of independent values with 95 % confidence (percentile bootstrap); None for fewer than two values."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    means = _resampled_means(values, seed)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_interval(first: Sequence[float], second: Sequence[float], seed: int = 0) -> dict[str, float | int | None]:
    """Compare two runs over the same samples: mean of second - first, its interval, and how sure its sign is.

    `sign` is the share of resamples whose mean difference has the sign of the whole; samples are drawn in pairs.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    if len(differences) < 2:
        return {"pairs": len(differences), "difference": float(differences.mean()) if len(differences) else None,
                "low": None, "high": None, "sign": None}  # fmt: skip
    means = _resampled_means(differences, seed)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    mean = float(differences.mean())
    sign = float(np.mean(np.sign(means) == np.sign(mean)))
    return {"pairs": len(differences), "difference": mean, "low": float(low), "high": float(high), "sign": sign}


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return values[drawn].mean(axis=1)
