"""Folders, benchmarks, names and results of earlier runs that nobody expects: a report, or one line."""

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from evaluation.clips import report_of, scene
from hypothesis import given
from in_process import refused
from odd_input import FEW, is_told, mutated, odd_paths, result_or_line

from concat_id.evaluation.face_vectors import face_vectors
from concat_id.evaluation.layouts import GeneratedVideo, find_samples, read_benchmark
from concat_id.evaluation.measuring import Instruments, measure_or_recall, read_thumbnails
from concat_id.evaluation.report import as_cell, write_report
from concat_id.evaluation.runs import calibrate, find_runs, measure_runs
from concat_id.evaluation.summary import Summary
from concat_id.files.json_files import write_json

INFO = {"prompt": "a woman", "references": [{"image": "gone.png"}], "files": ["video.mp4"], "seed": 1}
BENCHMARK = {"one": {"img_paths": ["man/1.png"], "prompt": "a man", "class_label": ["Man"]},
             "two": {"img_paths": ["a.png"], "prompt": "a thing", "class_label": None}}  # fmt: skip
HEADER = "index,Class,Refined_man,Refined_woman"


def add(folder: Path, name: str, portrait, prompt="a person smiles") -> None:
    """A video of one frame, which is quick to measure, with its reference and prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / name
    home.mkdir()
    scene(portrait).save(home / "portrait.png")
    portrait.save(home / "reference_1_crop.png")
    write_json(home / "info.json", {"prompt": prompt, "references": [{"image": "gone"}], "files": ["portrait.png"]})


@FEW
@given(info=mutated(INFO))
def test_any_value_anywhere_in_info_json_concerns_its_own_video(tmp_path_factory, info):
    folder = tmp_path_factory.mktemp("run")
    for name, content in (("bad", info), ("good", INFO)):
        (folder / name).mkdir()
        (folder / name / "video.mp4").touch()
        write_json(folder / name / "info.json", content)
    samples, problems, _ = find_samples(folder, None)
    assert [sample.name for sample in samples if sample.name.startswith("good")] == ["good/1"]
    assert all(f"{folder / 'bad' / 'info.json'}: " in problem for problem in problems) and len(problems) <= 1
    assert all(sample.video.parent.parent == folder for sample in samples)


@FEW
@given(content=mutated(BENCHMARK))
def test_any_value_anywhere_in_a_benchmark(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("benchmark")
    write_json(folder / "Open_Eval.json", content)
    found = result_or_line(f"{folder / 'Open_Eval.json'}: ", read_benchmark, folder)
    assert found is None or found.keys() == content.keys()


@pytest.mark.parametrize(("table", "told"), [
    (f'{HEADER}\n1,man,"he\nruns",she\n2,man,"he,she\n3,man,he,she\n'.encode(), "line 4: found no row of a table"),
    (f"{HEADER}\n1,man,he,{'x' * 200_000}\n".encode(), "line 2: found no row of a table (field larger"),
    (f"{HEADER}\n1,man,he,caf\xe9\n".encode("latin-1"), "line 2: cannot be read as UTF-8 text"),
    (f"{HEADER}\n".encode(), "found no rows"),
])  # fmt: skip
def test_broken_tables_are_told_with_their_line(tmp_path, table, told):
    (tmp_path / "face_images").mkdir()
    (tmp_path / "video_caption_eval.csv").write_bytes(table)
    assert refused("csv: ", read_benchmark, tmp_path).startswith(f"{tmp_path / 'video_caption_eval.csv'}: {told}")


def test_odd_names_reach_every_file_and_no_terminal(evaluate, tmp_path, portraits):
    names = {"=1+1": "=cmd|' /C calc'!A0", os.fsdecode(b"caf\xe9"): "-2+3", "\x1b[31mred": "\t=1", "<script>x": "<b>bold</b>"}
    for name, prompt in names.items():
        add(tmp_path / "@\x1b[2Jrun", name, portraits["astronaut"], prompt)
    add(tmp_path / "@\x1b[2Jrun", "long", portraits["astronaut"], "words " * 10_000)
    (tmp_path / "@\x1b[2Jrun" / "\x1b]0;bad").mkdir()
    (tmp_path / "@\x1b[2Jrun" / "\x1b]0;bad" / "info.json").write_text("[" * 10**5)
    code, out, told = evaluate("--videos", tmp_path / "@\x1b[2Jrun")
    assert code == 1 and told.count("error: ") == 1 and "\x1b" not in told.replace("\x1b[A", "") + out
    found = {video["name"]: video["prompt"] for video in report_of(tmp_path)["runs"][0]["videos"]}
    assert found == {f"{name}/1": prompt for name, prompt in names.items()} | {"long/1": "words " * 10_000}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page and "<b>bold" not in page and "&lt;script&gt;x" in page and page.count("words") < 200
    with open(tmp_path / "report" / "report.csv", newline="", errors="surrogateescape") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["'=1+1/1"]["prompt"] == "'=cmd|' /C calc'!A0" and rows["'=1+1/1"]["run"].startswith("'@")
    assert rows["caf\udce9/1"]["prompt"] == "'-2+3" and rows["\x1b[31mred/1"]["prompt"] == "'\t=1"
    assert all(float(row["similarity"]) > 0.85 for name, row in rows.items() if name)


def test_cells_that_spreadsheets_would_run():
    for text in ("=1+1", "+1", "-1", "@A1", "\tx", "\r=1", "  =1", "＝1"):
        assert as_cell(text) == f"'{text}"
    assert [as_cell(text) for text in ("a=1", "", "0.5", "'=1")] == ["a=1", "", "0.5", "'=1"]


DAMAGE = {
    "a field gone": lambda file: write_json(file, {key: value for key, value in json.loads(file.read_text()).items() if key != "curves"}),
    "images": lambda file: write_json(file, json.loads(file.read_text()) | {"thumbnails": {"frames": ['"><script>'], "references": []}}),
    "folder": lambda file: (file.unlink(), file.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_results_count_as_absent(tmp_path, instruments, portraits, name):
    add(tmp_path / "run", "one", portraits["astronaut"])
    home, file = tmp_path / "run" / "one", tmp_path / "result.json"
    sample = GeneratedVideo("one", home / "portrait.png", (home / "reference_1_crop.png",), "a person smiles")
    whole, recalled = measure_or_recall(sample, file, instruments, overwrite=False)
    assert not recalled and measure_or_recall(sample, file, instruments, overwrite=False)[1]
    DAMAGE[name](file)
    assert read_thumbnails(whole | {"file": str(file)}) == {"references": [], "frames": []}
    if name == "folder":
        refused("result.json: could not be written", measure_or_recall, sample, file, instruments, overwrite=False)
    else:
        assert measure_or_recall(sample, file, instruments, overwrite=False) == (whole, False)
        assert len(read_thumbnails(whole | {"file": str(file)})["frames"]) == 1


@pytest.mark.parametrize("changed", [{"vectors": np.zeros((1, 3), np.float32)}, {"identity": np.array(["i"])}, {}])
def test_damaged_face_vectors_count_as_absent(tmp_path, instruments: Instruments, portraits, changed):
    portraits["astronaut"].save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    file = tmp_path / "videos" / "face_vectors.npz"
    (vector,) = face_vectors([tmp_path / "a.png", tmp_path / "pipe.png"], "x", tmp_path, instruments).values()
    np.savez(file, **dict(np.load(file)) | changed)
    if not changed:
        file.write_bytes(file.read_bytes()[:-50])
    (again,) = face_vectors([tmp_path / "a.png"], "x", tmp_path, instruments).values()
    np.testing.assert_allclose(again, vector, atol=1e-6)


@pytest.mark.parametrize("option", ["--videos", "--benchmark", "--calibration", "--training_images", "--metric", "--output"])
def test_paths_of_every_kind_are_told(option, evaluate, tmp_path, portraits):
    add(tmp_path / "run", "one", portraits["astronaut"])
    for kind, path in odd_paths(tmp_path).items():
        if option != "--output" or kind not in ("none", "bytes"):
            ended = evaluate(*([] if option == "--videos" else ["--videos", tmp_path / "run"]), option, path)
            assert is_told(ended, 2), (kind, ended.err)


def test_where_a_photo_is_gone_there_is_what_was_cut_out_of_it(tmp_path, portraits):
    add(tmp_path / "run", "one", portraits["astronaut"])
    for path in odd_paths(tmp_path).values():
        write_json(tmp_path / "run" / "one" / "info.json", INFO | {"references": [{"image": path}], "files": [path, "../one/video.mp4"]})
        (sample,), problems, _ = find_samples(tmp_path / "run", None)
        assert sample.references == (tmp_path / "run" / "one" / "reference_1_crop.png",) and not problems


def test_two_evaluations_of_one_folder_at_once(instruments, tmp_path, portraits):
    for name in ("one", "two"):
        add(tmp_path / "run", name, portraits["astronaut"], name)

    def measure(num_frames) -> int:
        tools = Instruments(instruments.detector, instruments.recognizer, 0.363, num_frames)
        for _ in range(4):
            runs = find_runs([tmp_path / "run"], None)
            measure_runs(runs, tools, tmp_path / "report", overwrite=True)
            write_report(Summary(runs, tools, calibrate(runs, None, tools, tmp_path)), tmp_path / "report")
        return len(runs[0].results)

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(measure, (1, 4))) == [2, 2]
    assert len(report_of(tmp_path)["runs"][0]["videos"]) == 2
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.csv", "report.html", "report.json", "videos"]
