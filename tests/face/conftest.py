"""Both face models in one folder, and a portrait."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from concat_id.video.transforms import load_image


@pytest.fixture(scope="session")
def detector_folder(face_folder, recognizer_folder, tmp_path_factory) -> Path:
    """Both models in one folder, as in antelopev2."""
    folder = tmp_path_factory.mktemp("faces")
    for file in (face_folder / "det.onnx", recognizer_folder / "sface.onnx"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def astronaut(photographs) -> Image.Image:
    return load_image(photographs["astronaut"])
