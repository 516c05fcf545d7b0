"""Clips made of photographs."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from concat_id.video.writing import write_video

SIZE = (240, 320)


def other_photographs(portrait: Image.Image) -> list[Image.Image]:
    """Images of the same person that are not the same image."""
    mirrored = portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return [
        mirrored,
        ImageEnhance.Brightness(mirrored).enhance(0.7).rotate(8),
        ImageEnhance.Contrast(mirrored).enhance(1.4),
        mirrored.resize((180, 180)).resize((240, 240)),
    ]


def scene(left: Image.Image | None, right: Image.Image | None = None) -> Image.Image:
    """A frame with people on grey: one in the middle, or two side by side."""
    frame = Image.new("RGB", (SIZE[1], SIZE[0]), (118, 120, 124))
    if right is None and left is not None:
        frame.paste(left.resize((220, 220)), (50, 10))
        return frame
    for image, x in ((left, 6), (right, 166)):
        if image is not None:
            frame.paste(image.resize((148, 148)), (x, 46))
    return frame


def write_clip(path: Path, frames: list[Image.Image], fps: float = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.stack([np.asarray(frame) for frame in frames]), fps)
    return path


def add(folder: Path, name: str, frames: list[Image.Image], portrait: Image.Image | None, prompt: str = "a person smiles") -> None:
    """Write a video, its reference and its prompt."""
    write_clip(folder / f"{name}.mp4", frames)
    if portrait is not None:
        portrait.save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(prompt)


def report_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "report" / "report.json").read_text())
