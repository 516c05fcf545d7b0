"""Folders that appear whole or not at all: types, shards, provenance, the way back, disks that are full."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT

from concat_id.config.loading import load_config
from concat_id.conversion import names
from concat_id.conversion.check import largest_difference
from concat_id.conversion.folders import detect_model, to_hf, to_sat, write_shards
from concat_id.conversion.weight_sources import open_source
from concat_id.errors import UserError
from concat_id.weights.loading import content_digest, load_sat_checkpoint, load_tensors


def test_types_and_provenance(rotary, tmp_path):
    source = open_source(rotary.checkpoint)
    to_hf(source, tmp_path / "half", rotary.config.model, dtype=torch.bfloat16)
    for path in (tmp_path / "half").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_tensors(path).values()} == {torch.bfloat16}, path
    assert 1e-4 < largest_difference(source, tmp_path / "half", rotary.config.model.transformer) < 0.1
    assert largest_difference(source, rotary.folder, rotary.config.model.transformer) < 2e-5
    card = (tmp_path / "half" / "README.md").read_text()
    model = rotary.config.model
    others = [content_digest(path) for path in (model.autoencoder.path, model.text_encoder.path)]
    assert all(digest in card for digest in (source.digest, *others))
    assert "up to 9 frames of 64x96 with 3 reference images" in card and str(tmp_path) not in card


def test_shards(tmp_path):
    tensors = {f"t{index}": torch.full((100,), float(index)) for index in range(5)}
    write_shards(tmp_path, "model", tensors.items(), shard_size=900)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    assert index["metadata"]["total_size"] == 2000
    for name, file in index["weight_map"].items():
        assert np.array_equal(load_tensors(tmp_path / file)[name], tensors[name])


def test_back_to_sat_is_bit_equal(sincos, tmp_path):
    to_sat(sincos.folder, tmp_path / "back")
    original, back = load_sat_checkpoint(sincos.checkpoint).state_dict, load_sat_checkpoint(tmp_path / "back").state_dict
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original if name != names.POSITIONS)


def test_what_cannot_be_converted_is_told_and_leaves_nothing(rotary, tmp_path):
    source = open_source(rotary.checkpoint)
    mini = load_config([ROOT / "configs" / "mini.yaml"]).model
    with pytest.raises(UserError, match="no known model has 2 layers of width 128"):
        detect_model(source.open(), [("mini", mini)])
    with pytest.raises(UserError, match="found no mixins.patch_embed.proj.weight, expected a tensor of 4 dimensions"):
        detect_model({}, [])
    with pytest.raises(UserError, match="108 tensors are missing"):
        to_hf(source, tmp_path / "x", mini)
    (tmp_path / "wider.yaml").write_text("model: {transformer: {text_hidden_size: 48}}")
    wider = load_config([*rotary.bases, str(tmp_path / "wider.yaml")]).model
    with pytest.raises(UserError, match=r"text_proj.weight: found shape \(128, 32\), expected \(128, 48\); give the --base"):
        to_hf(source, tmp_path / "x", wider)
    assert [path.name for path in tmp_path.iterdir()] == ["wider.yaml"]


def test_folders_that_cannot_go_back(rotary, tmp_path):
    def broken(name):
        return shutil.copytree(rotary.folder / "transformer", tmp_path / name)

    with pytest.raises(UserError, match=r"config.json: found no such file, expected a diffusers folder"):
        to_sat(rotary.checkpoint, tmp_path / "x")
    settings = json.loads((rotary.folder / "transformer" / "config.json").read_text())
    (broken("other") / "config.json").write_text(json.dumps(settings | {"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(UserError, match="found WanTransformer3DModel, expected CogVideoXTransformer3DModel"):
        to_sat(tmp_path / "other", tmp_path / "x")
    (broken("wide") / "config.json").write_text(json.dumps(settings | {"text_embed_dim": 48}))
    with pytest.raises(UserError, match=r"patch_embed.text_proj.weight: found shape \(128, 32\), but config.json makes it \(128, 48\)"):
        to_sat(tmp_path / "wide", tmp_path / "x")
    (broken("deep") / "config.json").write_text(json.dumps(settings | {"num_layers": 3}))
    with pytest.raises(UserError, match=r"deep: 24 tensors are missing: .*; its config.json belongs to another model"):
        to_sat(tmp_path / "deep", tmp_path / "x")
    cut = broken("cut") / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(UserError, match="found a truncated or damaged file"):
        to_sat(tmp_path / "cut", tmp_path / "x")
    cut.unlink()
    with pytest.raises(UserError, match="cut: found no weights, expected diffusion_pytorch_model.safetensors"):
        to_sat(tmp_path / "cut", tmp_path / "x")
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("direction", ["to-hf", "to-sat"])
def test_a_full_disk_leaves_nothing(rotary, tmp_path, direction):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = open_source(rotary.checkpoint)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(UserError, match=r"out: could not be written .*; free some space"):
            if direction == "to-hf":
                to_hf(source, tmp_path / "out", rotary.config.model)
            else:
                to_sat(rotary.folder, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
