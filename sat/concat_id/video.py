"""Videos and pictures as files to look at."""

import re
import subprocess
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from concat_id.errors import UserError
from concat_id.files import written_whole

QUALITY = ["-crf", "17", "-preset", "medium"]  # of x264: visually lossless
MARGIN = 8


def to_frames(video: Tensor) -> np.ndarray:
    """Turn one video (3, F, H, W) in [-1, 1] into uint8 frames (F, H, W, 3); values outside are clipped."""
    return video.permute(1, 2, 3, 0).float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8).cpu().numpy()


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 frames (F, H, W, 3) as H.264 that every player reads (yuv420p); H and W even.

    Raises `UserError` where the encoder fails, as it does on a full disk.
    """
    pixels = np.ascontiguousarray(frames, dtype=np.uint8)
    height, width = pixels.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", *QUALITY]
    with written_whole(path) as temporary:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, *target, str(temporary)]
        encoder = subprocess.run(command, input=pixels.data.cast("B"), capture_output=True)
        if encoder.returncode:
            told = encoder.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {encoder.returncode}"]
            reason = re.sub(r"^(\[[^]]*\] *)+", "", told[-1])
            raise UserError(f"{path}: the video could not be written ({reason}); free some space or choose another folder")


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG."""
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG")


def contact_sheet(references: Sequence[Image.Image], frames: np.ndarray, prompt: str, num_frames: int = 6) -> Image.Image:
    """Draw references, then evenly spaced frames (F, H, W, 3), in one row under the prompt; at least 160 pixels high."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int)]
    height, width = frames.shape[1:3]
    scale = max(1, -(-160 // height))
    size = width * scale, height * scale
    tiles = [tile.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
             for tile in [*references, *map(Image.fromarray, chosen)]]  # fmt: skip

    font = ImageFont.load_default(size=max(14, size[1] // 12))
    columns = len(tiles) * (size[0] + MARGIN) + MARGIN + (MARGIN if references else 0)
    lines = textwrap.wrap(prompt, max(20, int(columns / (font.size * 0.55)))) or [""]
    top = MARGIN * 2 + len(lines) * int(font.size * 1.3)
    sheet = Image.new("RGB", (columns, top + size[1] + MARGIN), "white")
    ImageDraw.Draw(sheet).multiline_text((MARGIN, MARGIN), "\n".join(lines), fill="black", font=font)
    for index, tile in enumerate(tiles):
        gap = MARGIN if index >= len(references) > 0 else 0  # sets the references apart
        sheet.paste(tile, (MARGIN + index * (size[0] + MARGIN) + gap, top))
    return sheet


def decode_frames(path: Path, timeout_s: float, before: Sequence[str] = (), after: Sequence[str] = ()) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3), uint8 RGB, from an ffmpeg that is killed after `timeout_s` seconds: decoders can hang.

    `before` and `after` are its options in front of and behind the input. Raises `UserError` when the time is over.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *before, "-i", str(path), "-map", "0:v:0", *after]
    command += ["-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    late = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        timer = threading.Timer(timeout_s, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            while (frame := _read_ppm(process.stdout)) is not None:
                yield frame
        finally:
            timer.cancel()
            process.kill()
    if late.is_set():
        raise UserError(f"{path}: not decoded within {timeout_s:g} s; allow it more time, or leave the video out")


def _read_ppm(stream: BinaryIO) -> np.ndarray | None:
    """Read one picture in ffmpeg's binary PPM, None at the end of the stream."""
    if stream.readline() != b"P6\n":
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()
    pixels = stream.read(width * height * 3)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3) if len(pixels) == width * height * 3 else None
