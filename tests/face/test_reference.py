"""The whole path from a photograph to what the model sees."""

import numpy as np
import pytest
import skimage.data
from conftest import ROOT
from in_process import refused
from PIL import Image

from concat_id.config.cogvideox import FaceConfig
from concat_id.config.loading import load_config
from concat_id.face.detection import Face
from concat_id.face.parsing import CLASSES, EllipseParser
from concat_id.face.reference import kept_pixels, load_face_models, mask_surroundings, prepare_reference
from concat_id.face.verdict import NO_FACE
from concat_id.video.transforms import load_image

SIZE = (96, 144)
GREY = Image.new("RGB", (10, 10), (90, 90, 90))


class FixedParser:
    """Calls the first rows background and the rest skin."""

    name = "fixed"

    def __init__(self, background_rows: int):
        self.background_rows = background_rows

    def parse(self, crop, keypoints):
        assert crop.size == (448, 448) and keypoints.shape == (5, 2)
        return np.where(np.arange(448)[:, None] < self.background_rows, 0, 1) * np.ones((1, 448), int)


def test_what_is_blacked_out():
    for label, name in enumerate(CLASSES):
        labels = np.full((10, 10), 1)
        labels[:5] = label
        masked, remaining = mask_surroundings(GREY, labels)
        is_removed = name in {"background", "hat", "earring", "necklace", "cloth"}
        assert np.asarray(masked)[:5].max() == (0 if is_removed else 90) and np.asarray(masked)[5:].min() == 90, name
        assert remaining == (0.5 if is_removed else 1)


@pytest.mark.parametrize(("kept", "is_masked"), [(39, False), (40, True), (0, False), (100, True)])
def test_forty_percent_rule(kept, is_masked):
    labels = (np.arange(100) < kept).astype(int).reshape(10, 10)
    pixels, remaining = kept_pixels(labels)
    assert remaining == pytest.approx(kept / 100) and pixels.mean() == pytest.approx(kept / 100 if is_masked else 1)
    assert np.array_equal(np.asarray(mask_surroundings(GREY, labels)[0])[..., 0] > 0, pixels)


def test_rule_in_the_whole_path(detector, photographs):
    masked = prepare_reference(photographs["astronaut"], SIZE, detector, FixedParser(268))
    assert masked.verdict.notes == [] and np.asarray(masked.image)[:50].max() == 0
    whole = prepare_reference(photographs["astronaut"], SIZE, detector, FixedParser(270))
    assert np.asarray(whole.image)[:50].max() > 0 and np.array_equal(np.asarray(whole.crop), np.asarray(masked.crop))
    (note,) = whole.verdict.notes
    assert "40%" in note and "background is kept" in note and whole.verdict.level == "usable"


@pytest.mark.parametrize(("name", "size"), [("astronaut", SIZE), ("six", SIZE), ("actor", [720, 480])])
def test_real_photographs(detector, photographs, name, size):
    prepared = prepare_reference(photographs[name], size, detector, EllipseParser())
    assert prepared.image.size == (size[1], size[0]) and prepared.crop.size == (448, 448)
    assert prepared.parser == "ellipse" and "det.onnx" in prepared.detector
    pixels = np.asarray(prepared.image)
    left, top = (size[1] - min(size)) // 2, (size[0] - min(size)) // 2
    outside = pixels.copy()
    outside[top : top + min(size), left : left + min(size)] = 0
    assert outside.max() == 0, "black beside the crop"
    assert pixels[size[0] // 2 - 5 : size[0] // 2 + 5, size[1] // 2 - 5 : size[1] // 2 + 5].min() > 20, "a face in the middle"
    corner = pixels[top : top + min(size) // 20, left : left + min(size) // 20]
    assert corner.mean() < 4, "background is black"


def test_the_largest_of_several_faces_is_used_and_without_one_the_whole_image(detector, photographs):
    prepared = prepare_reference(photographs["six"], SIZE, detector, EllipseParser())
    assert prepared.verdict.notes == ["found 6 faces, the largest is used; cut the photo to the one that is meant"]
    image = load_image(photographs["six"])
    crop, _ = detector.align(image, max(detector.detect(image), key=lambda face: face.area))
    assert np.array_equal(np.asarray(crop), np.asarray(prepared.crop))
    prepared = prepare_reference(photographs["coffee"], SIZE, detector, EllipseParser())
    assert prepared.verdict.reasons == (NO_FACE,)
    assert prepared.image.size == (144, 96) and prepared.crop.size == load_image(photographs["coffee"]).size
    assert np.asarray(prepared.image)[:, :143].any(axis=(0, 2)).all(), "600x400 fits without padding"


@pytest.mark.parametrize(("name", "degrees", "how"), [("astronaut", 90, "on its left side"), ("six", 180, "on its head"),
                                                      ("six", 270, "on its right side")])  # fmt: skip
def test_images_lying_without_exif_are_turned_upright(detector, photographs, tmp_path, name, degrees, how):
    upright = load_image(photographs[name])
    upright.rotate(degrees, expand=True).save(tmp_path / "lying.png")
    prepared = prepare_reference(tmp_path / "lying.png", SIZE, detector, EllipseParser())
    expected = prepare_reference(photographs[name], SIZE, detector, EllipseParser())
    assert prepared.verdict.notes == [*expected.verdict.notes, f"the photo lies {how}; it is turned upright"]
    assert prepared.verdict.level == expected.verdict.level
    assert np.array_equal(np.asarray(prepared.crop), np.asarray(expected.crop))


@pytest.mark.parametrize("name", ["camera", "six", "actor", "coffee"])
def test_profiles_and_doubtful_faces_are_not_turned(detector, photographs, tmp_path, name):
    Image.fromarray(skimage.data.camera()).save(tmp_path / "camera.png")
    found = detector.search(load_image(photographs.get(name, tmp_path / "camera.png")))
    assert found.note is None and len(found.faces) == {"camera": 1, "six": 6, "actor": 1, "coffee": 0}[name]


def test_other_detectors_turn_only_where_they_find_no_face(detector, photographs, monkeypatch):
    """Of theirs no scores of lying faces are known, so that a face which the release finds stays the one that is used."""
    monkeypatch.setattr(detector, "looks_again", False)
    lying = load_image(photographs["astronaut"]).rotate(90, expand=True)
    doubtful = [Face(np.array([0.0, 0, 9, 9]), np.zeros((5, 2)), 0.6)]
    monkeypatch.setattr(detector, "detect", lambda image: doubtful)
    assert detector.search(lying).faces == doubtful and detector.search(lying).note is None


def test_small_faces_of_large_photos_are_found(detector, astronaut):
    """A face 60 pixels wide among 12 million."""
    place = (3850, 40)
    photo = Image.fromarray(np.random.default_rng(0).integers(100, 156, (3000, 4000, 3), dtype=np.uint8))
    face = detector.detect(astronaut)[0]
    head = astronaut.resize((340, 340)).crop((110, 0, 240, 140))  # 60 of 91 pixels
    photo.paste(head, place)
    assert detector.detect(photo) == []
    (found,) = detector.search(photo).faces
    expected = (face.box * 340 / 512 - [110, 0, 110, 0]) + [*place, *place]
    assert np.abs(found.box - expected).max() < 15 and found.score > 0.8


def config_of(tmp_path, **folders):
    missing = {name: str(tmp_path / f"no_{name}") for name in ("detector", "parser", "fallback_detector")}
    return FaceConfig(**missing | {name: str(folder) for name, folder in folders.items()})


def test_what_stands_in_is_told(tmp_path, detector_folder):
    for place, absent in (("detector", ["no_parser"]), ("fallback_detector", ["no_detector", "no_parser"])):
        models = load_face_models(config_of(tmp_path, **{place: detector_folder}), "cpu")
        assert models.detector.folder == detector_folder and isinstance(models.parser, EllipseParser)
        assert len(models.notices) == len(absent) and all(map(str.__contains__, models.notices, absent)) and "oval" in models.notices[-1]


def test_the_demonstration_models_parser_leaves_no_background(detector):
    """The wall behind this person is blue."""
    models = load_face_models(load_config([str(ROOT / "configs" / "mini.yaml")]).model.faces, "cpu")
    assert not any("oval" in notice for notice in models.notices)
    blue = {}
    for parser in (models.parser, EllipseParser()):
        pixels = np.asarray(prepare_reference(ROOT / "examples" / "people" / "ben.png", SIZE, detector, parser).image).astype(int)
        blue[parser.name] = float((pixels[..., 2] > pixels[..., 0] + 30).mean())
    assert blue["Segformer (face_parser)"] < 0.001 < 0.005 < blue["ellipse"]


def test_nothing_there_or_half_there(tmp_path, detector_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("face-models", load_face_models, config_of(tmp_path), "cpu")
    refused(r"no \.onnx", load_face_models, config_of(tmp_path, detector=empty, fallback_detector=detector_folder), "cpu")
    refused("Segformer", load_face_models, config_of(tmp_path, detector=detector_folder, parser=empty), "cpu")
