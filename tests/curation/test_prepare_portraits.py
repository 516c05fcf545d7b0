"""From photographs to ConsistentID's training data through the command, and what its reader makes of them."""

import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_faces import write_arcface, write_segformer

from concat_id.data.portraits import PortraitDataset, read_portraits
from concat_id.face.parsing import CLASSES, SegformerParser
from concat_id.face.recognition import FaceRecognizer
from concat_id.video.face_parts import FACE_CAPTION, RELEASED_CLASSES, squeezed
from concat_id.video.transforms import load_image

from .conftest import read


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_segformer(folder / "parser")
    return SimpleNamespace(arcface=write_arcface(folder / "arcface"), parser=folder / "parser")


@pytest.fixture
def prepare(call, face_folder, models, tmp_path):
    folders = "--detector", face_folder, "--parser", models.parser, "--device", "cpu", "--output", tmp_path / "out"
    return partial(call, "prepare_portraits", *folders)


@pytest.fixture
def photos(tmp_path, photographs):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "six"):
        shutil.copy(photographs[name], folder / f"{name}{photographs[name].suffix}")
    (folder / "six.txt").write_text("six  people")
    return folder


def test_photographs_become_what_training_reads(prepare, photos, models, tmp_path, detector):
    arcface, words = ("--recognizer", models.arcface), ("--caption", "a portrait")
    done, out = prepare("--photos", photos, *arcface, *words), tmp_path / "out"
    assert f"{out / 'JSON_all.json'}: 2 portraits, 0 photos that cannot be used" in done.done and "weights know" not in done.err
    assert "six.jpg: found 6 faces; the largest" in done.out + done.err
    first, six = read(out / "JSON_all.json")
    assert first == {
        "origin_IMG": str(photos / "astronaut.png"), "resize_IMG": "resize_IMG/astronaut_resize.png",
        "parsing_color_IMG": "parsing_color_IMG/astronaut_color.png", "parsing_mask_IMG": "parsing_mask_IMG/astronaut_mask.png",
        "vqa_llva": "a portrait", "id_embed_file_resize": "all_faceID/astronaut_faceid.bin", "vqa_llva_more_face_detail": FACE_CAPTION,
    }  # fmt: skip
    assert six["vqa_llva"] == "six people"

    photo, mask = load_image(photos / "six.jpg"), np.asarray(Image.open(out / six["parsing_mask_IMG"]))
    square, largest = load_image(out / six["resize_IMG"]), max(detector.detect(photo), key=lambda face: face.area)
    again = max(detector.detect(square), key=lambda face: face.area)  # of the same proportions, in the middle of the width
    np.testing.assert_allclose(again.box[2:] - again.box[:2], (largest.box[2:] - largest.box[:2]) * 512 / min(photo.size), rtol=0.05)
    assert abs(again.box[0] + again.box[2] - 512) < 8 and square.size == (512, 512) != photo.size
    one = np.asarray(Image.open(out / first["resize_IMG"]))
    np.testing.assert_array_equal(one, np.asarray(squeezed(load_image(photos / "astronaut.png"))))  # a square stays whole
    labels = SegformerParser(models.parser, "cpu").parse(square, None)
    assert [RELEASED_CLASSES[mask[at, at]] for at in range(512)] == [CLASSES[labels[at, at]] for at in range(512)]
    colours = np.asarray(Image.open(out / six["parsing_color_IMG"])).astype(float) - 0.4 * np.asarray(square)
    assert len({tuple((colours[mask == number].mean(0) / 20).round()) for number in np.unique(mask)}) == len(np.unique(mask)) > 3
    vector = torch.load(out / six["id_embed_file_resize"], weights_only=True)
    np.testing.assert_allclose(vector, FaceRecognizer.from_folder(models.arcface, "cpu").embed(photo, largest)[None], atol=1e-6)
    assert vector.shape == (1, 512)

    sample = PortraitDataset(read_portraits([out / "JSON_all.json"]))[0, 1]
    assert sample.parts[0][:2] == ("face", "eyes") and torch.equal(sample.identities[0], vector) and sample.images.shape == (1, 3, 512, 512)
    assert sample.part_masks[0, : len(sample.parts[0])].flatten(1).any(1).all()


def test_a_second_run_takes_over_what_is_whole(prepare, photos, tmp_path):
    def times(*options):
        assert prepare("--photos", photos, "--without_vectors", *options).code == 0
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/*.*")}

    first = times("--caption", "c")
    assert len(first) == 8 and "id_embed_file_resize" not in read(tmp_path / "out" / "JSON_all.json")[0]
    assert times("--caption", "c") == first
    changed = {name for name, time in times("--caption", "d").items() if first[name] != time}
    assert changed == {"astronaut.json"} and read(tmp_path / "out" / "JSON_all.json")[0]["vqa_llva"] == "d"
    (tmp_path / "out" / "parsing_mask_IMG" / "six_mask.png").write_bytes(b"half")
    assert {name for name, time in times("--caption", "d").items() if first[name] != time} == {
        "astronaut.json", "six_resize.png", "six_color.png", "six_mask.png"}  # fmt: skip


def test_folders_in_folders_and_photos_that_are_named_no_more(prepare, photos, tmp_path):
    """What is prepared in a folder of photos is none of them; a photo named twice is one."""
    for person in ("anna", "ben"):
        (photos / person).mkdir()
    (photos / "astronaut.png").rename(photos / "anna" / "1.png")
    (photos / "six.jpg").rename(photos / "ben" / "1.jpg")
    options = "--caption", "c", "--without_vectors", "--output", photos / "out"
    for _ in range(2):
        done = prepare("--photos", photos, photos / "anna" / ".." / "ben", *options)
        assert done.code == 0 and "JSON_all.json: 2 portraits, 0 photos" in done.out and "not listed" not in done.out
        assert [entry["resize_IMG"] for entry in read(photos / "out" / "JSON_all.json")] == [
            "resize_IMG/anna_1_resize.png", "resize_IMG/ben_1_resize.png"]  # fmt: skip
    done = prepare("--photos", photos / "ben" / "1.jpg", *options)
    assert "JSON_all.json: 2 more prepared photos are not listed; name all photos in one command" in done.out


def test_bad_photos_are_told_and_the_others_prepared(prepare, photos, photographs, tmp_path):
    shutil.copy(photographs["coffee"], photos)
    (photos / "broken.jpg").write_bytes(b"no photo")
    (photos / "six.png").write_bytes(b"another")
    (photos / "words.json").write_text('{"astronaut": "a woman", "broken": "b", "coffee": "c"}')
    shutil.copy(photos / "astronaut.png", photos / "silent.png")
    options = "--photos", photos, tmp_path / "gone.jpg", "--captions", photos / "words.json", "--without_vectors"
    code, out, told = prepare(*options)
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    for text in ("coffee.png: found no face", "broken.jpg: not an image", "six.png: is called six as", "gone.jpg', expected a photo",
                 "silent.png: found no caption, expected one in --captions, silent.txt beside it, or --caption"):  # fmt: skip
        assert sum(text in line for line in errors) == 1, text
    assert code == 1 and len(errors) == 5 and "Traceback" not in told and "2 portraits, 5 photos" in out
    assert [entry["vqa_llva"] for entry in read(tmp_path / "out" / "JSON_all.json")] == ["a woman", "six people"]


def test_unfit_models_are_refused_in_one_line(prepare, photos, recognizer_folder, tmp_path):
    command = "--photos", photos, "--caption", "c"
    code, _, told = prepare(*command, "--recognizer", recognizer_folder)
    assert code == 2 and "SFace makes vectors of 128 numbers, expected ArcFace's 512; put insightface's buffalo_l into models/b" in told
    code, _, told = prepare(*command, "--parser", tmp_path / "nowhere")
    assert code == 2 and "nowhere: not there, expected a Segformer" in told and told.count("\n") == 1


def test_no_photo_is_overwritten(prepare, photo, tmp_path):
    folder = tmp_path / "out" / "resize_IMG"
    folder.mkdir(parents=True)
    for name in ("a.png", "a_resize.png"):
        shutil.copy(photo, folder / name)
    ended = prepare("--photos", folder, "--caption", "c", "--without_vectors")
    assert ended.code == 2 and f"{folder / 'a_resize.png'}: found one of the files given" in ended.err
    assert (folder / "a_resize.png").read_bytes() == photo.read_bytes()
