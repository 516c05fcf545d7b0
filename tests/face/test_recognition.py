"""The recogniser: real photographs, and folders that lack one."""

import shutil

import numpy as np
import pytest

from concat_id.errors import UserError
from concat_id.face import recognition
from concat_id.face.recognition import FaceRecognizer, load_recognizer
from concat_id.transforms import load_image


@pytest.fixture(scope="module")
def recognizer(detector_folder) -> FaceRecognizer:
    return FaceRecognizer.from_folder(detector_folder, "cpu")


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


def test_batch_of_none(recognizer):
    assert recognizer.embed_crops([]).shape == (0, 128)


def test_scores_are_called_after_their_weights(recognizer, detector_folder, tmp_path):
    assert recognizer.name == "SFace"
    shutil.copy(detector_folder / "sface.onnx", tmp_path / "glintr100.onnx")
    shutil.copy(detector_folder / "det.onnx", tmp_path / "scrfd_10g_bnkps.onnx")
    (tmp_path / "genderage.onnx").write_bytes(b"version https://git-lfs")
    assert FaceRecognizer.from_folder(tmp_path, "cpu").name == "ArcFace (glintr100)"


def test_folders_without_one(tmp_path, detector_folder):
    with pytest.raises(UserError, match="no such folder.*prepare_face_models"):
        FaceRecognizer.from_folder(tmp_path / "nowhere", "cpu")
    with pytest.raises(UserError, match=r"no \.onnx file.*prepare_face_models"):
        FaceRecognizer.from_folder(tmp_path, "cpu")
    shutil.copy(detector_folder / "det.onnx", tmp_path)
    (tmp_path / "sface.onnx").write_bytes(b"version https://git-lfs")
    with pytest.raises(UserError, match=r"found det.onnx, sface.onnx \(unreadable: sface.onnx") as caught:
        FaceRecognizer.from_folder(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
    for name in ("sface.onnx", "curricularface.onnx"):
        shutil.copy(detector_folder / "sface.onnx", tmp_path / name)
    with pytest.raises(UserError, match="found 2 face recognisers"):
        FaceRecognizer.from_folder(tmp_path, "cpu")


def test_choice_of_the_folder(tmp_path, monkeypatch, detector_folder):
    preferred, fallback = tmp_path / "antelopev2", tmp_path / "face_recognizer"
    monkeypatch.setattr(recognition, "PREFERRED", str(preferred))
    monkeypatch.setattr(recognition, "FALLBACK", str(fallback))
    with pytest.raises(UserError, match="run `python sat/prepare_face_models.py`"):
        load_recognizer()
    fallback.mkdir()
    shutil.copy(detector_folder / "sface.onnx", fallback)
    preferred.mkdir()
    shutil.copy(detector_folder / "det.onnx", preferred)
    assert load_recognizer().file.parent == fallback, "a detector alone is no recogniser"
    shutil.copy(detector_folder / "sface.onnx", preferred / "glintr100.onnx")
    assert load_recognizer().name == "ArcFace (glintr100)"
    assert load_recognizer(str(fallback)).name == "SFace"
