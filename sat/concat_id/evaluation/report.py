"""What a measurement leaves behind: report.json, report.csv, report.html, and a table on the screen."""

import csv
import io
from pathlib import Path
from typing import Any

from concat_id.errors import counted, one_line
from concat_id.evaluation.metrics import CSV_HEAD, CSV_TAIL, METRICS
from concat_id.evaluation.page import render_page
from concat_id.evaluation.summary import Summary, amount
from concat_id.files.json_files import write_json
from concat_id.files.paths import write_text
from concat_id.versions import versions

PACKAGES = ("numpy", "onnxruntime", "insightface", "opencv-python-headless", "torch", "transformers")
FORMULA = {*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20"}  # first characters; the last four are wide ones
INTERNAL = {"key", "file", "vectors"}  # parts of a result that report.json leaves out, as by faces' vectors anybody can recognise people


def write_report(summary: Summary, output: Path) -> list[Path]:
    """Write the three files; returns their paths."""
    files = [output / f"report.{suffix}" for suffix in ("json", "csv", "html")]
    write_json(files[0], _as_json(summary))
    write_text(files[1], _as_csv(summary))
    write_text(files[2], render_page(summary))
    return files


def print_summary(summary: Summary) -> None:
    """Print every metric of every run, honest and as published, then what was not computed."""
    for run, means in zip(summary.runs, summary.means, strict=True):
        print(f"\n{one_line(run.title)}: {amount(run.results)}, {counted(problem=len(run.problems))}")
        _print_means(summary, means)
    for first, second, compared in summary.comparisons:
        print(f"\n{one_line(f'{second} - {first}')}, paired")
        _print_means(summary, compared, signed=True)
        if not compared:
            print("  no request (prompt and references) in common")
    limits, shown = summary.calibration.whole, METRICS["similarity"].shown
    print(f"\nImpostor similarity (other people) is {shown(limits.impostor)} by {one_line(summary.instruments.recognizer.name)}, "
          f"genuine similarity (other photos of a person) {shown(limits.genuine)}.")  # fmt: skip
    if summary.caution:
        print(one_line(summary.caution))
    for names, reason in summary.not_computed().items():
        print(one_line(f"not computed: {names}: {reason}"))


def _print_means(summary: Summary, means: dict[str, dict[str, Any]], signed: bool = False) -> None:
    width = max((len(metric.label) for metric in summary.metrics.values()), default=0)
    for name, values in means.items():
        metric = summary.metrics[name]
        mean, low, high = (metric.shown(values[part], signed) for part in ("mean", "low", "high"))
        interval = "" if values["low"] is None else f"  [{low}, {high}]"
        print(f"  {metric.label:{width}}  {mean:>7}{interval}  n={values['n']}  {values.get('note', '')}".rstrip())


def _as_json(summary: Summary) -> dict[str, Any]:
    tools = summary.instruments
    return {
        "recognizer": tools.recognizer.name,
        "settings": {**tools.identity, "clip_name": tools.clip and tools.clip.name},
        "calibration": summary.calibration.whole._asdict(),
        "training_overlap": summary.training_overlap,
        "metrics": {name: {"label": metric.label, "better": metric.better, "meaning": metric.meaning}
                    for name, metric in summary.metrics.items()},
        "not_computed": summary.not_computed(),
        "runs": [
            {"name": run.name, "title": run.title, "folder": str(run.folder), "summary": means,
             "problems": run.problems, "notes": run.notes,
             "videos": [{name: value for name, value in result.items() if name not in INTERNAL}
                        | {"references": [{"image": reference["image"]} for reference in result["references"]]} for result in run.results]}
            for run, means in zip(summary.runs, summary.means, strict=True)
        ],
        "comparisons": [{"first": first, "second": second, "second_minus_first": values} for first, second, values in summary.comparisons],
        "versions": versions(PACKAGES),
    }  # fmt: skip


def _as_csv(summary: Summary) -> str:
    """Write one row a video; problems have a row each, without scores."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, [*CSV_HEAD, *summary.metrics, *CSV_TAIL], restval="")
    writer.writeheader()
    for run in summary.runs:
        for result in run.results:
            texts = {"run": run.name, "recognizer": summary.instruments.recognizer.name} | {name: result[name] for name in CSV_HEAD[1:4]}
            scores = {name: result["scores"].get(name) for name in summary.metrics}
            scores |= zip(CSV_TAIL, result["interval"] or (), strict=False)
            numbers = {name: f"{value:.6g}" for name, value in scores.items() if value is not None}
            writer.writerow({name: as_cell(text) for name, text in texts.items()} | numbers)
        for problem in run.problems:
            writer.writerow({"run": as_cell(run.name), "problem": as_cell(problem)})
    return stream.getvalue()


def as_cell(text: str) -> str:
    """Put an apostrophe before a text that spreadsheets would run as a formula."""
    return f"'{text}" if text.lstrip(" ")[:1] in FORMULA else text
