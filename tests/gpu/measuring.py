"""Seconds, kernels and waits of a device; on a CPU the same by the wall clock."""

import os
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Torch may be asked in the processes of the parts only: CUDA does not survive a fork. WSL has the second file.
CUDA = any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))
GIB = 2**30


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def once(call: Callable) -> float:
    """Seconds of one call, the device's work included."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def seconds(call: Callable, repeats: int = 3, warm: int = 1) -> dict[str, float]:
    """Median, least and largest of so many calls after some to warm up."""
    times = [once(call) for _ in range(warm + repeats)][warm:]
    return {"median": statistics.median(times), "least": min(times), "largest": max(times)}


def paired(first: Callable, second: Callable, rounds: int = 2) -> dict[str, float]:
    """Two ways of the same in the order A B B A: medians of both, and the median of A / B with its spread."""
    first(), second()
    pairs = []
    for _ in range(rounds):
        a, b, b_again, a_again = once(first), once(second), once(second), once(first)
        pairs += [(a, b), (a_again, b_again)]
    ratios = [a / b for a, b in pairs]
    medians = (statistics.median(times) for times in zip(*pairs, strict=True))
    return dict(zip(("first", "second"), medians, strict=True)) | {
        "ratio": statistics.median(ratios), "least": min(ratios), "largest": max(ratios),
    }  # fmt: skip


def difference(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, by the Euclidean norm."""
    found, expected = found.detach().double(), expected.detach().to(found.device).double()
    return float((found - expected).norm() / expected.norm())


def peak_gib(call: Callable) -> float | None:
    """The most memory of the device that a call takes, what is there already included."""
    if not CUDA:
        call()
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    synchronize()
    return torch.cuda.max_memory_allocated() / GIB


def kernels(call: Callable, most: int = 14) -> list[tuple[str, int, float]]:
    """Name, number and milliseconds of the kernels (on a CPU: operations) that take longest in one call."""
    time_of = "self_device_time_total" if CUDA else "self_cpu_time_total"
    with profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as seen:
        call()
        synchronize()
    rows = sorted(seen.key_averages(), key=lambda event: -getattr(event, time_of))
    return [(event.key[:80], event.count, round(getattr(event, time_of) / 1e3, 2)) for event in rows[:most]]


@contextmanager
def waits():
    """Count the lines of code that wait for the device, in the block; yields the counter."""
    found = Counter()
    if not CUDA:
        yield found
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.update(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
