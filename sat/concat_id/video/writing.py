"""Videos and images as files to look at."""

import base64
import io
import os
import re
import subprocess
import threading
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from concat_id.errors import UserError, warn
from concat_id.files.formats import container_of
from concat_id.files.paths import written_whole

QUALITY = ["-crf", "17", "-preset", "medium"]  # of x264: visually lossless
MARGIN, SHEET_LINES, SHEET_FRAMES = 8, 8, 6  # pixels; lines of the prompt and frames on a contact sheet, at most
FONTS = "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf"  # by their files
LARGEST_FRAME = 3840 * 2160  # pixels of a frame in memory
LARGEST_DECODED = 16384 * 8192  # pixels that a decoder may be asked for: H.264's own limit
# Makes pixels square and frames no larger than that; leaves others bit for bit.
FITTING = "scale=w='iw*sar*{0}':h='ih*{0}',setsar=1".format(f"min(1,sqrt({LARGEST_FRAME}/(iw*sar*ih)))")
AS_STORED = ["-fps_mode", "passthrough", "-enc_time_base", "1:1000000"]  # each frame once, whenever it is shown
# What ffmpeg says of the video that `0:V:0` is, not of a cover; titles and comments say whatever they like.
STREAM = re.compile(r"^ *Stream #\d.*? Video: (?!.*\(attached pic\))(.*)", re.MULTILINE)
PALE = "expected the usual range; they are used as they are and look pale, convert the video to SDR"
NOTES = {  # of what is used as it is, by words in that line
    "smpte2084": f"HDR (PQ) colours, {PALE}", "arib-std-b67": f"HDR (HLG) colours, {PALE}",
    "(top|bottom) (coded )?first": "interlaced frames, expected progressive ones; convert it with `ffmpeg -i FILE -vf bwdif NEW.mp4`",
}  # fmt: skip


def ffmpeg() -> str:
    """Path of the ffmpeg that comes with imageio-ffmpeg, imported where a video is really read or written."""
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def write_video(path: Path, frames: np.ndarray, fps: float, quality: Sequence[str] = QUALITY) -> None:
    """Write uint8 frames (F, H, W, 3) as H.264 that every player reads (yuv420p); H and W even.

    Raises `UserError` where the encoder fails, as it does on a full disk.
    """
    pixels = np.ascontiguousarray(frames, dtype=np.uint8)
    height, width = pixels.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"]
    # Players take BT.709 for the colours of upright and high videos that do not say that theirs are BT.601, ffmpeg's for RGB.
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-colorspace", "smpte170m", "-movflags", "+faststart", *quality]
    run_encoder(path, [*source, *target], "free some space or choose another folder", input=pixels.data.cast("B"))


def run_encoder(path: Path, options: Sequence[str], remedy: str, **given: Any) -> None:
    """Let ffmpeg write a video, whole or not at all; `given` is for `subprocess.run`. Raises `UserError` where it fails."""
    with written_whole(path) as temporary:
        done = subprocess.run([ffmpeg(), "-y", "-v", "error", *options, str(temporary)], capture_output=True, **given)
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            reason = re.sub(r"^(\[[^]]*\] *)+", "", told[-1])
            raise UserError(f"{path}: the video could not be written ({reason}); {remedy}")


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG."""
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG")


def data_url(image: Image.Image) -> str:
    """Write a JPEG into a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(references: Sequence[Image.Image], frames: np.ndarray, prompt: str) -> Image.Image:
    """Draw references, then evenly spaced frames (F, H, W, 3), in one row under the prompt; at least 160 pixels high."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().astype(int)]
    height, width = frames.shape[1:3]
    scale = max(1, -(-160 // height))
    size = width * scale, height * scale
    tiles = [tile.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
             for tile in [*references, *map(Image.fromarray, chosen)]]  # fmt: skip

    font = _font(prompt, max(14, size[1] // 12))
    columns = len(tiles) * (size[0] + MARGIN) + MARGIN + (MARGIN if references else 0)
    lines = _wrapped(prompt, font, columns - 2 * MARGIN) or [""]
    top = MARGIN * 2 + len(lines) * int(font.size * 1.3)
    sheet = Image.new("RGB", (columns, top + size[1] + MARGIN), "white")
    ImageDraw.Draw(sheet).multiline_text((MARGIN, MARGIN), "\n".join(lines), fill="black", font=font)
    for index, tile in enumerate(tiles):
        gap = MARGIN if index >= len(references) > 0 else 0  # sets the references apart
        sheet.paste(tile, (MARGIN + index * (size[0] + MARGIN) + gap, top))
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break text into at most `SHEET_LINES` lines of `width` pixels, at spaces where there are some."""
    lines, rest = [], " ".join(text.split())
    width -= int(font.getlength(" ..."))
    while rest and len(lines) < SHEET_LINES:
        fits = max(1, bisect(range(1, min(len(rest), width) + 1), width, key=lambda end: font.getlength(rest[:end])))
        space = rest.rfind(" ", fits // 2, fits + 1) if fits < len(rest) else 0
        fits = space if space > 0 else fits
        lines.append(rest[:fits])
        rest = rest[fits:].lstrip()
    return [*lines[:-1], f"{lines[-1]} ..."] if rest else lines


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """PIL's own font has few letters beyond ASCII: for those take the one of this machine's common ones that lacks the fewest."""
    fonts = []
    for name in () if text.isascii() else FONTS:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    letters = set("".join(text[:1000].split()))
    fonts.append(ImageFont.load_default(size=size))
    return min(fonts, key=lambda font: [bytes(font.getmask(letter)) for letter in letters].count(bytes(font.getmask("\U0010ffff"))))


def video_input(path: Path) -> list[str]:
    """Return ffmpeg's options for a video as input: read as what its first bytes say, from this file alone, whatever its name means.

    Raises `UserError` for what is no video.
    """
    limits = ["-threads", "4", "-max_pixels", str(LARGEST_DECODED)]
    return [*limits, "-protocol_whitelist", "file", "-f", container_of(path), "-i", f"file:{os.path.abspath(path)}"]


def describe_video(path: Path, timeout_s: float, *output: str) -> tuple[str, str]:
    """Return what ffmpeg says of a video, with options for an `output` while it reads all of it, and what it writes to it; warn of `NOTES`.

    Raises `UserError` for what is no video, and when the time is over.
    """
    command = [ffmpeg(), "-hide_banner", *video_input(path), *output]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path}: not read within {timeout_s:g} s; the file or its disk hangs") from error
    told, written = (stream.decode(errors="replace") for stream in (done.stderr, done.stdout))
    warn(*(f"{path}: found {note}" for words, note in NOTES.items() if re.search(words, video_line(told))))
    return told, written


def video_line(told: str) -> str:
    """The line about a file's first video, behind `Video: `, in what ffmpeg says of it; empty if there is none."""
    return found[1] if (found := STREAM.search(told)) else ""


def decode_frames(path: Path, timeout_s: float, before: Sequence[str] = (), filters: str | None = None,
                  rate: Sequence[str] = ()) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield frames (H, W, 3), uint8 RGB, from an ffmpeg that is killed after `timeout_s` seconds: decoders can hang.

    Frames of more than `LARGEST_FRAME` pixels are scaled to it while they are decoded. `before` are ffmpeg's options in front of the
    input. Frames of a varying rate come at a constant one, some twice or not at all, unless `rate` is `AS_STORED`. Raises `UserError`
    for what is no video, when the time is over, and when the output ends inside a frame.
    """
    chain = ",".join(filter(None, [filters, FITTING]))
    command = [ffmpeg(), "-v", "error", *before, *video_input(path), "-map", "0:V:0", "-vf", chain]
    command += [*rate, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]
    late = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        timer = threading.Timer(timeout_s, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            while (frame := _read_ppm(process.stdout)) is not None:
                yield frame
        except ValueError as error:
            if not late.is_set():
                raise UserError(f"{path}: decoding ended inside a frame; the file is damaged, make it again") from error
        finally:
            timer.cancel()
            process.kill()
    if late.is_set():
        raise UserError(f"{path}: not decoded within {timeout_s:g} s; allow it more time, or leave the video out")


def _read_ppm(stream: BinaryIO) -> np.ndarray | None:
    """Read one image in ffmpeg's binary PPM with 8 bits, None at the end of the stream. Raises `ValueError` for anything else."""
    if not (magic := stream.readline()):
        return None
    width, height = map(int, stream.readline().split())
    if magic != b"P6\n" or stream.readline() != b"255\n":
        raise ValueError("not a PPM of 8 bits")
    return np.frombuffer(stream.read(width * height * 3), np.uint8).reshape(height, width, 3)
