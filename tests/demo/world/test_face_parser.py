"""The small face parser: photographs and their classes, a training, and the parser that ships, on people whom it has not seen."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from concat_id.face.detection import TEMPLATE
from concat_id.face.parsing import CLASSES, EllipseParser, SegformerParser


@pytest.fixture(scope="module")
def photographs(kernels, detector):
    from networks.face_parser import take_photographs

    return take_photographs(range(6), 1, detector)


def test_crops_and_their_classes_lie_alike(photographs):
    for photo in photographs:
        crop, classes = photo.crop(448)
        assert crop.size == classes.shape == (448, 448) and CLASSES[classes[tuple((TEMPLATE[2, ::-1] * 4).astype(int))]] == "nose"
        assert (photo.crop(112)[1] == classes[2::4, 2::4]).mean() > 0.97


def test_a_training_is_written_as_the_released_parser_is(photographs, tmp_path):
    from networks.face_parser import MIRRORED, train_parser

    assert MIRRORED.tolist() == [0, 1, 2, 3, 5, 4, 7, 6, 9, 8, *range(10, 19)]
    train_parser(photographs, 2, 0, tmp_path / "parser")
    labels = SegformerParser(tmp_path / "parser", "cpu").parse(Image.new("RGB", (448, 448)), TEMPLATE * 4)
    assert labels.shape == (448, 448) and (tmp_path / "parser" / "model.safetensors").stat().st_size < 2**20


def test_the_parser_that_ships_keeps_what_it_should(photographs):
    from networks.face_parser import overlap

    parser = SegformerParser(ROOT / "models" / "mini" / "face_parser", "cpu")
    kept, by_oval = (np.mean([overlap(each, photo) for photo in photographs]) for each in (parser, EllipseParser()))
    assert kept > 0.9 > by_oval
