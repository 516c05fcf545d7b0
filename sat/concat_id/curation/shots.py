"""Where a video cuts, and the pieces between the cuts that are long enough for a clip."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SMALL = (36, 64)  # height and width of the frames that are compared
MIN_CHANGE = 18.0  # mean difference of two frames, of 255, below which nothing is a cut
TIMES_USUAL = 4.0  # a cut changes so many times more than the frames around it
NEIGHBOURS = 8  # frames on both sides


class Span(NamedTuple):
    """A part of a video in seconds, whether it is all of it, and how long a frame lasts."""

    start: float
    end: float
    whole: bool = False
    frame: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start

    @property
    def part(self) -> tuple[float, float]:
        """Start and length for ffmpeg: both ends lie 0.4 of a frame early, as times are rounded, in AVI and Ogg to whole frames."""
        start = max(0.0, self.start - 0.4 * self.frame)
        return start, self.end - 0.4 * self.frame - start


def changes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean absolute difference of each frame (H, W, 3) from the one before, the first 0; (F,)."""
    before, values = None, []
    for frame in frames:
        now = frame.astype(np.int16)
        values.append(0.0 if before is None else float(np.abs(now - before).mean()))
        before = now
    return np.array(values)


def find_cuts(change: np.ndarray) -> list[int]:
    """Indices of frames that begin a new shot, from each frame's difference to the one before (F,).

    A hard cut is a lone large difference; fast motion is large over many frames. Dissolves are not found here: the faces of the two
    shots are not one person's, and the clip is discarded for that.
    """
    cuts = []
    for index in np.flatnonzero(change > MIN_CHANGE):
        low, high = max(1, index - NEIGHBOURS), index + NEIGHBOURS + 1
        around = np.delete(change[low:high], index - low)
        if not len(around) or change[index] > TIMES_USUAL * np.median(around):
            cuts.append(int(index))
    return cuts


def plan_clips(cuts: Iterable[int], frames: int, least: int, fps: float, most: int | None = None) -> tuple[list[Span], list[Span]]:
    """Divide the shots between `cuts`, the frames that begin one, into spans of equal length, as many as hold `least` frames each.

    `cuts` rise between 0 and `frames`. Returns the spans, evenly thinned out to `most`, and the shots that are too short. No frame of a
    longer shot is lost: its spans are shorter than twice `least`.
    """
    edges = [0, *cuts, frames]
    spans, short = [], []
    for start, end in zip(edges, edges[1:], strict=False):
        count = (end - start) // least
        steps = np.linspace(start, end, max(count, 1) + 1).round() / fps
        parts = [Span(float(a), float(b), count == 1 and len(edges) == 2, 1 / fps) for a, b in zip(steps, steps[1:], strict=False)]
        (spans if count else short).extend(parts)
    if most is not None and len(spans) > most:
        spans = [spans[index] for index in np.linspace(0, len(spans) - 1, most).round().astype(int)]
    return spans, short
