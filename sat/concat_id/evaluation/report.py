"""What a measurement leaves behind: report.json, report.csv, report.html, and a table on the screen."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from concat_id.errors import one_line
from concat_id.evaluation.calibration import TOO_CLOSE, Calibration
from concat_id.evaluation.measuring import Instruments
from concat_id.evaluation.metrics import METRICS, label, shown
from concat_id.evaluation.page import render_page
from concat_id.evaluation.runs import Run, attribute_rates, compare, summarise
from concat_id.files import write_text
from concat_id.json_files import write_json
from concat_id.versions import versions

PACKAGES = ("numpy", "onnxruntime", "insightface", "opencv-python-headless", "torch", "transformers")
FORMULA = {*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20"}  # first characters; the last four are wide ones
INTERNAL = {"key", "file", "vectors"}  # parts of a result that report.json leaves out


@dataclass
class Report:
    """Everything that the files tell."""

    runs: Sequence[Run]
    instruments: Instruments
    calibration: Calibration
    hygiene: dict[str, Any] | None = None
    summaries: list[dict[str, Any]] = field(init=False)
    comparisons: list[tuple[str, str, dict[str, Any]]] = field(init=False)

    def __post_init__(self):
        self.summaries = [summarise(run) for run in self.runs]
        self.comparisons = [(self.runs[0].name, run.name, compare(self.runs[0], run)) for run in self.runs[1:]]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that some run has."""
        return [name for name in METRICS if any(name in summary for summary in self.summaries)]

    @property
    def caution(self) -> str:
        """Say it when the recogniser cannot tell these people apart; '' if it can."""
        floor, threshold = self.calibration.whole.floor, self.instruments.threshold
        if floor is None or floor < threshold:
            return ""
        name = self.instruments.recognizer.name
        return (f"Different people resemble one another by {floor:.3f} here, more than the {threshold:g} that should mean one person: "
                f"{name} hardly tells them apart. Read similarity against this floor; rates of several people mean little.")  # fmt: skip

    def label(self, name: str) -> str:
        """Return what a metric is called, with the names of the weights."""
        clip = self.instruments.clip.name if self.instruments.clip else "CLIP"
        return one_line(label(name, self.instruments.recognizer.name, clip))

    def not_computed(self) -> list[tuple[str, str]]:
        """Return the labels of metrics that no run has, and what they need."""
        missing = {name: reason for name, reason in self.instruments.not_computed.items() if name not in self.metrics}
        reasons = dict.fromkeys(missing.values())
        return [(", ".join(self.label(name) for name in missing if missing[name] == reason), reason) for reason in reasons]

    def measured_with(self) -> dict[str, str]:
        """Describe weights and settings in words."""
        tools, limits = self.instruments, self.calibration.whole
        settings = {
            "faces compared by": f"{tools.recognizer.name} ({tools.recognizer.file.parent.name}/{tools.recognizer.file.name})",
            "faces found by": tools.detector.name,
            "one person's faces": f"cosine from {tools.threshold:g}",
            "frames": f"{tools.num_frames} of each video, evenly spaced from first to last",
            "other people score (floor)": shown("similarity", limits.floor),
            "other photos of a person score (ceiling)": shown("similarity", limits.ceiling),
            "intervals": "95 %, bootstrap over videos (a single video: over its frames)",
        }
        if tools.clip is not None:
            settings["pictures and prompts compared by"] = tools.clip.name
        if self.hygiene is not None:
            settings["training pictures"] = (
                f"{self.hygiene['pictures']} with a face; {len(self.hygiene['dropped'])} references closer than {TOO_CLOSE} left out"
            )
        return settings


def write_report(report: Report, output: Path) -> list[Path]:
    """Write the three files; returns their paths."""
    files = [output / f"report.{suffix}" for suffix in ("json", "csv", "html")]
    write_json(files[0], _as_json(report))
    write_text(files[1], _as_csv(report))
    write_text(files[2], render_page(report))
    return files


def print_summary(report: Report) -> None:
    """Print every metric of every run, honest and as published, then what was not computed."""
    width = max((len(report.label(name)) for name in report.metrics), default=0)
    for run, summary in zip(report.runs, report.summaries, strict=True):
        print(f"\n{one_line(run.name)}: {len(run.results)} videos, {len(run.problems)} that cannot be measured")
        for name, values in summary.items():
            interval = "" if values["low"] is None else f"  [{shown(name, values['low'])}, {shown(name, values['high'])}]"
            print(f"  {report.label(name):{width}}  {shown(name, values['mean']):>7}{interval}  n={values['videos']}")
    for first, second, compared in report.comparisons:
        print(f"\n{one_line(f'{second} - {first}')}, paired")
        for name, values in compared.items():
            interval = "" if values["low"] is None else f"  [{shown(name, values['low'], True)}, {shown(name, values['high'], True)}]"
            print(f"  {report.label(name):{width}}  {shown(name, values['difference'], True):>7}{interval}  n={values['pairs']}")
        if not compared:
            print("  no request (prompt and references) in common")
    limits = report.calibration.whole
    face = one_line(report.instruments.recognizer.name)
    print(f"\nOther people score {shown('similarity', limits.floor)} by {face}, other photos of the same person "
          f"{shown('similarity', limits.ceiling)}.")  # fmt: skip
    if report.caution:
        print(one_line(report.caution))
    for names, reason in report.not_computed():
        print(one_line(f"not computed: {names}: {reason}"))


def _as_json(report: Report) -> dict[str, Any]:
    limits = report.calibration.whole
    return {
        "recognizer": report.instruments.recognizer.name,
        "settings": {**report.instruments.identity, "clip_name": report.instruments.clip and report.instruments.clip.name},
        "calibration": {"floor": limits.floor, "ceiling": limits.ceiling},
        "hygiene": report.hygiene,
        "metrics": {
            name: {"label": report.label(name), "better": METRICS[name].better, "meaning": METRICS[name].meaning}
            for name in report.metrics
        },
        "not_computed": dict(report.not_computed()),
        "runs": [
            {"name": run.name, "folder": str(run.folder), "summary": summary, "attributes": attribute_rates(run),
             "problems": run.problems, "notes": run.notes,
             "videos": [{name: value for name, value in result.items() if name not in INTERNAL} for result in run.results]}
            for run, summary in zip(report.runs, report.summaries, strict=True)
        ],
        "comparisons": [{"first": first, "second": second, "second_minus_first": values} for first, second, values in report.comparisons],
        "versions": versions(PACKAGES),
    }  # fmt: skip


def _as_csv(report: Report) -> str:
    """Write one row a video; those that cannot be measured have a problem and no scores."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["run", "name", "video", "prompt", "recognizer", *report.metrics, "similarity_low", "similarity_high", "problem"])
    for run in report.runs:
        for result in run.results:
            scores = ["" if (value := result["scores"].get(name)) is None else f"{value:.6g}" for name in report.metrics]
            bounds = [f"{value:.6g}" for value in result["interval"] or ()] or ["", ""]
            head = [run.name, result["name"], result["video"], result["prompt"], report.instruments.recognizer.name]
            writer.writerow([*map(as_cell, head), *scores, *bounds, ""])
        for problem in run.problems:
            writer.writerow([as_cell(run.name), "", "", "", "", *[""] * len(report.metrics), "", "", as_cell(problem)])
    return stream.getvalue()


def as_cell(text: str) -> str:
    """Put an apostrophe before a text that spreadsheets would run as a formula."""
    return f"'{text}" if text.lstrip(" ")[:1] in FORMULA else text
