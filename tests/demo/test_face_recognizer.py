"""demo/train_face_recognizer.py: from a manifest to an .onnx file that the real loader reads, and mistakes in one line."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from in_process import call_main, load_script
from PIL import Image

from concat_id.errors import UserError
from concat_id.face.detection import Face
from concat_id.face.recognition import FaceRecognizer
from networks.face_recognizer import measure, plain, read_examples, vary
from networks.recognition_network import RecognitionNetwork, to_onnx

PEOPLE, HELD_OUT = 16, 4


@pytest.fixture
def script(monkeypatch, capsys):
    """Call the script's main with options; returns (exit code, standard output, standard error)."""
    module = load_script(ROOT / "demo" / "train_face_recognizer.py")

    def call(*options):
        return call_main(module, options, monkeypatch, capsys)

    return call


def face_of(person: int, take: int) -> Image.Image:
    """Blotches that are the person's, under a light and noise that are the take's."""
    blotches = Image.fromarray(np.random.default_rng(person).integers(40, 216, (5, 5, 3), dtype=np.uint8)).resize((96, 96))
    random = np.random.default_rng([person, take])
    return Image.fromarray((np.asarray(blotches) + random.normal(random.uniform(-20, 20), 8, (96, 96, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture
def manifest(tmp_path):
    """Three recordings of each of 20 people, the last four of whom are test people, as sat/prepare_clips.py writes them."""
    clips = []
    for person in range(PEOPLE + HELD_OUT):
        for take in range(3):
            home = tmp_path / f"p{person}_{take}"
            (home / "person_1").mkdir(parents=True)
            face_of(person, take).save(home / "person_1" / "0.png")
            np.savez(home / "vectors.npz", files=["person_1/0.png"], vectors=np.eye(1, 128, dtype=np.float32))
            clips.append({"video_path": f"{home.name}.png", "caption": "a person", "recording": home.name,
                          "split": "train" if person < PEOPLE else "test",
                          "people": [{"folder": f"{home.name}/person_1", "identity": f"p{person}"}]})  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps({"recognizer": "SFace", "clips": clips}))
    return tmp_path / "manifest.json"


def test_people_are_told_apart_by_the_file_that_is_written(script, manifest, tmp_path):
    output = tmp_path / "own"
    code, said, _ = script(manifest, "--output", output, "--steps", 60, "--batch-size", 16)
    assert code == 0 and "48 faces of 16 people to learn from, 12 faces held out" in said
    facts = json.loads((output / "training.json").read_text())
    assert facts["nearest"] >= 0.75 and facts["same"] > facts["other"] + 0.2, facts
    assert sorted(path.name for path in output.iterdir()) == ["own.onnx", "training.json"] and not (tmp_path / "own.training").exists()
    recognizer = FaceRecognizer.from_folder(output, "cpu")
    assert recognizer.name == "own" and recognizer.threshold == pytest.approx(facts["threshold"], abs=5e-4)
    vectors = recognizer.embed_crops([face_of(person, take).resize((112, 112)) for person in range(PEOPLE, PEOPLE + 2) for take in (0, 1)])
    cosines = vectors @ vectors.T  # of two people twice
    assert min(cosines[0, 1], cosines[2, 3]) > cosines[:2, 2:].max()
    code, _, told = script(manifest, "--output", output)
    assert code == 2 and f"{output}: exists already" in told


def test_the_file_holds_the_network(tmp_path):
    torch.manual_seed(0)
    network = RecognitionNetwork().eval()
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        for values in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.uniform_(values, 0.5, 1.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    (tmp_path / "net.onnx").write_bytes(to_onnx(network, {"threshold": "0.25"}).SerializeToString())
    recognizer = FaceRecognizer.from_folder(tmp_path, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = network(torch.nn.functional.avg_pool2d(pixels, 2)).numpy()
    np.testing.assert_allclose(recognizer.embed_crops([Image.fromarray(image) for image in images]), expected, atol=1e-4)
    assert recognizer.threshold == 0.25 and np.abs(expected[0] - expected[1]).max() > 1e-3
    whole = recognizer.embed(Image.fromarray(images[0]), Face(np.zeros(4), np.random.default_rng(1).uniform(30, 80, (5, 2)), 1.0))
    assert whole.shape == (192,)


def test_faces_vary_around_what_they_are():
    faces = torch.stack([torch.from_numpy(np.array(face_of(person, 0).resize((72, 72)))).permute(2, 0, 1) for person in range(4)])
    varied, again = (vary(faces, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(varied, again) and not torch.equal(varied, vary(faces, torch.Generator().manual_seed(1)))
    clean = plain(faces)
    assert clean.shape == varied.shape == (4, 3, 56, 56)
    centred = [(part - part.mean((1, 2, 3), keepdim=True)).flatten(1) for part in (varied, clean)]
    cosines = torch.nn.functional.cosine_similarity(centred[0][:, None], centred[1][None], dim=2)
    assert torch.equal(cosines.argmax(1), torch.arange(4))


def test_one_recording_is_no_proof():
    vectors = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 1]], np.float32)
    found = measure(vectors, ["a", "a", "a", "b"], ["1", "1", "2", "3"])
    assert found.same == pytest.approx(0.8) and found.other == pytest.approx(0.2) and found.nearest == 1 and found.matched == 1
    with pytest.raises(UserError, match="one recording each"):
        measure(vectors, ["a", "a", "b", "c"], ["1", "1", "2", "3"])


def test_mistakes_are_told_in_a_line(script, manifest, tmp_path):
    content = json.loads(manifest.read_text())
    for clip in content["clips"]:
        clip["split"] = "train"
        clip["people"][0]["identity"] = "p0" if "p0" in clip["recording"] else None
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="found 1 people with two images or more to learn from and 0 to measure on.*identities"):
        read_examples(manifest)
    for options, expected in {
        ("--steps", 0): "--steps: found 0, expected at least 1",
        ("--batch-size", 2): "--batch-size: found 2, expected at least 4",
        ("--learning-rate", 0): "--learning-rate: found 0.0, expected a positive number",
    }.items():
        code, _, told = script(manifest, "--output", tmp_path / "none", *options)
        assert code == 2 and expected in told and "Traceback" not in told
