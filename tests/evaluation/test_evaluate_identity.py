"""The script as a user starts it: calibration, comparisons, bad input, resuming, hygiene."""

import csv
import json
import shutil

import pytest
from evaluation.clips import add, other_photographs, report_of, scene, write_clip
from odd_input import is_told
from PIL import Image

from concat_id.evaluation import measuring


def test_genuine_and_impostor_similarity(evaluate, tmp_path, portraits):
    own, others = other_photographs(portraits["astronaut"]), other_photographs(portraits["actor"])
    for person, photos in {"astronaut": own, "actor": others}.items():
        (tmp_path / "people" / person).mkdir(parents=True)
        for number, photo in enumerate(photos):
            scene(photo).save(tmp_path / "people" / person / f"{number}.png")
    runs = [tmp_path / "own", tmp_path / "others"]
    for run, photos in zip(runs, (own, others), strict=True):
        add(run, "astronaut", [scene(photo) for photo in photos], portraits["astronaut"])
    code, out, _ = evaluate("--videos", *runs, "--calibration", tmp_path / "people", "--threshold", "0.05")
    report = report_of(tmp_path)
    assert "SFace hardly tells them apart" in out and "hardly tells them" in (tmp_path / "report" / "report.html").read_text()
    assert code == 0 and report["recognizer"] == "SFace"
    genuine, impostor = (run["summary"]["similarity_rescaled"]["mean"] for run in report["runs"])
    assert genuine == pytest.approx(1, abs=0.08) and impostor == pytest.approx(0, abs=0.08)
    assert report["comparisons"][0]["second_minus_first"]["similarity"]["mean"] < -0.4
    assert "SFace similarity as published" in out and "ArcFace" not in out
    assert {*report["runs"][0]["videos"][0]["references"][0]} == {"image"}, "reports are passed on, and people recognised by vectors"


def test_people_are_identified_among_all_references(evaluate, tmp_path, portraits):
    """Two of four are: one shows another person, and one nobody; a run with a single reference has nothing to choose among."""
    videos = tmp_path / "videos"
    for name, shown in {"astronaut": "astronaut", "actor": "actor", "singer": "astronaut"}.items():
        add(videos, name, [scene(portraits[shown])] * 2, portraits[name])
    add(videos, "empty", [scene(None)] * 2, portraits["actor"])
    assert evaluate("--videos", videos)[0] == 0
    report = report_of(tmp_path)
    assert report["runs"][0]["summary"]["rank1_identification"]["mean"] == 0.5
    found = {video["name"]: video["scores"]["rank1_identification"] for video in report["runs"][0]["videos"]}
    assert found == {"astronaut": 1, "actor": 1, "singer": 0, "empty": 0}
    add(tmp_path / "alone", "actor", [scene(portraits["actor"])] * 2, portraits["actor"])
    assert evaluate("--videos", tmp_path / "alone")[0] == 0
    assert "rank1_identification" not in report_of(tmp_path)["runs"][0]["summary"]


def test_requests_that_differ_in_clothes_alone_are_no_pair(evaluate, tmp_path, portraits):
    runs = [tmp_path / name for name in ("first", "second", "third")]
    for run, grey in zip(runs, (90, 90, 150), strict=True):
        add(run, "actor", [scene(portraits["actor"])], portraits["actor"])
        Image.new("RGB", (200, 200), (grey, grey, grey)).save(run / "actor_2.png")
    assert evaluate("--videos", *runs)[0] == 0
    alike, other = (comparison["second_minus_first"] for comparison in report_of(tmp_path)["comparisons"])
    assert "similarity" in alike and not other


def test_every_bad_input_is_told_and_the_others_finish(evaluate, tmp_path, portraits):
    videos, portrait = tmp_path / "videos", portraits["astronaut"]
    add(videos, "good", [scene(portrait)] * 3, portrait)
    add(videos, "empty", [scene(None)] * 3, portrait)
    Image.new("RGB", (200, 200), (90, 90, 90)).save(videos / "empty_2.png")
    add(videos, "orphan", [scene(portrait)] * 3, None)
    add(videos, "faceless", [scene(portrait)] * 3, Image.new("RGB", (200, 200), (90, 90, 90)))
    add(videos, "unreadable", [scene(portrait)] * 3, portrait)
    (videos / "unreadable.mp4").write_bytes(b"not a video")
    add(videos, "text", [scene(portrait)] * 3, portrait)
    (videos / "text.png").write_text("not an image")
    for suffix in ("mp4", "png", "txt"):
        shutil.copy(videos / f"good.{suffix}", videos / f"good_too.{suffix}")
    code, out, told = evaluate("--videos", videos)
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 4 and "Traceback" not in told
    for name, reason in {
        "orphan": "no reference image", "faceless": "no face in the reference", "unreadable": "not a video", "text": "not an image",
    }.items():  # fmt: skip
        assert sum(f"{name}.mp4" in line and reason in line for line in errors) == 1, name
    assert f"{videos}: 1 video left out that answer" in told
    assert "empty.mp4: found no face in any of 3 frames, which scores 0" in told
    assert f"{videos / 'empty_2.png'}: found no face in the reference, which is left out" in told
    with open(tmp_path / "report" / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {row["name"]: row["similarity"] for row in rows if row["name"]}
    assert float(scores["good"]) > 0.85 and float(scores["empty"]) == 0 and set(scores) == {"good", "empty"}
    assert sum(bool(row["problem"]) for row in rows) == 4
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Not in these numbers: 4" in page


def test_resumes_and_notices_changes(evaluate, tmp_path, portraits, monkeypatch):
    videos = tmp_path / "videos"
    add(videos, "one", [scene(portraits["astronaut"])] * 2, portraits["astronaut"])
    add(videos, "two", [scene(portraits["actor"])] * 2, portraits["actor"])
    measured = []
    original = measuring.measure
    monkeypatch.setattr(measuring, "measure", lambda sample, tools: measured.append(sample.name) or original(sample, tools))
    assert evaluate("--videos", videos)[0] == 0 and measured == ["one", "two"]
    before = report_of(tmp_path)
    code, out, _ = evaluate("--videos", videos)
    assert code == 0 and measured == ["one", "two"], "nothing is measured twice"
    assert "2 videos were measured already" in out and report_of(tmp_path) == before
    portraits["astronaut"].save(videos / "two.png")
    next((tmp_path / "report" / "videos" / "videos").glob("one-*.json")).write_text("{")
    assert evaluate("--videos", videos)[0] == 0 and measured[2:] == ["one", "two"], "changed, or damaged results"


def test_people_in_the_training_images_are_left_out(evaluate, tmp_path, portraits):
    videos, training = tmp_path / "videos", tmp_path / "training"
    training.mkdir()
    for name in ("astronaut", "actor"):
        add(videos, name, [scene(portraits[name])] * 2, portraits[name])
    scene(portraits["astronaut"].transpose(0)).save(training / "seen.png")
    scene(None).save(training / "nobody.png")
    code, out, told = evaluate("--videos", videos, "--training-images", training)
    report = report_of(tmp_path)
    assert code == 0 and [video["name"] for video in report["runs"][0]["videos"]] == ["actor"]
    (match,) = report["training_overlap"]["dropped"].values()
    assert match["image"].endswith("seen.png") and match["similarity"] > 0.45
    assert "1 videos of people in the training images are left out" in told and "1 of 2 images" in told


def test_our_own_outputs(evaluate, tmp_path, portraits):
    folder = tmp_path / "out: puts" / "0000_a_woman"
    write_clip(folder / "video.mp4", [scene(portraits["astronaut"])] * 2)
    write_clip(folder / "video_2.mp4", [scene(portraits["actor"])] * 2)
    portraits["astronaut"].resize((448, 448)).save(folder / "reference_1_crop.png")
    info = {"prompt": "a woman", "references": [{"image": "gone.png"}], "files": ["video.mp4", "video_2.mp4", "sheet.png"]}
    (folder / "info.json").write_text(json.dumps(info))
    unfinished = tmp_path / "out: puts" / "0001_a_man"
    write_clip(unfinished / "video.mp4", [scene(None)] * 2)
    shutil.copy(folder / "reference_1_crop.png", unfinished / "reference_1.png")
    shutil.copy(folder / "video.mp4", tmp_path / "out: puts" / "other.mp4")
    code, out, told = evaluate("--videos", tmp_path / "out: puts")
    (run,) = report_of(tmp_path)["runs"]
    similarities = {video["name"]: video["scores"]["similarity"] for video in run["videos"]}
    assert similarities["0000_a_woman/1"] > 0.85 and similarities["0000_a_woman/2"] < 0.4
    assert code == 1 and "0001_a_man: found no info.json" in told
    assert "1 video deeper in it or beside other results not measured, such as" in told and "other.mp4; give" in told


@pytest.mark.parametrize(("options", "message"), [
    (["--videos", "."], "found no video"),
    (["--videos", ".", "--benchmark", "."], "found neither"),
    (["--videos", ".", "--frames", "0"], "--frames: found 0, expected 1 or more"),
])  # fmt: skip
def test_mistakes_are_one_line(evaluate, tmp_path, monkeypatch, options, message):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ended = evaluate(*options)
    assert is_told(ended, 2) and message in ended.err
