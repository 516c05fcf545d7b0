"""The real detector, converted once, and real photographs from installed packages."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from concat_id.face.detection import FaceDetector
from concat_id.video.transforms import load_image


@pytest.fixture(scope="session")
def detector_folder(face_folder, recognizer_folder, tmp_path_factory) -> Path:
    """Both models in one folder, as in antelopev2."""
    folder = tmp_path_factory.mktemp("faces")
    for file in (face_folder / "det.onnx", recognizer_folder / "sface.onnx"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def detector(detector_folder) -> FaceDetector:
    return FaceDetector(detector_folder, "cpu")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photographs")
    images = Path(find_spec("insightface").submodule_search_locations[0]) / "data" / "images"
    Image.fromarray(skimage.data.astronaut()).save(folder / "astronaut.png")
    Image.fromarray(skimage.data.coffee()).save(folder / "coffee.png")
    return {
        "astronaut": folder / "astronaut.png",
        "coffee": folder / "coffee.png",
        "six": images / "t1.jpg",
        "actor": images / "Tom_Hanks_54745.png",
    }


@pytest.fixture(scope="session")
def astronaut(photographs) -> Image.Image:
    return load_image(photographs["astronaut"])
