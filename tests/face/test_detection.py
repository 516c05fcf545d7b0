"""Faces are found on real photographs and cut out upright."""

import shutil

import numpy as np
import pytest
from conftest import ROOT
from in_process import refused
from insightface.utils import face_align
from PIL import Image

from concat_id.face.detection import CROP_SIZE, TEMPLATE, Face, FaceDetector, alignment, moved, warp
from concat_id.video.transforms import load_image


@pytest.mark.parametrize(("name", "count"), [("astronaut", 1), ("six", 6), ("actor", 1), ("coffee", 0)])
def test_faces_of_real_photographs(detector, photographs, name, count):
    image = load_image(photographs[name])
    faces = detector.detect(image)
    assert len(faces) == count
    for face in faces:
        x0, y0, x1, y1 = face.box
        assert 0.5 <= face.score <= 1 and face.keypoints.shape == (5, 2) and face.area > 0
        inside = (face.keypoints >= [x0 - 5, y0 - 5]) & (face.keypoints <= [x1 + 5, y1 + 5])
        assert inside.all()
        left_eye, right_eye, nose, left_mouth, right_mouth = face.keypoints
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0] and left_eye[1] < nose[1] < left_mouth[1]


@pytest.mark.parametrize(("degrees", "scale"), [(0, 0.2), (20, 1), (-35, 5)])
def test_alignment_puts_eyes_where_the_template_says(degrees, scale):
    angle = np.radians(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    keypoints = TEMPLATE @ rotation.T + [300, -40]
    np.testing.assert_allclose(moved(keypoints, alignment(keypoints, CROP_SIZE)), TEMPLATE * 4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_crop_is_insightfaces(detector, astronaut):
    np.testing.assert_allclose(TEMPLATE, face_align.arcface_dst, atol=1e-4)
    face = detector.detect(astronaut)[0]
    np.testing.assert_allclose(alignment(face.keypoints, CROP_SIZE), face_align.estimate_norm(face.keypoints, CROP_SIZE), atol=1e-3)
    expected = face_align.norm_crop(np.asarray(astronaut), face.keypoints, CROP_SIZE)
    crop = warp(astronaut, alignment(face.keypoints, CROP_SIZE), CROP_SIZE)
    assert np.abs(np.asarray(crop).astype(int) - expected).mean() < 0.6
    crop, keypoints = detector.align(astronaut, face)
    assert crop.size == (448, 448) and np.abs(keypoints - TEMPLATE * 4).max() < 30, "key points follow into the crop"


@pytest.mark.parametrize(("name", "degrees"), [("astronaut", -40), ("astronaut", 20), ("david", -45)])  # whose key points move furthest
def test_tilted_heads_are_set_upright(detector, photographs, name, degrees):
    photo = load_image(photographs.get(name, ROOT / "examples" / "people" / f"{name}.png"))
    upright = np.asarray(detector.align(photo, detector.detect(photo)[0])[0], float)
    tilted = photo.rotate(degrees, expand=True, resample=Image.Resampling.BICUBIC)
    crop = np.asarray(detector.align(tilted, detector.detect(tilted)[0])[0], float)
    middle = np.s_[130:400, 110:340]
    assert np.abs(upright[middle] - crop[middle]).mean() < 12


def test_large_faces_are_cut_out_without_aliasing():
    stripes = np.zeros((1400, 1400, 3), np.uint8)
    stripes[:, ::2] = 255
    keypoints = TEMPLATE * 12
    crop = np.asarray(warp(Image.fromarray(stripes), alignment(keypoints, 448), 448))[20:-20, 20:-20].astype(int)
    assert np.abs(crop - 127).max() <= 45 and abs(crop.mean() - 127.5) < 2


def test_reduced_warp_stays_in_place():
    image = Image.new("RGB", (1200, 1200))
    image.paste((255, 255, 255), (540, 640, 660, 760))
    crop = np.asarray(warp(image, alignment(TEMPLATE * 10, 448), 448).convert("L"), float)
    y, x = np.mgrid[:448, :448]
    centre = np.array([(x * crop).sum(), (y * crop).sum()]) / crop.sum()
    np.testing.assert_allclose(centre, np.array([599.5, 699.5]) * 0.4, atol=0.25)


def test_beyond_the_edge_is_black(detector):
    face = Face(np.array([0, 0, 10, 10.0]), TEMPLATE - [60, 60], 1.0)
    image = Image.new("RGB", (100, 100), (255, 255, 255))
    crop = np.asarray(warp(image, alignment(face.keypoints, 448), 448))
    assert crop[:200, :200].max() == 0 and crop[300:, 300:].min() == 255


def test_odd_images_have_no_faces(detector):
    assert not any(detector.detect(Image.new("RGB", size, (90, 90, 90))) for size in [(1, 1), (2000, 1), (1, 700), (16, 16)])


def test_missing_and_empty_folders(tmp_path, detector_folder):
    refused("no such file, expected a folder.*face-models", FaceDetector, tmp_path / "antelopev2", "cpu")
    refused(r"no \.onnx file", FaceDetector, tmp_path, "cpu")
    (tmp_path / "det.onnx").write_bytes(b"version https://git-lfs")
    shutil.copy(detector_folder / "sface.onnx", tmp_path)
    refused(r"found det.onnx, sface.onnx \(unreadable: det.onnx.*expected a face detector", FaceDetector, tmp_path, "cpu")
