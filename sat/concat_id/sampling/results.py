"""What a finished job leaves behind: the video, what the model saw, a sheet to look at, and how it was made."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from concat_id.face.reference import PreparedReference
from concat_id.files.json_files import write_json
from concat_id.files.paths import remove_partial_files
from concat_id.sampling.jobs import INFO
from concat_id.versions import versions
from concat_id.video.writing import contact_sheet, to_frames, write_image, write_video

RESULTS = re.compile(r"(video(_\d+)?\.mp4|(portrait|sheet)(_\d+)?\.png|reference_\d+(_crop)?\.png)")
PACKAGES = ("torch", "SwissArmyTransformer", "diffusers", "transformers", "insightface")


def begin(folder: Path) -> None:
    """Take away the sign that the folder is complete, before anything in it changes, and what a killed run left."""
    (folder / INFO).unlink(missing_ok=True)
    remove_partial_files(folder)


def save_references(folder: Path, references: Sequence[PreparedReference]) -> list[str]:
    """Write each person's prepared image and unmasked crop; returns the file names."""
    names = []
    for number, reference in enumerate(references, 1):
        for name, image in ((f"reference_{number}.png", reference.image), (f"reference_{number}_crop.png", reference.crop)):
            write_image(folder / name, image)
            names.append(name)
    return names


def save_sample(folder: Path, prompt: str, video: Tensor, references: Sequence[Image.Image], fps: float, suffix: str = "") -> list[str]:
    """Write one video (3, F, H, W) as mp4, or as PNG if it is a single frame, and its contact sheet; returns the file names."""
    frames = to_frames(video)
    if len(frames) == 1:
        names = [f"portrait{suffix}.png"]
        write_image(folder / names[0], Image.fromarray(frames[0]))
    else:
        names = [f"video{suffix}.mp4"]
        write_video(folder / names[0], frames, fps)
    names.append(f"sheet{suffix}.png")
    write_image(folder / names[1], contact_sheet(references, frames, prompt))
    return names


def save_info(folder: Path, fingerprint: str, files: list[str], **details: Any) -> None:
    """Remove earlier results that are none of `files`, then write info.json: its presence says that the folder is complete."""
    for path in folder.iterdir():
        if RESULTS.fullmatch(path.name) and path.name not in files:
            path.unlink()
    info = {**details, "versions": versions(PACKAGES), "files": files, "fingerprint": fingerprint}
    write_json(folder / INFO, info)
