"""Measure whole runs, and put their scores into proportion."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from concat_id.errors import UserError, counted, one_line
from concat_id.evaluation.calibration import Calibration, trained_on
from concat_id.evaluation.face_vectors import face_vectors, images_in
from concat_id.evaluation.identity import is_rank1
from concat_id.evaluation.layouts import GeneratedVideo, find_samples
from concat_id.evaluation.measuring import Instruments, measure_or_recall, result_file


@dataclass
class Run:
    """The videos of one folder: what is to be measured, the results of `measuring.measure` without thumbnails, and what went wrong."""

    name: str
    folder: Path
    samples: list[GeneratedVideo] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The run's name, and which system made its videos where that is known."""
        systems = sorted({sample.system for sample in self.samples} - {""})
        return f"{self.name} ({', '.join(systems)})" if systems else self.name


def find_runs(paths: Sequence[Path], benchmark: Path | None) -> list[Run]:
    """Find the videos of each folder; runs are called like their folders, with as many parents as tell them apart. Raises `UserError`."""
    places = [Path(os.path.realpath(path)) for path in paths]
    if len(set(places)) < len(places):
        raise UserError("--videos: found the same folder twice, expected different runs; leave one out")
    tails = {place: [str(Path(*place.parts[-depth:])) for depth in range(1, len(place.parts) + 1)] for place in places}
    shared = Counter(tail for names in tails.values() for tail in names)
    runs = []
    for path, place in zip(paths, places, strict=True):
        samples, problems, notes = find_samples(path, benchmark)
        name = next(tail for tail in tails[place] if shared[tail] == 1)
        runs.append(Run(name, path, samples, [], problems, notes))
    return runs


def require_images(calibration: Path | None, training: Path | None) -> None:
    """Raise `UserError` for a folder without images, before hours of work rather than behind them."""
    for option, folder in {"--calibration": calibration, "--training_images": training}.items():
        if folder is not None:
            images_in(folder, option)


def measure_runs(runs: Sequence[Run], instruments: Instruments, output: Path, overwrite: bool) -> int:
    """Measure every sample under one progress bar; a bad one is noted and left out. Returns how many results were there already."""
    recalled = 0
    with tqdm(total=sum(len(run.samples) for run in runs), unit="video", dynamic_ncols=True) as bar:
        for run in runs:
            failed, noted = defaultdict(list), defaultdict(list)
            for sample in run.samples:
                bar.set_description(one_line(run.name))
                try:
                    file = result_file(sample, run.name, output)
                    result, was_there = measure_or_recall(sample, file, instruments, overwrite)
                    run.results.append(result | {"file": str(file)})
                    recalled += was_there
                    for failure in result["failures"]:
                        failed[failure].append(sample.video)
                    for note in result["notes"]:
                        noted[note].append(sample.video)
                except UserError as error:
                    run.problems.append(str(error) if str(sample.video) in str(error) else f"{sample.video}: {error}")
                bar.update()
            different: dict[str, dict[str, Any]] = {}  # by video, references and prompt
            for result in run.results:
                different.setdefault(result["key"], result)
            if again := len(run.results) - len(different):
                run.notes.append(f"{run.folder}: {counted(video=again)} left out that answer the request of another one with the same file")
                run.results = list(different.values())
            run.problems += [f"{failure} ({_first(videos)})" for failure, videos in failed.items()]
            run.notes += [f"{_first(videos)}: {note}" for note, videos in noted.items()]
    return recalled


def _first(videos: Sequence[Path]) -> str:
    return f"{videos[0]}{f' and {len(videos) - 1} more' if videos[1:] else ''}"


def drop_trained_on(runs: Sequence[Run], folder: Path, instruments: Instruments, output: Path) -> dict[str, Any]:
    """Take out the videos of people in a folder of training images; returns how many of these show a face, and whom they show."""
    training = face_vectors(images_in(folder, "--training_images"), "training images", output, instruments)
    dropped = trained_on({path: vector for run in runs for result in run.results for path, vector in references_of(result)}, training)
    for run in runs:
        kept = [result for result in run.results if not any(path in dropped for path, _ in references_of(result))]
        left_out = len(run.results) - len(kept)
        if left_out:
            run.notes.append(f"{run.folder}: {left_out} videos of people in the training images are left out")
        run.results = kept
    return {"images": len(training), "dropped": {str(path): match for path, match in dropped.items()}}


def references_of(result: dict[str, Any]) -> list[tuple[Path, np.ndarray]]:
    """List a result's references with their vectors."""
    return [(Path(item["image"]), np.array(item["vector"], np.float32)) for item in result["references"]]


def different_references(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Return the vectors (D,) of all references by their files' digests."""
    references = [item for run in runs for result in run.results for item in result["references"]]
    return {item["digest"]: np.array(item["vector"], np.float32) for item in references}


def identify(runs: Sequence[Run]) -> None:
    """Find whose reference of all each person resembles most, if there are several to choose among."""
    candidates = different_references(runs)
    for result in (result for run in runs for result in run.results if len(candidates) > 1):
        own = zip(result["vectors"], result["references"], strict=True)
        result["scores"]["rank1_identification"] = float(np.mean([is_rank1(vector, item["digest"], candidates) for vector, item in own]))


def calibrate(runs: Sequence[Run], folder: Path | None, instruments: Instruments, output: Path) -> Calibration:
    """Find impostor and genuine similarity, from photos or else the former from the references, and rescale every result by them."""
    if folder is None:
        calibration = Calibration.from_references(list(different_references(runs).values()))
    else:
        calibration = Calibration.from_folder(folder, face_vectors(images_in(folder, "--calibration"), "calibration", output, instruments))
    for result in (result for run in runs for result in run.results):
        ranges = [calibration.of(path, vector) for path, vector in references_of(result)]
        rescaled = [limits.rescale(value) for limits, value in zip(ranges, result["per_reference"], strict=True)]
        result["ranges"] = [limits._asdict() for limits in ranges]
        result["scores"]["similarity_rescaled"] = None if None in rescaled else float(np.mean(rescaled))
    if calibration.whole.genuine is None:
        instruments.not_computed["similarity_rescaled"] = "give --calibration, a folder with photos of people, a folder each"
    return calibration
