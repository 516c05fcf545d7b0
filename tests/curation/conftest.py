"""Clips made of real faces from an installed package, which move over a background, and the scripts as a user starts them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from concat_id.video.writing import write_video

FPS = 10
HEIGHT, WIDTH = 192, 288


@pytest.fixture(scope="session")
def portraits(detector, photographs) -> dict[str, Image.Image]:
    """Three people of one photograph, from left to right in it."""
    six = Image.open(photographs["six"]).convert("RGB")
    cut = []
    for face in sorted(detector.detect(six), key=lambda face: face.box[0])[::2]:
        (x, y), side = (face.box[:2] + face.box[2:]) / 2, 0.8 * max(face.box[2:] - face.box[:2])
        cut.append(six.crop((x - side, y - side, x + side, y + side)).resize((144, 144), Image.Resampling.BICUBIC))
    return dict(zip(("left", "middle", "right"), cut, strict=True))


def scene(background: int, *people: tuple[Image.Image, int], frames: int = 12) -> np.ndarray:
    """Frames (F, H, W, 3) in which portraits at horizontal places sway by some pixels."""
    drawn = []
    for number in range(frames):
        frame = Image.new("RGB", (WIDTH, HEIGHT), (background, 90, 255 - background))
        for portrait, place in people:
            frame.paste(portrait, (place + 2 * (number % 4), 24 + 2 * (number % 3)))
        drawn.append(np.asarray(frame))
    return np.stack(drawn)


@pytest.fixture(scope="session")
def videos(tmp_path_factory, portraits) -> Path:
    """Videos: `whole` is one shot, `cuts` has a shot of two people, one too short, and one without a face; `broken` is none."""
    folder = tmp_path_factory.mktemp("videos")
    left, middle, right = portraits.values()
    write_video(folder / "whole.mp4", scene(0, (left, 80)), FPS)
    shots = [scene(250, (middle, 0), (right, 140)), scene(30, (middle, 80), frames=4), scene(160)]
    write_video(folder / "cuts.mp4", np.concatenate(shots), FPS)
    (folder / "broken.mp4").write_bytes(b"this is no video " * 100)
    return folder


@pytest.fixture
def prepare(call, face_folder, recognizer_folder):
    """Start sat/prepare_clips.py for windows of half a second."""
    models = "--detector", face_folder, "--recognizer", recognizer_folder, "--device", "cpu"
    window = "--size", HEIGHT, WIDTH, "--frames", 9, "--skip", 0, "--rate", 5, "--references", 2
    return partial(call, "prepare_clips", *models, *window)


def read(file: Path):
    return json.loads(file.read_text())
