"""Wan's own files become a diffusers folder and come back the same; what cannot be converted is refused and leaves nothing behind."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ROOT
from conversion_wan.conftest import FILES
from diffusers import AutoencoderKLWan
from in_process import refused
from safetensors.torch import load_file, save_file
from tiny_wan import TINY, TINY_ADALN, native_tensors, random_transformer
from transformers import T5Tokenizer, UMT5EncoderModel

from concat_id.config.loading import load_config
from concat_id.config.wan import WanScheduleConfig
from concat_id.conversion import wan_folders as conversion
from concat_id.conversion.card import wan_card
from concat_id.conversion.combining import average_checkpoints
from concat_id.conversion.folders import write_text_encoder
from concat_id.conversion.wan_folders import find_model, find_source, to_diffusers, to_native
from concat_id.conversion.weight_sources import open_source
from concat_id.models.wan.text_encoder import WanTextEncoder
from concat_id.models.wan.weights import load_wan_transformer, read_wan_tensors
from concat_id.weights.loading import write_sat_checkpoint, write_shards
from concat_id.weights.low_rank import DIFFUSERS_FILE


def assert_same(found, expected, dtype=None) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].to(dtype) if dtype else expected[name]) for name in expected)


def native(wan, variant):
    return torch.load(wan.native / FILES[variant], weights_only=True)


@pytest.mark.parametrize("variant", list(FILES))
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_there_and_back_is_the_same(wan, tmp_path, variant, suffix):
    target = tmp_path / f"back{suffix}"
    to_native(find_source(wan.folders[variant]), target)
    found = load_file(target) if suffix == ".safetensors" else torch.load(target, weights_only=True)
    assert_same(found, native(wan, variant))


@pytest.mark.parametrize("variant", list(FILES))
def test_configuration_and_parts(wan, variant):
    folder = wan.folders[variant]
    settings = json.loads((folder / "transformer" / "config.json").read_text())
    assert settings["_class_name"] == "ConcatIDWanTransformer" and settings["ref_modulation"] == (variant == "adaln")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "model_index.json", "pipeline.py", "scheduler", "text_encoder", "tokenizer", "transformer", "vae",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert FILES[variant] in card and card.count("sha256:") == 3 and ("AdaLN" in card) == (variant == "adaln")
    assert "num_inference_steps=50, guidance_scale=5, height=" in card and ", for one reference image." in card
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["shift"] == 5.0


def test_other_parts_are_those_of_the_libraries(wan):
    folder = wan.folders["adaln"]
    found = AutoencoderKLWan.from_pretrained(folder / "vae").state_dict()
    assert len(found) == len(torch.load(wan.native / "Wan2.1_VAE.pth", weights_only=True))
    ours = WanTextEncoder(wan.model.text_encoder.path, 24, torch.float32)
    tokens = T5Tokenizer.from_pretrained(folder / "tokenizer")("a man in a red hat", return_tensors="pt")
    theirs = UMT5EncoderModel.from_pretrained(folder / "text_encoder")(**tokens).last_hidden_state
    assert torch.allclose(theirs, ours.encode(["a man in a red hat"])[:, : theirs.shape[1]], atol=1e-5)


def test_dtype_and_shards(wan, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "write_shards", partial(write_shards, shard_size=50_000))
    encoder = replace(wan.model.text_encoder, path=str(wan.folders["adaln"] / "text_encoder"))
    model = replace(wan.model, schedule=WanScheduleConfig(shift=3.0), text_encoder=encoder)
    to_diffusers(find_source(wan.native / FILES["adaln"]), tmp_path / "hf", model, torch.bfloat16)
    assert json.loads((tmp_path / "hf" / "scheduler" / "scheduler_config.json").read_text())["shift"] == 3.0
    assert json.loads((tmp_path / "hf" / "text_encoder" / "config.json").read_text())["dtype"] == "bfloat16"
    shards, tensors = list((tmp_path / "hf" / "transformer").glob("*.safetensors")), read_wan_tensors(tmp_path / "hf")
    assert len(shards) > 2 and all(sum(tensor.nbytes for tensor in load_file(shard).values()) <= 50_000 for shard in shards)
    index = json.loads((tmp_path / "hf" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert_same(tensors, native(wan, "adaln"), torch.bfloat16)
    to_native(find_source(tmp_path / "hf"), tmp_path / "back.pt", torch.float32)
    assert {tensor.dtype for tensor in torch.load(tmp_path / "back.pt", weights_only=True).values()} == {torch.float32}


def test_text_encoders_that_do_not_fit_are_refused(wan, tmp_path):
    native = shutil.copytree(wan.native, tmp_path / "native") / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(torch.load(native) | {"blocks.0.attn.q.scale": torch.ones(1)}, native)
    folder = shutil.copytree(wan.folders["adaln"], tmp_path / "folder")
    save_file({f"text_encoders.{name}": tensor for name, tensor in load_file(folder / "text_encoder" / "model.safetensors").items()},
              folder / "text_encoder" / "model.safetensors")  # fmt: skip
    for source, told in ((native, "unexpected: blocks.0.attn.q.scale"), (folder, "missing: .*unexpected: text_encoders.encoder")):
        for width, words in ((32, f"does not fit UMT5EncoderModel .*{told}"), (48, "tokens: found 32, expected 48 by model.transformer")):
            refused(words, write_text_encoder, tmp_path / "hf", WanTextEncoder(source), None, width)


def training(folder, config):
    """A run of ours with one checkpoint."""
    network = random_transformer(config, 7)
    folder.mkdir()
    write_sat_checkpoint(folder, "20", network.state_dict())
    return network


def test_trainings_are_converted_too(wan, tmp_path):
    network = training(tmp_path / "run", TINY_ADALN)
    run, checkpoint = find_source(tmp_path / "run"), tmp_path / "run" / "20"
    assert run.path == find_source(checkpoint).path == find_source(checkpoint / "mp_rank_00_model_states.pt").path
    to_diffusers(run, tmp_path / "hf", wan.model)
    assert_same(dict(load_wan_transformer(tmp_path / "hf", TINY_ADALN, torch.float32).state_dict()), dict(network.state_dict()))
    to_native(run, tmp_path / "mine.pt")
    assert_same(mine := torch.load(tmp_path / "mine.pt", weights_only=True), read_wan_tensors(tmp_path / "hf"))
    released = wan.native / FILES["adaln"]
    for number, paths in enumerate(([checkpoint, released], [released, tmp_path / "hf"])):
        average_checkpoints(paths, None, tmp_path / str(number), False)
        expected = {name: (mine[name] + tensor) / 2 for name, tensor in native(wan, "adaln").items()}
        assert_same(read_wan_tensors(tmp_path / str(number)), expected)
    told = "first_stage.pt: does not fit .*missing: network"
    refused(told, average_checkpoints, [checkpoint, wan.native / FILES["first_stage"]], None, tmp_path / "x", False)
    (tmp_path / "hf" / DIFFUSERS_FILE).touch()
    refused(f"hf: found {DIFFUSERS_FILE}, expected whole", average_checkpoints, [checkpoint, tmp_path / "hf"], None, tmp_path / "x", False)
    (tmp_path / "hf" / DIFFUSERS_FILE).unlink()
    (file := tmp_path / "hf" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(file.read_bytes()[:-9])
    for path in (file, tmp_path / "hf"):
        refused(f"{file.name}: .*download", average_checkpoints, [checkpoint, path], None, tmp_path / "x", False)


def test_what_is_wan_and_what_is_not(wan, tmp_path, tiny_model):
    for path in (*(wan.native / file for file in FILES.values()), wan.native, *wan.folders.values(), wan.folders["adaln"] / "transformer"):
        assert find_source(path), path
    (tmp_path / "text.pt").write_text("no weights")
    for path in (wan.native / "Wan2.1_VAE.pth", tiny_model.parent / "transformer", tmp_path, tmp_path / "nowhere"):
        assert find_source(path) is None, path
    refused("text.pt: found no checkpoint", find_source, tmp_path / "text.pt")


def test_the_configuration_is_found_by_the_sizes(wan, tmp_path):
    """Without one, configs/wan*.yaml are tried, or what a training recorded."""
    mini = load_config(["configs/wan_mini.yaml"]).model
    random = random_transformer(mini.transformer)
    torch.save(native_tensors(random), tmp_path / "mini.pt")
    source = find_source(tmp_path / "mini.pt")
    assert find_model(source).transformer == mini.transformer
    refused("is of kind cogvideox, .* such as wan_mini's: .* train wan_1_3b", to_diffusers, source, tmp_path / "hf")
    told = "no known model has num_layers 2, hidden_size 48, text_hidden_size 32, .*; give its"
    refused(told, find_model, find_source(wan.native / FILES["adaln"]))
    training(tmp_path / "run", TINY)
    shutil.copyfile(ROOT / "configs" / "wan_mini.yaml", recorded := tmp_path / "run" / "training_config.yaml")
    assert find_model(source := find_source(tmp_path / "run")).transformer == mini.transformer
    recorded.write_text(recorded.read_text() + "\ndata: {video_size: [64, 96], fps: 8, max_num_frames: 5}\n")
    assert "height=64, width=96, num_frames=5).frames" in (card := wan_card(source, mini.transformer, find_model(source), "merge"))
    assert "fps=8)" in card


def test_refusals_leave_nothing_behind(wan, tmp_path, tiny_model):
    source, target = find_source(wan.native / FILES["first_stage"]), tmp_path / "hf"
    deeper, wider = (replace(wan.model, transformer=replace(TINY, **change)) for change in ({"num_layers": 3}, {"ffn_dim": 96}))
    refused("27 tensors are missing: blocks.2", to_diffusers, source, target, deeper)
    refused(r"blocks.0.ffn.0.weight: found the shape \(64, 48\) for .*, expected \(96, 48\)", to_diffusers, source, target, wider)
    mini = replace(wan.model, text_encoder=replace(wan.model.text_encoder, kind="t5"))
    refused("is of kind t5, expected Wan's", to_diffusers, source, target, mini)
    refused("expected Wan's transformer", to_diffusers, open_source(tiny_model.parent / "transformer"), target, wan.model)
    refused("command line: --weights: is for training runs", find_source, source.path, "ema")
    refused("exists already", to_diffusers, source, wan.folders["adaln"], wan.model)
    refused("found the ending '', expected .pt or .safetensors", to_native, source, target)
    refused("exists already", to_native, source, source.path)
    odd = {name.replace("blocks.1.ffn.0.bias", "surplus"): tensor for name, tensor in source.open().items()}
    told = "1 tensors are missing: blocks.1.ffn.0.bias; name another"
    refused(told, to_native, replace(source, open=lambda: odd), tmp_path / "native.pt")
    assert not list(tmp_path.iterdir())
