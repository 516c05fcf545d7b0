"""Clips that show in their pixels when each frame is: 14 black or white squares, the bits of the time in milliseconds."""

import json
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from in_process import ffmpeg
from PIL import Image

HEIGHT, WIDTH = 96, 128
VARIABLE = "select='not(mod(n*n\\,7)-1)+lt(mod(n\\,60)\\,10)'"  # 60 fps with irregular gaps of up to 0.08 s


def burn(milliseconds: int) -> np.ndarray:
    frame = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for bit in range(14):
        row, column = divmod(bit, 7)
        frame[16 + 32 * row : 40 + 32 * row, 8 + 16 * column : 22 + 16 * column] = 255 * (milliseconds >> bit & 1)
    return frame


def burned_times(video) -> np.ndarray:
    """Read the times in seconds from (F, H, W, 3) uint8."""
    video = np.asarray(video)
    squares = [(22 + 32 * (bit // 7), 12 + 16 * (bit % 7)) for bit in range(14)]
    bits = [video[:, top : top + 12, left : left + 6].mean((1, 2, 3)) > 128 for top, left in squares]
    return sum(bit.astype(int) << number for number, bit in enumerate(bits)) / 1000


def write_clip(path: Path, rate: str = "30", seconds: float = 8.0, filters: str | None = None, options: tuple[str, ...] = ()) -> Path:
    frames = b"".join(burn(round(1000 * number / Fraction(rate))).tobytes() for number in range(round(seconds * Fraction(rate))))
    picked = ["-vf", filters, "-fps_mode", "vfr"] if filters else []
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate, "-i", "-"]
    ffmpeg(*source, *picked, "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast", "-crf", 12, *options, path, data=frames)
    return path


SLOW_DECORD = """
import os, sys, time
sys.path.remove(os.path.dirname(__file__))
del sys.modules["decord"]
import decord
opened = decord.VideoReader
decord.VideoReader = lambda path, *rest, **more: time.sleep(99) if "/hang" in os.path.realpath(path) else opened(path, *rest, **more)
"""


@dataclass
class Folder:
    """Clips, images and lists in one folder."""

    path: Path
    patch: pytest.MonkeyPatch

    def entry(self, clip: str = "good.mp4", image: str = "a.png", **more) -> dict:
        return {"video_path": clip, "caption": "A person talks.", "image_path": image, **more}

    def copies(self, count: int) -> list[str]:
        """Clips of equal content under different names."""
        names = [f"clip{number}.mp4" for number in range(count)]
        for name in names:
            (self.path / name).write_bytes((self.path / "good.mp4").read_bytes())
        return names

    def list(self, *entries: dict, name: str = "list.json") -> Path:
        file = self.path / name
        file.write_text(json.dumps(entries, indent=1))
        return file

    def image(self, name: str, colour="red", size=(64, 48)) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(file)
        return file

    def hanging(self, name: str) -> Path:
        """A clip whose decoding never ends, in processes that are started from now on."""
        (self.path / "slow").mkdir()
        (self.path / "slow" / "decord.py").write_text(SLOW_DECORD)
        self.patch.setenv("PYTHONPATH", str(self.path / "slow"), prepend=os.pathsep)
        (self.path / name).write_bytes((self.path / "good.mp4").read_bytes())
        return self.path / name


@pytest.fixture(scope="session")
def good_clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "good.mp4", "24", 4.0)


@pytest.fixture
def folder(tmp_path, good_clip, monkeypatch) -> Folder:
    made = Folder(tmp_path, monkeypatch)
    (tmp_path / "good.mp4").write_bytes(good_clip.read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"this is no video " * 100)
    for name, colour in {"a": "red", "b": "lime", "c": "blue"}.items():
        made.image(f"{name}.png", colour)
    return made
