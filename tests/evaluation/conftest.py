"""Real photographs of installed packages, clips made of them, and the script as a user starts it."""

from functools import partial

import pytest
from PIL import Image

from concat_id.evaluation.measuring import Instruments


@pytest.fixture(scope="session")
def instruments(detector, recognizer) -> Instruments:
    return Instruments(detector, recognizer, threshold=0.363, num_frames=4)


@pytest.fixture(scope="session")
def portraits(photographs) -> dict[str, Image.Image]:
    """Square images of three people."""
    astronaut, actor, six = (Image.open(photographs[name]).convert("RGB") for name in ("astronaut", "actor", "six"))
    return {"astronaut": astronaut.crop((90, 0, 350, 260)), "actor": actor, "singer": six.crop((480, 100, 700, 320))}


@pytest.fixture
def evaluate(call, face_folder, recognizer_folder, tmp_path):
    """Start sat/evaluate_identity.py for four frames a video; the report is in tmp_path/report."""
    options = "--output", tmp_path / "report", "--detector", face_folder, "--recognizer", recognizer_folder, "--frames", 4
    return partial(call, "evaluate_identity", *options, "--device", "cpu", "--clip", tmp_path / "no_clip")
