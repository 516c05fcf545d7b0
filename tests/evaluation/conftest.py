"""Real photographs of installed packages, clips made of them, and the script as a user starts it."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import skimage.data
from conftest import ROOT
from in_process import call_main, load_script
from PIL import Image

from concat_id.evaluation.measuring import Instruments
from concat_id.face.detection import FaceDetector
from concat_id.face.recognition import FaceRecognizer


@pytest.fixture(scope="session")
def instruments(face_folder, recognizer_folder) -> Instruments:
    detector, recognizer = FaceDetector(face_folder, "cpu"), FaceRecognizer.from_folder(recognizer_folder, "cpu")
    return Instruments(detector, recognizer, threshold=0.363, num_frames=4)


@pytest.fixture(scope="session")
def portraits() -> dict[str, Image.Image]:
    """Square images of three people."""
    images = Path(find_spec("insightface").submodule_search_locations[0]) / "data" / "images"
    six = Image.open(images / "t1.jpg").convert("RGB")
    return {
        "astronaut": Image.fromarray(skimage.data.astronaut()).crop((90, 0, 350, 260)),
        "actor": Image.open(images / "Tom_Hanks_54745.png").convert("RGB"),
        "singer": six.crop((480, 100, 700, 320)),
    }


@pytest.fixture
def evaluate(face_folder, recognizer_folder, tmp_path, monkeypatch, capsys):
    """Call the script's main with options; returns (exit code, standard error) and keeps standard output as `printed`."""
    script = load_script(ROOT / "sat" / "evaluate_identity.py")

    def call(*options) -> tuple[int, str]:
        base = ["--output", tmp_path / "report", "--detector", face_folder, "--recognizer", recognizer_folder, "--frames", "4"]
        base += ["--device", "cpu", "--clip", tmp_path / "no_clip"]
        ended = call_main(script, [*base, *options], monkeypatch, capsys)
        call.printed = ended.out
        return ended.code, ended.err

    return call
