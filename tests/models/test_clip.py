"""CLIP with small random weights in the real files."""

import json
import shutil

import numpy as np
import pytest
import torch
from in_process import refused
from models.tiny_clip import tiny_clip, write_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from concat_id.models.clip import ClipEncoder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip-tiny"
    folder.mkdir()
    tiny_clip(write_tokenizer(folder), positions=77).save_pretrained(folder)
    settings = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
                "resample": 3, "size": 32, "image_processor_type": "CLIPFeatureExtractor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return ClipEncoder(folder, "cpu")


def features(value):
    return value if isinstance(value, torch.Tensor) else value.pooler_output


def test_images_are_read_as_rgb(clip, folder):
    image = Image.new("RGB", (32, 32), (230, 60, 20))
    pixels = (np.asarray(image, np.float32) / 255 - MEAN) / STD
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = features(model.get_image_features(pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None]))[0].numpy()
    vectors = clip.encode_images([image, Image.merge("RGB", image.split()[::-1])])
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_batches_do_not_matter(clip, monkeypatch):
    images = [Image.effect_noise((40, 50), 60).convert("RGB") for _ in range(5)]
    whole = clip.encode_images(images)
    monkeypatch.setattr("concat_id.models.clip.BATCH_SIZE", 2)
    np.testing.assert_allclose(clip.encode_images(images), whole, atol=1e-5)


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


@pytest.mark.parametrize(("name", "kept", "message"), [
    ("config.json", 0, "config.json: found no such file"), ("model.safetensors", 0, "found no .*model.safetensors"),
    ("vocab.json", 0, "found no CLIP tokenizer, expected vocab.json"), ("model.safetensors", 2000, "model.safetensors: found a truncated"),
])  # fmt: skip
def test_incomplete_folders(folder, tmp_path, name, kept, message):
    for file in folder.iterdir():
        if file.name != name or kept:
            (tmp_path / file.name).write_bytes(file.read_bytes()[: kept if file.name == name else None])
    refused(message, ClipEncoder, tmp_path, "cpu")


def test_layers_that_the_settings_leave_out_are_missed(folder, tmp_path):
    """Older versions of transformers save counts of positions, which the network makes itself."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors") | {"text_model.embeddings.position_ids": torch.arange(77.0)}
    save_file(weights, tmp_path / "model.safetensors")
    ClipEncoder(tmp_path, "cpu")
    save_file(weights | {"vision_model.encoder.layers.2.mlp.fc1.bias": torch.ones(4)}, tmp_path / "model.safetensors")
    refused("found vision_model.encoder.layers.2.mlp.fc1.bias, expected a CLIP of the sizes in config.json", ClipEncoder, tmp_path, "cpu")
