"""Folders that appear whole or not at all: types, provenance, the way back, disks that are full, a place for every tensor."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from diffusers import CogVideoXTransformer3DModel
from in_process import no_file_larger_than, refused
from safetensors.torch import save_file
from transformers import T5EncoderModel

from concat_id.config.cogvideox import SamplerConfig, TransformerConfig
from concat_id.config.loading import load_config
from concat_id.conversion import card as card_module
from concat_id.conversion.check import TOLERANCE, largest_difference
from concat_id.conversion.folders import detect_model, to_hf, to_sat, write_text_encoder
from concat_id.conversion.weight_sources import open_source
from concat_id.models import tensor_names as names
from concat_id.models.text_encoder import TextEncoder
from concat_id.models.transformer import DiffusionTransformer
from concat_id.weights.loading import content_digest, load_sat_checkpoint, load_tensors


def test_types_and_provenance(rotary, tmp_path):
    source = open_source(rotary.checkpoint)
    to_hf(source, tmp_path / "half", rotary.config.model, dtype=torch.bfloat16)
    for path in (tmp_path / "half").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_tensors(path).values()} == {torch.bfloat16}, path
    for folder in (tmp_path / "half", rotary.folder):  # rounding is no difference
        assert largest_difference(source, folder, rotary.config.model.transformer) < TOLERANCE
    assert T5EncoderModel.from_pretrained(tmp_path / "half" / "text_encoder").dtype == torch.bfloat16
    card = (tmp_path / "half" / "README.md").read_text()
    model = rotary.config.model
    assert f"{Path(model.autoencoder.path).parent.name}/" not in card and "/mp_rank_00_model_states.pt" in card
    others = [content_digest(path) for path in (model.autoencoder.path, model.text_encoder.path)]
    assert all(digest in card for digest in (source.digest, *others))
    assert "up to 9 frames of 64x96, for up to 3 reference images." in card
    assert "num_inference_steps=2, guidance_scale=6)" in card and "license:" not in card and ": name it here." in card


def test_places_on_the_disk_are_not_passed_on(rotary, tmp_path):
    """As diffusers and transformers write them into what they save, and by the names of parts in the model card."""
    me, model = tmp_path / "me", deepcopy(rotary.config.model)
    vae = shutil.copytree(rotary.folder / "vae", me / "vae") / "config.json"
    t5 = shutil.copytree(model.text_encoder.path, me / "t5") / "config.json"
    for file in (vae, t5):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_name_or_path": "/home/me"}))
    t5.with_name("tokenizer_config.json").write_text('{"name_or_path": "/home/me", "tokenizer_file": "/home/me", "model_max_length": 16}')
    model.autoencoder.path, model.text_encoder.path = str(vae.parent), str(t5.parent)
    model.trained_refs, model.sampler = 1, SamplerConfig(guidance="dynamic", guidance_scale=4.5, ref_guidance_scale=(4.0,))
    to_hf(replace(open_source(rotary.checkpoint), path=Path("/me/w.pt")), tmp_path / "hf", model)
    hf, card = tmp_path / "hf", (tmp_path / "hf" / "README.md").read_text()
    assert not any("me/" in text or "/me" in text for text in (card, *(file.read_text() for file in hf.rglob("*.json"))))
    assert json.loads((hf / "tokenizer" / "tokenizer_config.json").read_text()) == {"model_max_length": 16}
    assert all(part in card for part in ("| `w.pt` |", "| `vae` |", "cfg=True, ref_guidance_scale=[4.0])", ", for one reference image."))


@pytest.mark.parametrize("name, base, licence", [
    ("cogvideox_2b", "THUDM/CogVideoX-2b", "apache-2.0"), ("cogvideox_5b", "THUDM/CogVideoX-5b", "other"),
])  # fmt: skip
def test_known_sizes_have_a_base_and_a_licence(name, base, licence, rotary, monkeypatch):
    monkeypatch.setattr(card_module, "content_digest", str)
    card = card_module.model_card(open_source(rotary.checkpoint), load_config([ROOT / "configs" / f"{name}.yaml"]).model, "merge")
    assert f"base_model: {base}\nlicense: {licence}\n" in card and "name it here" not in card


def test_back_to_sat_is_bit_equal(sincos, tmp_path):
    to_sat(sincos.folder, tmp_path / "back")
    original, back = load_sat_checkpoint(sincos.checkpoint).state_dict, load_sat_checkpoint(tmp_path / "back").state_dict
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original if name != names.POSITIONS)


def test_what_cannot_be_converted_is_told_and_leaves_nothing(rotary, tmp_path):
    source = open_source(rotary.checkpoint)
    mini = load_config([ROOT / "configs" / "mini.yaml"]).model
    told = "no known model has num_layers 1, hidden_size 128, in_channels 16, patch_size 2, text_hidden_size 32"
    refused(told, detect_model, {name: tensor for name, tensor in source.open().items() if ".layers.1." not in name})
    refused("found no mixins.patch_embed.proj.weight, expected a tensor of 4 dimensions", detect_model, {})
    refused("108 tensors are missing", to_hf, source, tmp_path / "x", mini)
    wider = replace(rotary.config.model, transformer=replace(rotary.config.model.transformer, text_hidden_size=48))
    told = r"text_proj.weight: found the shape \(128, 32\) for patch_embed.text_proj.weight, expected \(128, 48\); give the --base"
    refused(told, to_hf, source, tmp_path / "x", wider)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_go_back(rotary, tmp_path):
    def broken(name):
        return shutil.copytree(rotary.folder / "transformer", tmp_path / name)

    settings = json.loads((rotary.folder / "transformer" / "config.json").read_text())
    for change, told in (
        ({"_class_name": "WanTransformer3DModel"}, "found WanTransformer3DModel, expected CogVideoXTransformer3DModel"),
        ({"text_embed_dim": 48}, r"patch_embed.text_proj.weight: found shape \(128, 32\), but config.json makes it \(128, 48\)"),
        ({"patch_size_t": 2}, "patch_size_t: found 2, as relatives of CogVideoX have it"),
        ({"use_learned_positional_embeddings": True}, "use_learned_positional_embeddings: found True, as relatives"),
        ({"in_channels": 32}, "in_channels: found 32, as relatives of CogVideoX have it"),
        ({"num_layers": 3}, r"num_layers: 24 tensors are missing: .*; its config.json belongs to another model"),
    ):
        (name,) = change
        (broken(name) / "config.json").write_text(json.dumps(settings | change))
        refused(told, to_sat, tmp_path / name, tmp_path / "x")
    learned = broken("learned") / "diffusion_pytorch_model.safetensors"
    save_file(load_tensors(learned) | {"patch_embed.pos_embedding": torch.zeros(1, 8, 128)}, learned)
    refused("1 tensors are unknown: patch_embed.pos_embedding", to_sat, tmp_path / "learned", tmp_path / "x")
    wrapped = broken("wrapped") / "diffusion_pytorch_model.safetensors"
    save_file({name.replace("to_q.", "to_q.base_layer."): tensor for name, tensor in load_tensors(wrapped).items()}, wrapped)
    refused(r"expected weights alone, .* call pipe.fuse_lora\(\); pipe.unload_lora_weights", to_sat, tmp_path / "wrapped", tmp_path / "x")
    cut = broken("cut") / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    refused("found a truncated or damaged file", to_sat, tmp_path / "cut", tmp_path / "x")
    cut.unlink()
    refused("cut: found no weights, expected diffusion_pytorch_model.safetensors", to_sat, tmp_path / "cut", tmp_path / "x")
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))


def test_text_encoders_that_do_not_fit_are_refused_and_the_table_has_its_first_name(rotary, tmp_path):
    source = shutil.copytree(rotary.config.model.text_encoder.path, tmp_path / "t5")
    tensors = load_tensors(source / "model.safetensors")
    matrix, table = "encoder.block.0.layer.0.SelfAttention.q", tensors.pop("shared.weight")

    def write(changed, width=32):
        save_file({"shared.weight": table} | tensors | changed, source / "model.safetensors")
        write_text_encoder(tmp_path / "hf", TextEncoder(source), torch.bfloat16, width)

    refused(f"t5: does not fit T5EncoderModel .*unexpected: {matrix}.scale", write, {f"{matrix}.scale": torch.ones(1)})
    refused("t5: width of its tokens: found 32, expected 48 by model.transformer.text_hidden_size; change", write, {}, 48)
    refused(f"of another shape: {matrix}.weight", write, {f"{matrix}.weight": torch.ones(2, 3)})
    whole, tensors = tensors, {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in tensors.items()}
    refused("missing: encoder.block.0.* unexpected: text_encoders.t5xxl.transformer.encoder", write, {})
    assert not (tmp_path / "hf").exists()
    save_file(whole | {"encoder.embed_tokens.weight": table}, source / "model.safetensors")
    write_text_encoder(tmp_path / "hf", TextEncoder(source), None, 32)
    written = load_tensors(tmp_path / "hf" / "text_encoder" / "model.safetensors")
    assert written.keys() == whole.keys() | {"shared.weight"} and torch.equal(written["shared.weight"], table)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_text_encoders_settings_tell_its_type(rotary, tmp_path, key):
    source = shutil.copytree(rotary.config.model.text_encoder.path, tmp_path / "t5")
    config = {name: value for name, value in json.loads((source / "config.json").read_text()).items() if "dtype" not in name}
    (source / "config.json").write_text(json.dumps(config | {key: "bfloat16"}))
    for dtype, told in ((torch.float32, "float32"), (None, "bfloat16")):
        write_text_encoder(tmp_path / told, TextEncoder(source), dtype, 32)
        assert json.loads((tmp_path / told / "text_encoder" / "config.json").read_text()) == config | {key: told}


@pytest.mark.parametrize("direction", ["to-hf", "to-sat"])
def test_a_full_disk_leaves_nothing(rotary, tmp_path, direction):
    source = open_source(rotary.checkpoint)
    call = partial(to_hf, source, model=rotary.config.model) if direction == "to-hf" else partial(to_sat, rotary.folder)
    with no_file_larger_than():
        refused(r"out: could not be written .*; free some space", call, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [{}, {"num_layers": 30, "hidden_size": 1920, "num_attention_heads": 30, "position_embedding": "sincos"}])
def test_every_tensor_of_5b_and_2b_has_its_place(sizes):
    config = TransformerConfig(**{"num_layers": 42, "hidden_size": 3072, "num_attention_heads": 48} | sizes)
    with torch.device("meta"):
        converted = CogVideoXTransformer3DModel.from_config(names.diffusers_transformer_settings(config))
    targets = names.diffusers_targets(config.num_layers)
    made = dict(names.made_from(targets, DiffusionTransformer(config, device="meta").state_dict(), "test"))
    expected = {name: tensor.shape for name, tensor in converted.state_dict().items() if name not in names.IGNORED}
    assert {name: tensor.shape for name, tensor in made.items()} == expected


def test_surplus_tensors_and_uneven_positions_are_told(sincos):
    uneven = replace(sincos.config.model.transformer, width_interpolation=1.25)
    told = r"found height_interpolation 1.5 and width_interpolation 1.25; .*cannot be converted"
    refused(told, names.diffusers_transformer_settings, uneven)
    tensors = load_sat_checkpoint(sincos.checkpoint).state_dict | {"surplus": torch.zeros(3)}
    refused("1 tensors are unknown: surplus", list, names.made_from(names.diffusers_targets(uneven.num_layers), tensors, "w.pt"))
