"""Frames of long videos through ffmpeg, which is killed when it hangs, and clips cut out of them."""

import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import imageio_ffmpeg
import numpy as np
from PIL import Image

from concat_id.errors import UserError
from concat_id.files import written_whole
from concat_id.video import QUALITY

EVEN = "crop=trunc(iw/2)*2:trunc(ih/2)*2"  # as yuv420p needs it


def read_frames(path: Path, filters: str, timeout_s: float, start: float = 0.0, seconds: float | None = None) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3), uint8 RGB, of a part of a video after ffmpeg's `filters`.

    Raises `UserError` when ffmpeg is not done after `timeout_s` or yields nothing.
    """
    part = ["-ss", f"{start:.6f}"] + ([] if seconds is None else ["-t", f"{seconds:.6f}"])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *part, "-i", str(path), "-map", "0:v:0", "-vf", filters]
    command += ["-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    late, count = threading.Event(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        timer = threading.Timer(timeout_s, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            while (frame := _read_ppm(process.stdout)) is not None:
                count += 1
                yield frame
        finally:
            timer.cancel()
            process.kill()
    if late.is_set():
        raise UserError(f"{path}: not decoded within {timeout_s:g} s; raise --timeout, or leave the video out")
    if not count:
        raise UserError(f"{path}: no frame can be decoded at {start:.1f} s; the file is damaged, make it again")


def _read_ppm(stream: BinaryIO) -> np.ndarray | None:
    """Read one picture in ffmpeg's binary PPM; None where the stream ends."""
    if stream.readline() != b"P6\n":
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()
    pixels = stream.read(width * height * 3)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3) if len(pixels) == width * height * 3 else None


def visible_part(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Cut the centred part that training sees of a frame (H, W, 3) for videos of `size` (height, width), at full resolution."""
    scale = min(frame.shape[0] / size[0], frame.shape[1] / size[1])
    height, width = round(size[0] * scale), round(size[1] * scale)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return Image.fromarray(frame[top : top + height, left : left + width])


def cut_clip(path: Path, target: Path, start: float, seconds: float, timeout_s: float) -> None:
    """Write a part of a video as H.264 without sound, at its own size and rate. Raises `UserError`."""
    with written_whole(target) as temporary:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-ss", f"{start:.6f}", "-i", str(path), "-t", f"{seconds:.6f}"]
        command += ["-map", "0:v:0", "-an", "-vf", EVEN, "-c:v", "libx264", "-pix_fmt", "yuv420p", *QUALITY, str(temporary)]
        try:
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{path}: not cut within {timeout_s:g} s; raise --timeout, or leave the video out") from error
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            reason = re.sub(r"^(\[[^]]*\] *)+", "", told[-1])
            raise UserError(f"{target}: could not be cut ({reason}); free some space or mend {path.name}")
