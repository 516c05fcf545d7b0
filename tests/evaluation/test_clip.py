"""CLIP with small random weights in the real files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation.clips import scene, write_clip
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from concat_id.errors import UserError
from concat_id.evaluation.layouts import Sample
from concat_id.evaluation.measuring import load_instruments, measure
from concat_id.models.clip import ClipEncoder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(folder):
    """Letters for pieces, so that a word of six letters has six tokens."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(pieces)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip-tiny"
    folder.mkdir()
    size = write_tokenizer(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    text, vision = small | tokens | {"vocab_size": size}, small | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    settings = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
                "resample": 3, "size": 32, "image_processor_type": "CLIPFeatureExtractor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return ClipEncoder(folder, "cpu")


def features(value):
    return value if isinstance(value, torch.Tensor) else value.pooler_output


def test_pictures_are_read_as_rgb(clip, folder):
    picture = Image.new("RGB", (32, 32), (230, 60, 20))
    pixels = (np.asarray(picture, np.float32) / 255 - MEAN) / STD
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = features(model.get_image_features(pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None]))[0].numpy()
    vectors = clip.encode_images([picture, Image.merge("RGB", picture.split()[::-1])])
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_batches_do_not_matter(clip, monkeypatch):
    pictures = [Image.effect_noise((40, 50), 60).convert("RGB") for _ in range(5)]
    whole = clip.encode_images(pictures)
    monkeypatch.setattr("concat_id.models.clip.BATCH_SIZE", 2)
    np.testing.assert_allclose(clip.encode_images(pictures), whole, atol=1e-5)


def test_prompt_within_the_limit(clip, folder):
    prompt = "a b" + " c" * 73
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = [clip.tokenizer.bos_token_id, *clip.tokenizer(prompt, add_special_tokens=False)["input_ids"], clip.tokenizer.eos_token_id]
    assert len(tokens) == 77
    with torch.no_grad():
        expected = features(model.get_text_features(input_ids=torch.tensor([tokens])))[0].numpy()
    vector, chunks = clip.encode_text(prompt)
    assert chunks == 1
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_longer_prompts_are_read_to_the_end(clip):
    start = " ".join("a" * 75)
    vectors = [clip.encode_text(start + end) for end in ("", " b", " c", " " + " ".join("c" * 75))]
    assert [chunks for _, chunks in vectors] == [1, 2, 2, 2]
    assert np.abs(vectors[1][0] - vectors[2][0]).max() > 1e-4, "what comes after 77 tokens counts"
    second = clip.encode_text(" ".join("c" * 75))[0]
    mean = vectors[0][0] + second
    np.testing.assert_allclose(vectors[3][0], mean / np.linalg.norm(mean), atol=1e-5)
    assert clip.encode_text("")[1] == 1


def test_scores_of_a_video(clip, instruments, portraits, tmp_path):
    portraits["astronaut"].save(tmp_path / "a.png")
    video = write_clip(tmp_path / "a.mp4", [scene(portraits["astronaut"])] * 3)
    prompt = "a woman in a suit " * 8
    result = measure(Sample("a", video, (tmp_path / "a.png",), prompt), replace(instruments, clip=clip))
    scores = result["scores"]
    assert -1 <= scores["clip_text"] <= 1 and scores["clip_consistency"] > 0.99 and 0 <= scores["clip_distance"] < 0.5
    assert any("77 tokens" in note and "2 chunks" in note for note in result["notes"])
    assert "clip_text" not in measure(Sample("a", video, (tmp_path / "a.png",), prompt), instruments)["scores"]


def test_missing_weights_are_told(face_folder, recognizer_folder, tmp_path):
    tools = load_instruments("cpu", detector=str(face_folder), recognizer=str(recognizer_folder), clip=str(tmp_path / "clip"),
                             viclip="models/viclip", num_frames=4, threshold=None)  # fmt: skip
    assert tools.threshold == 0.363 and tools.clip is None
    assert all(f"into {tmp_path / 'clip'}" in tools.not_computed[name] for name in ("clip_text", "clip_distance"))


@pytest.mark.parametrize(("name", "kept", "message"), [
    ("config.json", 0, "found no .*config.json"), ("model.safetensors", 0, "found no .*model.safetensors"),
    ("vocab.json", 0, "found no .*vocab.json"), ("model.safetensors", 2000, "model.safetensors: found a truncated"),
])  # fmt: skip
def test_incomplete_folders(folder, tmp_path, name, kept, message):
    for file in folder.iterdir():
        if file.name != name or kept:
            (tmp_path / file.name).write_bytes(file.read_bytes()[: kept if file.name == name else None])
    with pytest.raises(UserError, match=message) as caught:
        ClipEncoder(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
