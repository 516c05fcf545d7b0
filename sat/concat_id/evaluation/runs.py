"""Measure whole runs, sum them up and compare them."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from concat_id.errors import UserError, one_line
from concat_id.evaluation.calibration import Calibration, trained_on
from concat_id.evaluation.identity import identified
from concat_id.evaluation.layouts import Sample, find_samples
from concat_id.evaluation.measuring import Instruments, measure_or_recall, result_file
from concat_id.evaluation.metrics import METRICS
from concat_id.evaluation.resampling import mean_interval, paired_interval
from concat_id.evaluation.vectors import FaceVectors, pictures_in


@dataclass
class Run:
    """The videos of one folder: what is to be measured, what was, and what went wrong."""

    name: str
    folder: Path
    samples: list[Sample] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_runs(paths: Sequence[Path], benchmark: Path | None) -> list[Run]:
    """Find the videos of each folder; runs are called like their folders. Raises `UserError`."""
    places = [Path(os.path.realpath(path)) for path in paths]
    names = [place.name for place in places]
    runs = []
    for path, place, name in zip(paths, places, names, strict=True):
        samples, problems, notes = find_samples(path, benchmark)
        called = name if Counter(names)[name] == 1 else f"{place.parent.name}/{name}"
        runs.append(Run(called, path, samples, [], problems, notes))
    if len({run.name for run in runs}) < len(runs):
        raise UserError("--videos: found the same folder twice, expected different runs; leave one out")
    return runs


def require_pictures(calibration: Path | None, training: Path | None) -> None:
    """Raise `UserError` for a folder without pictures, before hours of work rather than behind them."""
    for option, folder in {"--calibration": calibration, "--training-pictures": training}.items():
        if folder is not None:
            pictures_in(folder, option)


def measure_runs(runs: Sequence[Run], instruments: Instruments, output: Path, overwrite: bool) -> int:
    """Measure every sample under one progress bar; a bad one is noted and left out. Returns how many results were there already."""
    recalled = 0
    with tqdm(total=sum(len(run.samples) for run in runs), unit="video", dynamic_ncols=True) as bar:
        for run in runs:
            for sample in run.samples:
                bar.set_description(one_line(run.name))
                try:
                    file = result_file(sample, run.name, output)
                    result, was_there = measure_or_recall(sample, file, instruments, overwrite)
                    run.results.append(result | {"file": str(file)})
                    recalled += was_there
                    run.notes += [f"{sample.video}: {note}" for note in result["notes"]]
                except UserError as error:
                    run.problems.append(str(error) if str(sample.video) in str(error) else f"{sample.video}: {error}")
                bar.update()
    return recalled


def drop_trained_on(runs: Sequence[Run], folder: Path, instruments: Instruments, output: Path) -> dict[str, Any]:
    """Take out the videos of people in a folder of training pictures; returns whom, for the report."""
    vectors = face_vectors(output, instruments)
    training = vectors.compute(pictures_in(folder, "--training-pictures"), "training pictures")
    dropped = trained_on({path: vector for run in runs for result in run.results for path, vector in references_of(result)}, training)
    for run in runs:
        kept = [result for result in run.results if not any(path in dropped for path, _ in references_of(result))]
        left_out = len(run.results) - len(kept)
        if left_out:
            run.notes.append(f"{run.folder}: {left_out} videos of people in the training pictures are left out")
        run.results = kept
    return {"pictures": len(training), "dropped": {str(path): match for path, match in dropped.items()}}


def face_vectors(output: Path, instruments: Instruments) -> FaceVectors:
    """Open the vectors kept in the output folder."""
    identity = json.dumps({name: instruments.identity[name] for name in ("version", "detector", "recognizer")}, sort_keys=True)
    return FaceVectors(output / "videos" / "face_vectors.npz", identity, instruments.detector, instruments.recognizer)


def references_of(result: dict[str, Any]) -> list[tuple[Path, np.ndarray]]:
    """List a result's references with their vectors."""
    return [(Path(item["image"]), np.array(item["vector"], np.float32)) for item in result["references"]]


def different_references(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """The vectors of all references by their files' digests."""
    results = [result for run in runs for result in run.results]
    return {digest: vector for result in results
            for digest, (_, vector) in zip(result["digests"]["references"], references_of(result), strict=True)}  # fmt: skip


def identify(runs: Sequence[Run]) -> None:
    """Find whose reference of all each person resembles most, if there are several to choose among."""
    candidates = different_references(runs)
    for result in (result for run in runs for result in run.results if len(candidates) > 1):
        own = zip(result["vectors"], result["digests"]["references"], strict=True)
        result["scores"]["identification_rate"] = float(np.mean([identified(vector, digest, candidates) for vector, digest in own]))


def calibrate(runs: Sequence[Run], folder: Path | None, instruments: Instruments, output: Path) -> Calibration:
    """Find floor and ceiling, from a folder of photos or else the floor from the references, and rescale every result by them."""
    if folder is None:
        calibration = Calibration.from_references(list(different_references(runs).values()))
    else:
        calibration = Calibration.from_folder(folder, face_vectors(output, instruments))
    for result in (result for run in runs for result in run.results):
        ranges = [calibration.of(path, vector) for path, vector in references_of(result)]
        rescaled = [limits.rescale(value) for limits, value in zip(ranges, result["per_reference"], strict=True)]
        result["ranges"] = [limits._asdict() for limits in ranges]
        result["scores"]["similarity_rescaled"] = None if None in rescaled else float(np.mean(rescaled))
    if calibration.whole.ceiling is None:
        instruments.not_computed["similarity_rescaled"] = "give --calibration, a folder with photos of people, a folder each"
    return calibration


def summarise(run: Run) -> dict[str, dict[str, Any]]:
    """Return mean, 95 % interval over videos, and number of videos of every metric that was computed."""
    summary = {}
    for name in METRICS:
        values = [result["scores"][name] for result in run.results if result["scores"].get(name) is not None]
        if values:
            low, high = mean_interval(values) or (None, None)
            summary[name] = {"mean": float(np.mean(values)), "low": low, "high": high, "videos": len(values)}
    return summary


def attribute_rates(run: Run) -> dict[str, dict[str, Any]]:
    """Return how often each attribute of the prompts was obeyed, of the videos in which it could be judged."""
    judged: dict[str, list[bool]] = {}
    for result in run.results:
        for name, value in result.get("attributes", {}).items():
            judged.setdefault(name, []).extend([] if value is None else [bool(value)])
    return {name: {"rate": float(np.mean(values)) if values else None, "videos": len(values)} for name, values in sorted(judged.items())}


def compare(first: Run, second: Run) -> dict[str, dict[str, Any]]:
    """Compare two runs over the requests that both answered: the same prompt and references, in the same order of repetition."""
    ours, theirs = _by_request(first), _by_request(second)
    common = sorted(ours.keys() & theirs.keys())
    compared = {}
    for name in METRICS:
        pairs = [(ours[key]["scores"].get(name), theirs[key]["scores"].get(name)) for key in common]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            compared[name] = paired_interval(*zip(*pairs, strict=True))
    return compared


def _by_request(run: Run) -> dict[tuple[str, ...], dict[str, Any]]:
    seen: Counter[tuple[str, ...]] = Counter()
    found = {}
    for result in run.results:
        request = (result["prompt"], *result["digests"]["references"])
        found[*request, str(seen[request])] = result
        seen[request] += 1
    return found
