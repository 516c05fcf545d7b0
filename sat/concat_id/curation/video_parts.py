"""Frames of long videos through ffmpeg, which is killed when it hangs, and clips cut out of them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from concat_id.data.clips import ClipReader, UnreadableClipError, Window
from concat_id.data.decoding import resize_and_crop
from concat_id.errors import UserError
from concat_id.video.writing import FITTING, QUALITY, decode_frames, run_encoder, video_input

NEAR = 0.5  # seconds from the start of a video, to which ffmpeg does not jump: of AVI with B-frames and of FLV it loses what comes first
BARE = "-map_metadata", "-1", "-map_chapters", "-1"  # clips are passed on: without place, title and comments of the source
EVEN = "crop=trunc(iw/2)*2:trunc(ih/2)*2"  # as yuv420p needs it

ALIKE = 4  # of 255, to which two decoders agree on a frame: 10 bits differ by 1.6, a mirrored frame by more than 20


class NoFrameError(UserError):
    """A part of a video without any frame that can be decoded."""


def read_frames(path: Path, filters: str, timeout_s: float, start: float = 0.0, seconds: float | None = None) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3), uint8 RGB, of a part of a video, or all of it without `seconds`, after ffmpeg's `filters`.

    Raises `UserError` when ffmpeg is not done after `timeout_s`, `NoFrameError` when it yields nothing.
    """
    before, part = _part(start, seconds) if seconds else ([], "null")
    count = 0
    for frame in decode_frames(path, timeout_s, before, f"{part},{filters}"):
        count += 1
        yield frame
    if not count:
        raise NoFrameError(f"{path}: no frame can be decoded at {start:.1f} s; the file is damaged, make it again")


def _part(start: float, seconds: float) -> tuple[list[str], str]:
    """Return ffmpeg's options before a video, and its filter, for a part; -t counts from its first frame, which may be shown later."""
    jump = ["-ss", f"{start:.6f}"] if start > NEAR else []
    skipped = 0.0 if jump else start
    return jump, f"trim=start={skipped:.6f}:end={skipped + seconds:.6f},setpts=PTS-STARTPTS"


def visible_part(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Cut the centred part that training sees of a frame (H, W, 3) for videos of `size` (height, width), at full resolution."""
    scale = min(frame.shape[0] / size[0], frame.shape[1] / size[1])
    height, width = round(size[0] * scale), round(size[1] * scale)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return Image.fromarray(frame[top : top + height, left : left + width])


def cut_clip(path: Path, target: Path, start: float, seconds: float, timeout_s: float) -> None:
    """Write a part of a video as H.264 of 8 bits without sound, at its own size, if that is not beyond 4K, and rate. Raises `UserError`."""
    before, part = _part(start, seconds)
    options = [*before, *video_input(path), "-map", "0:V:0", "-an", *BARE, "-vf", f"{part},{FITTING},{EVEN}"]
    options += ["-c:v", "libx264", "-pix_fmt", "yuv420p", *QUALITY]
    try:
        run_encoder(target, options, f"free some space or mend {path.name}", stdin=subprocess.DEVNULL, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path}: not cut within {timeout_s:g} s; raise --timeout, or leave the video out") from error


def is_seen_alike(path: Path, reader: ClipReader, size: tuple[int, int], fps: float, timeout_s: float) -> bool:
    """Whether training sees of a video what `read_frames` does, by its middle frame: not if it is mirrored, or has a better track."""
    try:
        own = reader.read(path, Window(1.0, 1, 0, size))
        # By time from its first frame, as `own`: ffmpeg counts from the sound's start where that is earlier.
        middle = max(own.times[0] - 0.5 / fps, 0.0)
        other = next(read_frames(path, f"setpts=PTS-STARTPTS,trim=start={middle:.6f}", timeout_s))
    except (UnreadableClipError, NoFrameError):
        return False
    return np.abs(own.pixels[0].numpy() - resize_and_crop(other, size).astype(float)).mean() < ALIKE


def problem_of(clip: Path, reader: ClipReader, window: Window) -> str | None:
    """Say why training cannot fill a window with a clip that has been cut, as of a damaged video; None if it can."""
    try:
        facts = reader.measure(clip, window)
    except UnreadableClipError as error:
        return f"what is cut out of it cannot be read ({error.reason})"
    held = f"{facts['seconds']:.1f} s of it can be decoded, so that the last frame would be held {facts['held']} times"
    return held if facts["held"] else None
