"""--metric: what a user's file is given, where its scores appear, and what is told when it fails."""

import csv
import re

import numpy as np
import pytest
from conftest import ROOT
from evaluation.clips import add, report_of, scene
from in_process import refused

from concat_id.evaluation.user_metrics import UserMetric

METRIC = '''
DESCRIPTIONS = {"redness": "↑ Share of red in the frames."}

def measure(video):
    assert video.frames.shape == (2, 240, 320, 3) and video.frames.dtype == "uint8" and video.fps == 8 and list(video.indices) == [0, 1]
    assert [len(found) for found in video.faces] == [1, 1] and video.faces[0][0].face.box.shape == (4,)
    assert sorted(video.people[0].faces) == [0, 1] and video.people[0].faces[0].vector.shape == (128,)
    assert video.reference_images[0].shape == (260, 260, 3) and video.references[0].path.suffix == ".png"
    return {"redness": video.frames[..., 0].mean() / 255, "words": len(video.prompt.split()), "unknown": None}
'''


@pytest.fixture
def measured(evaluate, tmp_path, portraits):
    """Call the script on two videos with metric files of these texts; returns (exit code, standard error)."""
    for name in ("one", "two"):
        add(tmp_path / "videos", name, [scene(portraits["astronaut"])] * 2, portraits["astronaut"], f"person {name} smiles")

    def measure(*texts: str):
        options = []
        for number, text in enumerate(texts):
            (tmp_path / f"metric{number}.py").write_text(text)
            options += ["--metric", tmp_path / f"metric{number}.py"]
        return evaluate("--videos", tmp_path / "videos", *options)

    return measure


def test_its_scores_stand_beside_the_built_in_ones(measured, evaluate, tmp_path):
    code, out, told = measured(METRIC, "def measure(video): return {'constant': True}")
    report = report_of(tmp_path)
    means = report["runs"][0]["summary"]
    assert code == 0, told
    assert means["words"] == {"mean": 3, "low": None, "high": None, "n": 2} and means["constant"]["mean"] == 1 and "unknown" not in means
    assert report["metrics"]["redness"] == {"label": "redness", "better": "more", "meaning": "Share of red in the frames."}
    with open(tmp_path / "report" / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["words"] for row in rows] == ["3", "3"] and float(rows[0]["redness"]) == pytest.approx(means["redness"]["mean"], rel=1e-4)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Share of red in the frames." in page and "redness" in out and "constant" in out
    assert "2 videos were measured already" in measured(METRIC, "def measure(video): return {'constant': True}").out
    assert "measured already" not in measured(METRIC, "def measure(video): return {'constant': False}").out
    assert report_of(tmp_path)["runs"][0]["summary"]["constant"]["mean"] == 0
    again = "--metric", tmp_path / "metric0.py", "--metric", tmp_path / "report" / ".." / "metric0.py"
    assert evaluate("--videos", tmp_path / "videos", *again).code == 0, "one file twice is one metric"


@pytest.mark.parametrize(("text", "message"), [
    ("def measure(video:", "line 1: found SyntaxError"),
    ("\nraise SystemExit(3)", "line 2: found SystemExit (3)"),
    ("a = 1", "found no function measure"),
    ("measure, DESCRIPTIONS = print, ['a']", "DESCRIPTIONS: found ['a'], expected a dict of texts by column"),
    ("measure, DESCRIPTIONS = print, {'similarity': 'mine'}", "found the column similarity, expected a name that is not built in"),
])  # fmt: skip
def test_a_file_of_no_use_ends_the_command_before_anything_is_measured(measured, tmp_path, text, message):
    code, out, told = measured(text)
    assert code == 2 and told.count("\n") == 1 and f"error: {tmp_path / 'metric0.py'}: {message}" in told
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("result", "message"), [
    ("[][video]", "line 1: found TypeError"),
    ("[1]", "measure returned list, expected a dict"),
    ("{'a': float('nan')}", "a: found nan, expected a finite number below 1e100 or None"),
    ("{'a': 1e308}", "a: found 1e+308, expected"),
    ("{'a': video}", "a: found array("),
    ("{'=1+1': 1}", "found a column called '=1+1'"),
    ("{'words': 1}", "found the column words, which another --metric has as well"),
])  # fmt: skip
def test_what_is_no_score_is_told(tmp_path, result, message):
    (tmp_path / "metric.py").write_text(f"def measure(video): return {result}")
    told = refused("metric.py: ", UserMetric(tmp_path / "metric.py").scores, np.zeros(2), ["words"])
    assert told.startswith(f"{tmp_path / 'metric.py'}: {message}")


def test_a_measurement_that_fails_is_one_line_and_loses_no_other_score(measured, tmp_path):
    code, out, told = measured(METRIC, "\ndef measure(video): video.frames[:] = 0")
    problem = f"{tmp_path / 'metric1.py'}: line 2: found ValueError (assignment destination is read-only), expected a metric that runs"
    assert code == 1 and told.count("error: ") == 1 and f"error: {problem}" in told and "one.mp4 and 1 more)" in told
    (run,) = report_of(tmp_path)["runs"]
    assert run["summary"]["words"]["n"] == run["summary"]["similarity"]["n"] == 2 and run["problems"][0].startswith(problem)
    assert problem in (tmp_path / "report" / "report.html").read_text()
    assert measured(METRIC, "\ndef measure(video): video.frames[:] = 0")[0] == 1, "told again, not recalled"


def test_the_example_of_the_documentation(measured, tmp_path):
    example = re.search(r"```python\n(DESCRIPTIONS.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)[1]
    assert measured(example)[0] == 0 and 0.3 < report_of(tmp_path)["runs"][0]["summary"]["face size"]["mean"] < 0.9
