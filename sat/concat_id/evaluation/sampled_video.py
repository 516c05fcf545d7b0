"""Read a video once: frames for the metrics that look at images, small grey ones for those that look at motion."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from concat_id.errors import UserError
from concat_id.files.formats import is_image
from concat_id.video.transforms import load_image
from concat_id.video.writing import AS_STORED, decode_frames, describe_video

SMALL_SIDE = 160  # pixels of the longer side of the frames for motion
MOTION_FRAMES = 256  # the middle of longer videos stands for all of it
MIN_SHARE = 0.9  # of the frames that a file announces; a scratch loses some, a hole many
# ffmpeg's list of a stream's packets: time of decoding, of showing, duration, bytes, and flags where there are any; 4: not to be shown
PACKET = re.compile(r"^0, +(-?\d+), +(-?\d+), +\d+, +[1-9]\d*, 0x\w+(?:, F=0x(\w+))?", re.MULTILINE)
HIDDEN, UNKNOWN = 4, -(2**63)
CUT_SHORT = re.compile(r"^\[.*(?:partial file|File ended prematurely|corrupt input packet)", re.MULTILINE)  # titles stand further in
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class SampledVideo:
    """`frames` (F, H, W, 3), uint8 RGB, at `indices` of the video's `count`; `small` (K, h, w), uint8 grey, are consecutive.

    `fps` is the mean over the whole, `small_fps` over `small`, which differ where the rate varies. `announced` frames should be there.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    small: np.ndarray
    fps: float
    small_fps: float
    count: int
    announced: int


def read_video(path: Path, num_frames: int, timeout_s: float = TIMEOUT_S) -> SampledVideo:
    """Read `num_frames` frames evenly spaced from the first to the last, all of them if there are fewer; an image is a video of one.

    Raises `UserError` for a file that is missing, damaged or takes too long.
    """
    if is_image(path):
        frame = np.asarray(load_image(path))
        return SampledVideo(frame[None], (0,), _small(frame)[None], 1.0, 1.0, 1, 1)
    times = _times(path, timeout_s)
    announced = len(times)
    wanted = set(_evenly(announced, num_frames))
    start = max(0, (announced - MOTION_FRAMES) // 2)
    chosen, small, last, count = {}, [], None, 0
    for last in decode_frames(path, timeout_s, rate=AS_STORED):
        if count in wanted:
            chosen[count] = last
        if start <= count < start + MOTION_FRAMES:
            small.append(_small(last))
        count += 1
    if count < max(1, MIN_SHARE * announced):
        raise UserError(f"{path}: {count} of {announced} frames can be decoded; the file is damaged, make it again")
    chosen.setdefault(count - 1, last)
    if len({frame.shape for frame in chosen.values()}) > 1:
        raise UserError(f"{path}: the size of its frames changes, expected one size; make it again")
    indices = tuple(sorted(chosen))
    return SampledVideo(np.stack([chosen[index] for index in indices]), indices, np.stack(small), _rate(times),
                        _rate(times[start : start + MOTION_FRAMES]), count, announced)  # fmt: skip


def _evenly(count: int, number: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(number, count)).round().astype(int)).tolist()


def _small(frame: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, SMALL_SIDE / max(grey.shape))
    size = (max(16, round(grey.shape[1] * scale)), max(16, round(grey.shape[0] * scale)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def _times(path: Path, timeout_s: float) -> list[float]:
    """List when each frame is shown, in seconds, without decoding any."""
    told, packets = describe_video(path, timeout_s, "-map", "0:V:0", "-c", "copy", "-f", "framecrc", "pipe:1")
    base = re.search(r"^#tb 0: (\d+)/(\d+)", packets, re.MULTILINE)
    found = [(int(shown), int(decoded)) for decoded, shown, flags in PACKET.findall(packets) if not int(flags or "0", 16) & HIDDEN]
    if not base or not found:
        lines = [line for line in told.strip().splitlines() if not line.startswith(("frame=", "Conversion"))] or ["damaged"]
        reason = "no video in it" if "matches no streams" in told else re.sub(r"^\[[^]]*\] *", "", lines[-1])
        raise UserError(f"{path}: not a video that can be read ({reason[:150]}); make it again")
    if CUT_SHORT.search(told):
        raise UserError(f"{path}: ends before its last frame; the file was cut short, make or copy it again")
    return sorted((decoded if shown == UNKNOWN else shown) * int(base[1]) / int(base[2]) for shown, decoded in found)


def _rate(times: Sequence[float]) -> float:
    """Frames per second of frames shown at `times`, to four digits, as containers round times; 25 where it cannot be said."""
    return float(f"{(len(times) - 1) / (times[-1] - times[0]):.4g}") if times[-1] > times[0] else 25.0
