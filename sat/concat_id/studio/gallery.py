"""Finished results of the output folders, those of the launchers too."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concat_id.errors import UserError
from concat_id.files.json_files import recall_json
from concat_id.files.paths import visible_files, written_whole
from concat_id.studio.choices import SEEDS
from concat_id.video.writing import ffmpeg, video_input

MOST = 60  # results shown


@dataclass(frozen=True)
class Result:
    """A finished folder, with what its info.json says; the video is its best take."""

    folder: Path
    info: dict[str, Any]

    @property
    def prompt(self) -> str:
        """What was asked for."""
        return str(self.info["prompt"])

    @property
    def name(self) -> str:
        """Its folder within the output folder, which models have one each of."""
        return "/".join(self.folder.parts[-2:])

    @property
    def take(self) -> int:
        """The number of the take to show, from 0."""
        return next((index for index, take in enumerate(self.info["samples"]) if take.get("video") == self.info.get("best")), 0)

    @property
    def seed(self) -> int:
        """The seed of the take to show."""
        return int(self.info["samples"][self.take]["seed"])

    @property
    def next_seed(self) -> int:
        """The seed after those of its takes."""
        return (max(int(sample["seed"]) for sample in self.info["samples"]) + 1) % SEEDS

    @property
    def sizes(self) -> list[float]:
        """Latent frames, steps, the strength of the prompt and those of its people."""
        sampler, people = self.info["settings"]["model"]["sampler"], len(self.crops)
        strengths = sampler["ref_guidance_scale"]
        strengths = strengths if isinstance(strengths, list) else [strengths] * people
        return [self.info["settings"]["latent_frames"], sampler["num_inference_steps"], sampler["guidance_scale"], *strengths]

    @property
    def poster(self) -> str | None:
        """An image that stands for it."""
        video = self.file("video")
        return poster(video) if video else served(self.file("portrait"))

    def file(self, kind: str) -> Path | None:
        """The take's "video", "portrait" or "sheet", all "takes", or None where there is none."""
        suffix = f"_{self.take + 1}" if self.take and kind != "takes" else ""
        path = self.folder / f"{kind}{suffix}.{'mp4' if kind == 'video' else 'png'}"
        return path if path.name in self.info["files"] and path.is_file() else None

    @property
    def references(self) -> list[Path]:
        """The prepared photos."""
        return [self.folder / name for name in self.info["files"] if name.startswith("reference_") and not name.endswith("_crop.png")]

    @property
    def crops(self) -> list[list[Path]]:
        """What was cut out of every person's photos."""
        files = [self.folder / name for name in self.info["files"] if name.endswith("_crop.png")]
        people: dict[int, list[Path]] = {}
        for number, (file, reference) in enumerate(zip(files, self.info["references"], strict=False), 1):
            people.setdefault(reference.get("person", number), []).append(file)
        return list(people.values())

    def table(self) -> list[tuple[str, str]]:
        """Seed, scores and settings as pairs of a name and a value."""
        settings, take = self.info["settings"], self.info["samples"][self.take]
        rows = [("prompt", self.prompt), ("seed", str(self.seed))]
        rows += [(name, f"{score:.3f}") for name, score in take.get("scores", {}).items() if score is not None]
        rows += [("size", "x".join(map(str, settings["size"]))), ("steps", str(settings["model"]["sampler"]["num_inference_steps"]))]
        return [*rows, ("sampling", f"{take['sampling_s']} s"), ("folder", str(self.folder))]


def result_folders(folders: Sequence[Path]) -> list[Path]:
    """The finished ones within output folders, the newest first."""
    infos = [path for folder in dict.fromkeys(folders) for path in visible_files(folder, "*/info.json")]
    return [path.parent for path in sorted(infos, key=lambda path: -path.stat().st_mtime)]


def read_result(folder: Path) -> Result | None:
    """What a finished folder holds; None if it is no such folder."""
    info = recall_json(folder / "info.json") or {}
    return Result(folder, info) if {"prompt", "references", "samples", "settings", "files"} <= info.keys() and info["samples"] else None


def poster(video: Path) -> str | None:
    """The first frame of a video, as a file named by what it is of: the page removes its files after a day. None for no video."""
    state = video.stat()
    target = Path(os.environ["GRADIO_TEMP_DIR"]) / f"{state.st_dev}-{state.st_ino}-{state.st_mtime_ns}" / "poster.jpg"
    try:
        if not target.exists():
            with written_whole(target) as temporary:
                command = [ffmpeg(), "-y", *video_input(video), "-frames:v", "1", str(temporary)]
                subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True)
    except (UserError, subprocess.CalledProcessError):  # an empty file, or one of something else
        return None
    return str(target)


def served(path: Path | None) -> str | None:
    """A copy of a file in the page's own folder, the only one that the server gives files of."""
    if path is None:
        return None
    folder = tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])
    return str(shutil.copy(path, Path(folder) / path.name))
