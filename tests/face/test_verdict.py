"""Verdicts on photographs: real ones, degraded ones, and the geometry and the masks that they rest on."""

import json
import weakref

import numpy as np
import pytest
import skimage.data
from conftest import ROOT
from in_process import load_script, no_file_larger_than
from PIL import Image, ImageFilter

from concat_id.face import photos
from concat_id.face.detection import TEMPLATE
from concat_id.face.parsing import CLASSES, EllipseParser
from concat_id.face.photos import compare
from concat_id.face.recognition import load_recognizer
from concat_id.face.reference import FaceModels, prepare_found
from concat_id.face.verdict import GOOD, LEVELS, NO_FACE, POOR, USABLE, PhotoVerdict, Reason, judge

BENCH = load_script(ROOT / "tests" / "bench" / "bench_verdicts.py")


@pytest.fixture(scope="module")
def judged(detector):
    """Judge an image as a run does."""

    def judge_image(image: Image.Image) -> PhotoVerdict:
        return prepare_found(detector.search(image), (96, 144), detector, EllipseParser()).verdict

    return judge_image


@pytest.mark.parametrize("name, level, kinds", [
    ("astronaut", GOOD, set()), ("six", USABLE, {"several faces"}), ("actor", USABLE, {"small"}), ("coffee", POOR, {"no face"}),
    ("camera", POOR, {"turned", "small"}), ("anna", GOOD, set()), ("david", GOOD, set()),
])  # fmt: skip
def test_photographs_as_they_are(judged, photographs, name, level, kinds):
    own = ROOT / "examples" / "people" / f"{name}.png"
    image = Image.fromarray(skimage.data.camera()) if name == "camera" else Image.open(own if own.exists() else photographs[name])
    verdict = judged(image.convert("RGB"))
    assert (verdict.level, {reason.kind for reason in verdict.reasons}) == (level, kinds), verdict
    assert json.loads(json.dumps(verdict.record()))["level"] == level


@pytest.mark.parametrize("kind, how", BENCH.DEGRADATIONS, ids=" ".join)
def test_what_is_wrong_is_named(judged, detector, astronaut, kind, how):
    face = detector.detect(astronaut)[0]
    verdict = judged(BENCH.DEGRADATIONS[kind, how](astronaut, face))
    assert verdict.level != GOOD and kind in {reason.kind for reason in verdict.reasons}, verdict
    assert all(reason.advice for reason in verdict.reasons)


@pytest.mark.parametrize("measurement, degrade", [
    ("sharpness", lambda image, face, strength: image.filter(ImageFilter.GaussianBlur(0.01 * face.side * strength))),
    ("brightness", lambda image, face, strength: BENCH.exposed(image, -strength)),
    ("balance", lambda image, face, strength: BENCH.half_shadow(image, face, -strength)),
    ("width", lambda image, face, strength: BENCH.shrunk(image, face, 100 - 15 * strength)),
])  # fmt: skip
def test_worse_photographs_are_never_judged_better(judged, detector, astronaut, measurement, degrade):
    face = detector.detect(astronaut)[0]
    verdicts = [judged(degrade(astronaut, face, strength)) for strength in range(5)]
    values, levels = [verdict.measurements[measurement] for verdict in verdicts], [LEVELS.index(verdict.level) for verdict in verdicts]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] and levels == sorted(levels) and levels[-1] > levels[0] == 0


def test_small_and_dark_is_not_blurred(judged, detector, astronaut):
    face = detector.detect(astronaut)[0]
    whole = judged(astronaut).measurements["sharpness"]
    for other in (BENCH.shrunk(astronaut, face, 60), BENCH.exposed(astronaut, -3)):
        assert judged(other).measurements["sharpness"] > 0.9 * whole


def turned(yaw: float, pitch: float) -> np.ndarray:
    """Key points of a head with a nose half the eyes' distance long, turned by so many degrees."""
    points = np.column_stack([TEMPLATE, np.zeros(5)]) - [*TEMPLATE[[0, 1, 3, 4]].mean(axis=0), 0]
    eyes = points[1, 0] - points[0, 0]
    points[2, 1:] = points[:2, 1].mean() + 0.555 * (points[3:, 1].mean() - points[:2, 1].mean()), 0.5 * eyes
    sin, cos = np.sin(np.radians([yaw, pitch])), np.cos(np.radians([yaw, pitch]))
    points = points @ np.array([[cos[0], 0, sin[0]], [0, 1, 0], [-sin[0], 0, cos[0]]]).T
    return (points @ np.array([[1, 0, 0], [0, cos[1], sin[1]], [0, -sin[1], cos[1]]]).T)[:, :2] * 2 + 224


@pytest.mark.parametrize("yaw, pitch", [(0, 0), (20, 0), (-20, 0), (45, 0), (-60, 0), (0, 25), (0, -25)])
def test_pose_from_key_points(detector, astronaut, yaw, pitch):
    face, keypoints = detector.detect(astronaut)[0], turned(yaw, pitch)
    verdict = judge(astronaut, [face], face, detector.align(astronaut, face)[0], keypoints, None)
    assert verdict.measurements["yaw"] == pytest.approx(yaw, abs=3) and verdict.measurements["pitch"] == pytest.approx(pitch, abs=5)
    assert ("turned" in {reason.kind for reason in verdict.reasons}) == (abs(yaw) > 28)


@pytest.mark.parametrize("what, shade, is_covered", [
    ("cloth", None, True), ("background", None, True), ("glasses", None, False), ("glasses", 0, True), ("mouth", None, False),
])  # fmt: skip
def test_what_a_parser_sees_before_the_face(detector, astronaut, what, shade, is_covered):
    face = detector.detect(astronaut)[0]
    crop, keypoints = detector.align(astronaut, face)
    labels = EllipseParser().parse(crop, keypoints)
    assert "covered" not in judge(astronaut, [face], face, crop, keypoints, labels).measurements, "the oval sees nothing"
    hidden = slice(160, 250) if what == "glasses" else slice(250, 400)  # rows of the eyes, of the mouth
    labels[hidden, 120:330] = CLASSES.index(what)
    labels[:8] = CLASSES.index("hat")
    if shade is not None:
        crop.paste((shade,) * 3, (120, hidden.start, 330, hidden.stop))
    verdict = judge(astronaut, [face], face, crop, keypoints, labels)
    assert ("covered" in {reason.kind for reason in verdict.reasons}) == is_covered, verdict


def test_the_worst_reason_decides_and_is_told_first():
    verdict = PhotoVerdict((Reason("a", USABLE, "small", "larger"),)).joined(Reason("lying", GOOD, "turned"), NO_FACE)
    assert verdict.level == POOR and str(verdict) == f"poor: {NO_FACE.found}; {NO_FACE.advice} / small; larger / turned"
    assert str(PhotoVerdict()) == "good" and str(PhotoVerdict((Reason("lying", GOOD, "turned"),))) == "good: turned"


def test_the_stranger_among_photos_of_one_person_is_named(detector, recognizer, astronaut, photographs):
    images = [astronaut, Image.open(photographs["actor"]).convert("RGB"), BENCH.exposed(astronaut, -1), astronaut.rotate(10)]
    faces = [prepare_found(detector.search(image), (96, 144), detector, EllipseParser()).face for image in images]
    (line,) = (majority := compare(faces, recognizer)).lines("abcd")
    (stranger,) = majority.strangers
    assert stranger.number == 1 and stranger.typical != 1 and stranger.similarity < 0.3
    assert majority.outvoted == {1} and line.startswith("b: another person than in ") and "SFace says a cosine of" in line
    (line,) = (two := compare(faces[:2], recognizer)).lines("ab")
    assert two.outvoted == set() and "seem to show different people" in line and not compare(faces[2:], recognizer).strangers


@pytest.mark.parametrize("compared", [True, False])
def test_of_photos_that_were_judged_only_a_face_to_be_compared_is_kept(detector, recognizer, photographs, monkeypatch, compared):
    references, faces = [], []

    def prepare(*args):
        prepared = prepare_found(*args)
        references.append(weakref.ref(prepared)), faces.append(weakref.ref(prepared.face))
        return prepared

    monkeypatch.setattr(photos, "prepare_found", prepare)
    checker = photos.PhotoChecker((96, 144), FaceModels(detector, EllipseParser(), []), recognizer if compared else None, None)
    for name in ("astronaut", "actor"):
        checker.check(photographs[name])
    assert [kept() for kept in references] == [None] * 2 and [kept() is not None for kept in faces] == [compared] * 2
    assert len(checker.result()[1]) == compared


def test_one_photo_needs_no_recogniser_and_none_says_nothing(monkeypatch):
    monkeypatch.setattr(photos, "load_recognizer", lambda **_: pytest.fail("not for one photo"))
    assert photos.PhotoComparer().compare([None]) is None
    monkeypatch.setattr(photos, "load_recognizer", lambda **_: load_recognizer("/nowhere"))
    assert photos.PhotoComparer().compare([None, None]) is None


BAD = {"a.pdf": b"%PDF-1.4\n", "empty.png": b"", "words.jpg": b"no image"}


def test_check_photos_tells_each_photo_and_ends_accordingly(call, face_folder, recognizer_folder, photographs, tmp_path):
    models, out = ("--detector", face_folder, "--recognizer", recognizer_folder), tmp_path / "out"
    fine = call("check_photos", photographs["astronaut"], photographs["actor"], *models)
    assert fine.code == 0 and fine.out.startswith(f"{photographs['astronaut']}: good\n{photographs['actor']}: usable: the face is only 73")
    apart = call("check_photos", photographs["astronaut"], photographs["actor"], "--same_person", "--json", "--output", out, *models)
    told = json.loads(apart.out)
    assert apart.code == 1 and told == json.loads((out / "report.json").read_text()) and told["recognizer"] == "SFace"
    assert [stranger["photo"] for stranger in told["strangers"]] == [str(photographs["actor"])]
    assert all(Image.open(out / photo["sheet"]).width > 1300 for photo in told["photos"])
    with no_file_larger_than(4096):
        full = call("check_photos", photographs["astronaut"], "--output", tmp_path / "full", *models)
    assert full.code == 1 and "01_astronaut.png: could not be written" in full.err
    assert "sheet" not in json.loads((tmp_path / "full" / "report.json").read_text())["photos"][0]
    assert call("check_photos", photographs["coffee"], "--same_person", *models)[:2] == (1, f"{photographs['coffee']}: poor: {NO_FACE}\n")


def test_check_photos_overwrites_no_photo(call, face_folder, photo, tmp_path):
    first, second = tmp_path / "me.png", tmp_path / "01_me.png"
    first.write_bytes(photo.read_bytes())
    second.symlink_to(first)
    ended = call("check_photos", first, second, "--output", tmp_path, "--detector", face_folder)
    told = f"error: {second}: found one of the files given, which would be overwritten; choose another --output\n"
    assert ended == (2, "", told) and second.is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_check_photos_reads_on_after_what_is_no_photo(call, face_folder, photo, tmp_path):
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content)
    ended = call("check_photos", *(tmp_path / name for name in BAD), tmp_path, tmp_path / "none.png", photo, "--detector", face_folder)
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 1 and ended.out == f"{photo}: good\n" and "Traceback" not in ended.err
    assert [name in line for name, line in zip([*BAD, f"as {tmp_path}/* does", "none.png"], errors, strict=True)] == [True] * 5
    wrong = call("check_photos", photo, "--model", "minni")
    assert wrong.code == 2 and "the nearest is mini" in wrong.err and wrong.out == ""
