"""The parts of a face, equal to the released system's; and the border to its numbering of classes."""

import numpy as np
import pytest
import torch
from conftest import golden_arrays, seeded
from golden_portraits import META, RELEASED_PARTS, ellipses, image_of
from PIL import Image
from transformers import CLIPImageProcessorPil

from concat_id.face.parsing import CLASSES
from concat_id.video.face_parts import (
    PARTS,
    RELEASED_CLASSES,
    filled,
    from_released,
    part_images,
    part_masks,
    part_pixels,
    to_released,
    without_background,
)  # fmt: skip
from concat_id.video.transforms import clip_pixels


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("consistentid_shared")


def golden_labels(name: str) -> np.ndarray:
    if name == "noise":
        random = np.rint(9 + 6 * seeded("consistentid/masks/labels", (48, 48)).numpy()).clip(0, 20).astype(np.uint8)
        return np.where(seeded("consistentid/masks/noise", (48, 48)).numpy() > 0.6, 0, random)
    if name == "ring":
        return ellipses(64, [[16, 31.5, 31.5, 25, 25], [0, 31.5, 31.5, 12, 12], [1, 31.5, 31.5, 6, 6]])
    return ellipses(64, [[label, cy / 8, cx / 8, max(ry / 8, 1), max(rx / 8, 1)] for label, cy, cx, ry, rx in META["pipe"]["labels"]])


@pytest.mark.parametrize("name", ["noise", "face", "ring"])
def test_masks_of_the_released_system(golden, name):
    labels, names = golden_labels(name), META["mask_names"][name]
    expected = dict(zip(names, np.unpackbits(golden[f"masks/{name}"].numpy(), axis=-1)[..., : labels.shape[1]].astype(bool), strict=True))
    for mask, number in zip([*expected.values()][1:], np.unique(labels), strict=True):
        np.testing.assert_array_equal(filled(labels == number), mask)
    known = from_released(np.where(labels < len(CLASSES), labels, RELEASED_CLASSES.index("cloth")))
    # As released: nothing is left of a person whom background surrounds on all sides.
    np.testing.assert_array_equal(~filled(~without_background(known)), expected["WithoutBackground"])
    masks = part_masks(known)
    assert list(masks) == [part for name, part in RELEASED_PARTS.items() if name in names]
    for released, part in RELEASED_PARTS.items():
        assert part not in masks or (masks[part] == expected[released]).all()
    if name == "ring":
        assert not expected["WithoutBackground"].any() and 0 < without_background(known).mean() < 1


def test_numbering_by_name():
    assert [CLASSES[number] for number in from_released(np.arange(19))] == list(RELEASED_CLASSES)
    np.testing.assert_array_equal(to_released(from_released(np.arange(19))), np.arange(19))
    assert tuple(RELEASED_PARTS.values()) == PARTS


def test_the_second_of_a_pair_stands_in_and_absent_parts_are_left_out():
    masks = part_masks(np.array([[CLASSES.index("right eye"), CLASSES.index("lower lip"), CLASSES.index("mouth")]]))
    assert {part: mask.tolist() for part, mask in masks.items()} == {"eyes": [[True, False, False]], "mouth": [[False, True, False]]}


def test_images_of_parts(golden):
    masks = part_masks(from_released(golden_labels("face")))
    (face,) = part_images(image_of("crop/picture", (40, 32)), {"face": masks["face"]})
    np.testing.assert_array_equal(np.asarray(face), golden["crop/out"])

    masks = part_masks(from_released(ellipses(512, META["pipe"]["labels"])))
    assert list(masks) == [RELEASED_PARTS[name] for name in META["part_order"]]
    assert [mask.sum() for mask in masks.values()] == golden["pipe/masks_sum"].tolist()
    pixels = part_pixels(part_images(image_of("pipe/picture", META["pipe"]["picture"]), masks))
    torch.testing.assert_close(pixels.mean((2, 3)), golden["pipe/parts_mean"], atol=1e-6, rtol=0)
    assert not part_pixels([]).any()


@pytest.mark.parametrize("size", [(224, 224), (300, 240), (97, 1000), (500, 333), (50, 61)])
def test_pixels_for_clip_are_those_of_its_processor(size):
    image = image_of("clip", size)
    assert torch.equal(clip_pixels(image), CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0])


def test_a_very_long_image_needs_no_memory_for_what_is_cut_off():
    long = Image.new("RGB", (1, 65_535), "red")
    assert torch.equal(clip_pixels(long), clip_pixels(Image.new("RGB", (9, 9), "red")))
