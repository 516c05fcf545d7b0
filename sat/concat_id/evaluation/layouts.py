"""Which videos there are to measure, whom they should show and what was asked for: our outputs, benchmarks, plain folders."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concat_id.errors import UserError
from concat_id.files import resolve_path
from concat_id.formats import beside, is_picture, is_video, media_in

INFO = "info.json"
MADE = re.compile(r"(video|portrait)(?:_(\d+))?\.(mp4|png)")
OPENS2V_LISTS = "*_Eval.json"
CONSISID_LISTS = ("video_caption_eval.csv", "video_caption_eval_old.csv")
PEOPLE = {"man", "woman", "boy", "girl", "person", "people", "face", "human"}
COLUMNS = {"index", "Class", "Refined_man", "Refined_woman"}


@dataclass(frozen=True)
class Sample:
    """A video with its references from left to right and its prompt. `name` is the same for the same request in another run."""

    name: str
    video: Path
    references: tuple[Path, ...]
    prompt: str


@dataclass(frozen=True)
class Request:
    """What a benchmark asks for."""

    prompt: str
    references: tuple[Path, ...]


def find_samples(folder: Path, benchmark: Path | None) -> tuple[list[Sample], list[str], list[str]]:
    """Find the videos of a run. Returns them, what is wrong with others, and remarks. Raises `UserError` if the folder holds none."""
    if not folder.is_dir():
        raise UserError(f"--videos: {folder}: no such folder, expected one with videos; check the path")
    if benchmark is not None:
        samples, problems, notes = _benchmark_samples(folder, read_benchmark(benchmark), benchmark)
    else:
        samples, problems, notes = _own_samples(folder)
        if not samples and not problems:
            samples, problems, notes = _plain_samples(folder)
    if not samples and not problems:
        raise UserError(
            f"--videos: {folder}: found no video; expected the output folder of sat/sample_video.py, name.mp4 beside name.png, "
            "or a benchmark's videos with --benchmark FOLDER"
        )
    return samples, problems, notes


def _own_samples(folder: Path) -> tuple[list[Sample], list[str], list[str]]:
    """Read folders that sat/sample_video.py wrote; a video without info.json was not finished."""
    samples, problems = [], []
    for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))]:
        made = sorted(path for path in place.iterdir() if MADE.fullmatch(path.name))
        info_file = place / INFO
        if not info_file.is_file():
            if made and list(place.glob("reference_*.png")):
                problems.append(f"{place}: found no {INFO}, so the video is not finished; make it again")
            continue
        try:
            info = json.loads(info_file.read_text(encoding="utf-8"))
            prompt, images = str(info["prompt"]), [Path(item["image"]) for item in info["references"]]
            listed = [place / name for name in info["files"] if MADE.fullmatch(name)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{info_file}: cannot be read ({type(error).__name__}: {error}); make the video again")
            continue
        # The photo as it was given, or else what was cut out of it, which is always there.
        references = [resolve_path(image) if resolve_path(image).is_file() else place / f"reference_{number}_crop.png"
                      for number, image in enumerate(images, 1)]  # fmt: skip
        for video in sorted({*made, *listed}):
            number = MADE.fullmatch(video.name)[2] or "1"
            stem = place.name if place != folder else folder.name
            samples.append(Sample(f"{stem}/{number}", video, tuple(references), prompt))
    return samples, problems, []


def _plain_samples(folder: Path) -> tuple[list[Sample], list[str], list[str]]:
    """Read `name.mp4` with `name.png`, or `name_1.png` and `name_2.png` from left to right, and the prompt in `name.txt`, if there."""
    samples, notes = [], []
    pictures = media_in(folder, is_picture)
    for video in media_in(folder, is_video):
        numbered = re.compile(re.escape(video.stem) + r"(?:_(\d+))?")
        matches = [(int(found[1] or 0), path) for path in pictures if (found := numbered.fullmatch(path.stem))]
        text = beside(video, ".txt")
        prompt = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""
        if not prompt:
            notes.append(f"{video}: found no prompt in {text.name}; scores of the text are left out")
        samples.append(Sample(video.stem, video, tuple(path for _, path in sorted(matches)), prompt))
    return samples, [], notes


def read_benchmark(folder: Path) -> dict[str, Request]:
    """Read what OpenS2V-Eval or ConsisID-Bench asks for, by the names their videos have. Raises `UserError` for another folder."""
    if not folder.is_dir():
        raise UserError(f"--benchmark: {folder}: no such folder, expected OpenS2V-Eval or ConsisID-Bench; check the path")
    lists = sorted(folder.glob(OPENS2V_LISTS))
    if lists:
        return {name: request for path in lists for name, request in _opens2v_requests(path)}
    tables = [place / name for place in (folder, folder / "eval") for name in CONSISID_LISTS if (place / name).is_file()]
    faces = [place for place in (folder / "eval" / "face_images", folder / "face_images") if place.is_dir()]
    if tables and faces:
        return dict(_consisid_requests(tables[0], faces[0]))
    raise UserError(
        f"--benchmark: {folder}: found neither {OPENS2V_LISTS} (OpenS2V-Eval) nor {CONSISID_LISTS[0]} with eval/face_images "
        "(ConsisID-Bench); name the benchmark's own folder"
    )


def _opens2v_requests(path: Path) -> Iterator[tuple[str, Request]]:
    """`{"singlehuman_1": {"img_paths": [...], "prompt": ..., "class_label": [...]}}`; pictures of things are no references for faces."""
    for name, entry in _read_json(path).items():
        try:
            images, labels = entry["img_paths"], entry.get("class_label") or []
            labels = [str(label).lower() for label in labels] if len(labels) == len(images) else [""] * len(images)
            people = [path.parent / image for image, label in zip(images, labels, strict=True) if _is_person(image, label)]
            yield name, Request(str(entry["prompt"]), tuple(people))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {name}: expected img_paths and prompt ({error}); download the benchmark again") from error


def _is_person(image: str, label: str) -> bool:
    words = {word for part in Path(image).parts[:-1] for word in re.split(r"[^a-z]+", part.lower())}
    return label in PEOPLE or bool(words & {"man", "woman"})


def _consisid_requests(table: Path, faces: Path) -> Iterator[tuple[str, Request]]:
    """Every face with every row of the table; the video is called `<face's file>--<index>`. Source: ConsisID's eval_all_in_once.py."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(rows[0]) >= COLUMNS:
        raise UserError(f"{table}: found columns {', '.join(rows[0]) if rows else 'none'}, expected {', '.join(sorted(COLUMNS))}")
    for face in media_in(faces, is_picture):
        column = "Refined_woman" if "woman" in face.name else "Refined_man"
        for row in rows:
            prompt = row[column].replace("{class_token}", row["Class"])
            yield f"{face.name}--{row['index']}", Request(prompt, (face,))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); download the benchmark again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}, expected an object with one entry a video; download it again")
    return content


def _benchmark_samples(folder: Path, requests: dict[str, Request], benchmark: Path) -> tuple[list[Sample], list[str], list[str]]:
    """Give the videos of a folder what the benchmark asked for: `<name>.mp4`, or a folder `<name>/` with one video in it."""
    samples, problems, others = [], [], 0
    without_suffix = {re.sub(r"\.(png|jpe?g|webp|bmp)--", "--", name): name for name in requests}
    for video in media_in(folder, is_video, deep=True):
        names = [video.stem, video.parent.name]
        name = next((without_suffix.get(name, name) for name in names if without_suffix.get(name, name) in requests), None)
        if name is None:
            problems.append(f"{video}: {benchmark} asks for nothing of this name; rename the video as the benchmark says")
        elif requests[name].references:
            samples.append(Sample(name, video, requests[name].references, requests[name].prompt))
        else:
            others += 1
    notes = [f"{folder}: {others} videos of things rather than people are left out"] if others else []
    asked, found = sum(bool(request.references) for request in requests.values()), len({sample.name for sample in samples})
    if samples and found < asked:
        notes.append(f"{folder}: {found} of the benchmark's {asked} videos of people are there")
    return samples, problems, notes
