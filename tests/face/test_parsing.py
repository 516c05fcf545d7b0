"""Parts of a face: Segformer in its real files, and the oval that stands in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from concat_id.errors import UserError
from concat_id.face.detection import TEMPLATE
from concat_id.face.parsing import BACKGROUND, CLASSES, HAIR, SKIN, EllipseParser, SegformerParser

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The keys of the released folder's file, written by an older transformers.
PROCESSOR = {
    "do_normalize": True,
    "do_reduce_labels": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "SegformerFeatureExtractor",
    "image_std": STD,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 512, "width": 512},
}


def write_segformer(folder, num_labels=19):
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=num_labels,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(50)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


@pytest.fixture
def picture(astronaut):
    return astronaut.resize((448, 448))


def test_segformer_labels_every_pixel(tmp_path, picture, capfd):
    model = write_segformer(tmp_path)
    labels = SegformerParser(tmp_path, "cpu").parse(picture, TEMPLATE * 4)
    assert labels.shape == (448, 448) and np.issubdtype(labels.dtype, np.integer)
    pixels = np.asarray(picture.resize((512, 512), Image.Resampling.BILINEAR), np.float32) / 255
    inputs = torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)[None]
    logits = model(inputs).logits.detach()
    expected = torch.nn.functional.interpolate(logits, (448, 448), mode="bilinear").argmax(1)[0].numpy()
    assert len(np.unique(expected)) > 2, "the random model tells something apart"
    assert (labels == expected).mean() > 0.99
    captured = capfd.readouterr()
    assert "torchvision" not in captured.err


def test_segformer_finds_the_class_it_is_made_for(tmp_path, picture):
    model = write_segformer(tmp_path)
    with torch.no_grad():
        model.decode_head.classifier.weight.zero_()
        model.decode_head.classifier.bias.copy_(torch.nn.functional.one_hot(torch.tensor(HAIR), len(CLASSES)))
    model.save_pretrained(tmp_path)
    assert (SegformerParser(tmp_path, "cpu").parse(picture, TEMPLATE * 4) == HAIR).all()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_incomplete_folders(tmp_path, name):
    write_segformer(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"found no {name}"):
        SegformerParser(tmp_path, "cpu")


def test_truncated_weights_and_other_models(tmp_path):
    write_segformer(tmp_path, num_labels=3)
    with pytest.raises(UserError, match="found 3 classes, expected CelebAMask's 19"):
        SegformerParser(tmp_path, "cpu")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(UserError, match="model.safetensors: found a truncated") as caught:
        SegformerParser(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


def label_at(labels, point):
    return labels[int(point[1]), int(point[0])]


def test_oval_of_a_frontal_face():
    keypoints = TEMPLATE * 4
    labels = EllipseParser().parse(Image.new("RGB", (448, 448)), keypoints)
    assert labels.shape == (448, 448) and set(np.unique(labels)) == {BACKGROUND, SKIN, HAIR}
    assert all(label_at(labels, point) == SKIN for point in keypoints)
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


def test_oval_leaves_less_in_front_of_a_turned_face():
    keypoints = TEMPLATE * 4
    keypoints[2] -= [40, 0]  # the nose points to the picture's left
    row = EllipseParser().parse(Image.new("RGB", (448, 448)), keypoints)[206] > 0
    columns = np.nonzero(row)[0]
    assert 224 - columns.min() < 0.75 * (columns.max() - 224)


def test_oval_survives_nonsense():
    for keypoints in (np.zeros((5, 2)), np.full((5, 2), 1e6), -TEMPLATE):
        assert EllipseParser().parse(Image.new("RGB", (64, 48)), keypoints).shape == (48, 64)
