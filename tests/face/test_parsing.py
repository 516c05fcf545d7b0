"""Parts of a face: Segformer in its real files, and the oval that stands in."""

import numpy as np
import torch
from in_process import refused
from PIL import Image
from tiny_faces import MEAN, STD, write_segformer

from concat_id.face.detection import TEMPLATE
from concat_id.face.parsing import BACKGROUND, HAIR, SKIN, EllipseParser, SegformerParser


def test_segformer_labels_every_pixel(tmp_path, astronaut, capfd):
    model, image = write_segformer(tmp_path), astronaut.resize((448, 448))
    labels = SegformerParser(tmp_path, "cpu").parse(image, TEMPLATE * 4)
    assert labels.shape == (448, 448) and np.issubdtype(labels.dtype, np.integer)
    pixels = np.asarray(image.resize((512, 512), Image.Resampling.BILINEAR), np.float32) / 255
    inputs = torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)[None]
    logits = model(inputs).logits.detach()
    expected = torch.nn.functional.interpolate(logits, (448, 448), mode="bilinear").argmax(1)[0].numpy()
    assert len(np.unique(expected)) > 2, "the random model tells something apart"
    assert (labels == expected).mean() > 0.99
    assert "torchvision" not in capfd.readouterr().err


def test_incomplete_and_truncated_folders_and_other_models(tmp_path):
    for name, told in (("config.json", "config.json: found no such file"), ("preprocessor_config.json", "config.json: found no"),
                       ("model.safetensors", "found no weights")):  # fmt: skip
        write_segformer(tmp_path)
        (tmp_path / name).unlink()
        refused(told, SegformerParser, tmp_path, "cpu")
    write_segformer(tmp_path, num_labels=3)
    refused("found 3 classes, expected CelebAMask's 19", SegformerParser, tmp_path, "cpu")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    refused("model.safetensors: found a truncated", SegformerParser, tmp_path, "cpu")


def test_oval_of_a_frontal_face():
    keypoints = TEMPLATE * 4
    labels = EllipseParser().parse(Image.new("RGB", (448, 448)), keypoints)
    assert labels.shape == (448, 448) and set(np.unique(labels)) == {BACKGROUND, SKIN, HAIR}
    assert all(labels[int(y), int(x)] == SKIN for x, y in keypoints)
    assert labels[5, 224] == HAIR and labels[5, 224] != labels[440, 224] == SKIN
    assert all(labels[y, x] == BACKGROUND for y in (2, 445) for x in (2, 445))
    assert 0.6 < (labels != BACKGROUND).mean() < 0.85
    mirrored = EllipseParser().parse(Image.new("RGB", (448, 448)), ([447, 0] + [-1, 1] * keypoints)[[1, 0, 2, 4, 3]])
    assert (mirrored[:, ::-1] == labels).mean() > 0.999


def test_oval_follows_tilt_and_size():
    image = Image.new("RGB", (800, 800))
    upright = EllipseParser().parse(image, TEMPLATE * 2 + 250)
    turned = EllipseParser().parse(image, (TEMPLATE * 2 + 250 - 399.5) @ [[0, 1], [-1, 0]] + 399.5)
    assert (np.rot90(upright, -1) == turned).mean() > 0.998
    half = EllipseParser().parse(image, TEMPLATE + 250)
    assert abs((upright > 0).sum() / (half > 0).sum() - 4) < 0.05


def test_oval_leaves_less_in_front_of_a_turned_face_and_survives_nonsense():
    keypoints = TEMPLATE * 4
    keypoints[2] -= [40, 0]  # the nose points to the image's left
    row = EllipseParser().parse(Image.new("RGB", (448, 448)), keypoints)[206] > 0
    columns = np.nonzero(row)[0]
    assert 224 - columns.min() < 0.75 * (columns.max() - 224)
    for keypoints in (np.zeros((5, 2)), np.full((5, 2), 1e6), -TEMPLATE):
        assert EllipseParser().parse(Image.new("RGB", (64, 48)), keypoints).shape == (48, 64)
