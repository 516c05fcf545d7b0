"""A budget of seconds that parts of a run share, and what came of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

SHARES = {"autoencoder": 0.27, "stage 1": 0.47, "stage 2": 0.10, "stage 3": 0.16}
PEAK = 989e12  # operations a second of an H100 in bfloat16, dense
REACHED = {"autoe": 0.05, "stage": 0.18}  # assumed shares of it: narrow convolutions, and tokens of width 320


class Clock:
    """Tells how far a part has come in its share. What a stopped run has spent counts as spent, up to its last save."""

    def __init__(self, budget: float, spent: float = 0.0, now: Callable[[], float] = time.monotonic):
        self.budget, self.now, self.begun = budget, now, now() - spent

    @property
    def elapsed(self) -> float:
        """Seconds of the budget that are gone."""
        return self.now() - self.begun

    def progress(self, part: str) -> float:
        """How much of a part's share is gone: 0 where it begins, 1 or more where it ends."""
        parts = list(SHARES)
        start = sum(SHARES[name] for name in parts[: parts.index(part)])
        return (self.elapsed / self.budget - start) / SHARES[part]


@dataclass
class Tally:
    """Samples and seconds of one kind of step, and the operations that a sample takes."""

    operations: float
    seconds: float = 0.0
    samples: int = 0


def table(tallies: dict[str, Tally], minutes: float) -> str:
    """Say for each kind of step what was measured, and what an H100 would do in the same share of `minutes`."""
    lines = ["| step | seconds | samples | a second | GFLOP a sample | H100, a second | H100, samples |", "|---|---|---|---|---|---|---|"]
    for name, tally in tallies.items():
        part, _, kind = name.partition(", ")
        share = 1 if not kind else 1 / 8 if kind.endswith("of two") else 3 / 8  # of the steps, which take about as long as one another
        rate, seconds = REACHED[part[:5]] * PEAK / tally.operations, minutes * 60 * SHARES[part] * share
        lines.append(f"| {name} | {tally.seconds:.1f} | {tally.samples} | {tally.samples / max(tally.seconds, 1e-9):.2f} | "
                     f"{tally.operations / 1e9:.0f} | {rate:.0f} | {rate * seconds:,.0f} |")  # fmt: skip
    return "\n".join(lines)
