"""Low-rank weights of a Wan's training: merged or kept they change the same weights, in diffusers' own loader too."""

import json
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, assert_close
from conversion_wan.conftest import FILES, SETTINGS, START
from diffusers_pipelines import save_adapter
from in_process import refused
from safetensors.torch import save_file
from tiny_wan import TINY_ADALN

from concat_id.config.cogvideox import LoraConfig
from concat_id.config.yaml_files import RUN_FILE
from concat_id.conversion.combining import merge_low_rank
from concat_id.conversion.low_rank_products import DIFFUSERS_FILE
from concat_id.conversion.wan_folders import find_source, to_diffusers, to_native
from concat_id.models.wan.weights import load_wan_transformer, read_wan_tensors
from concat_id.training.lora import LowRank, add_low_rank, low_rank_scale
from concat_id.weights.low_rank import save_low_rank

TARGETS = ["network.blocks.*.attn1.to_q", "network.blocks.1.attn2.to_out.0", "network.blocks.0.ffn.net.0.proj", "network.proj_out"]


@pytest.fixture(scope="module")
def trained(wan, tmp_path_factory):
    """An AdaLN training that began with a first stage: its folder, and the network as it is trained."""
    config = yaml.safe_load((ROOT / "configs" / "wan_mini.yaml").read_text())
    config["model"]["transformer"]["ref_modulation"] = True
    config["args"] = {"load": str(wan.native / FILES["first_stage"])}
    run = tmp_path_factory.mktemp("run")
    (run / RUN_FILE).write_text(yaml.safe_dump(config))
    (run / "latest").write_text("100")
    (run / "100").mkdir()
    network = load_wan_transformer(config["args"]["load"], TINY_ADALN, torch.float32)
    generator = torch.Generator().manual_seed(0)
    layers = add_low_rank(network, LoraConfig(rank=3, alpha=2.0, targets=TARGETS), generator)
    for layer in layers:
        torch.nn.init.normal_(network.get_submodule(layer).up.weight, std=0.3, generator=generator)
    products = {name: tensor for name, tensor in network.state_dict().items() if ".up." in name or ".down." in name}
    save_low_rank(run / "100", products, low_rank_scale(network))
    assert len(layers) == 5 and isinstance(network.network.proj_out, LowRank)
    return run, network


def outputs(network):
    """Of seeded input with one reference."""
    generator = torch.Generator().manual_seed(1)
    latents, refs, text = (torch.randn(shape, generator=generator) for shape in ((1, 3, 16, 8, 12), (1, 1, 16, 8, 12), (1, 24, 32)))
    with torch.no_grad():
        return network(latents, torch.tensor([500.0]), text, refs)


def test_merged_weights_compute_what_was_trained(trained, wan, tmp_path):
    run, network = trained
    assert merge_low_rank(run, tmp_path / "merged", None, None, False) == 5
    to_native(find_source(run / "100"), tmp_path / "mine.safetensors")
    for path in (tmp_path / "merged", tmp_path / "mine.safetensors"):
        merged = load_wan_transformer(path, TINY_ADALN, torch.float32, start=False)
        assert_close(outputs(merged), outputs(network), 2e-6)
    first = shutil.copytree(run, tmp_path / "first")
    (first / RUN_FILE).write_text((run / RUN_FILE).read_text().replace("ref_modulation: true", "ref_modulation: false"))
    assert merge_low_rank(first, tmp_path / "other", None, str(wan.native / FILES["adaln"]), False) == 5


def test_kept_beside_the_weights_they_are_diffusers(trained, wan, image, tmp_path):
    run, _ = trained
    source = find_source(run)
    for mode in ("merge", "keep"):
        to_diffusers(source, tmp_path / mode, wan.model, low_rank=mode)

    def latents_of(pipe):
        return pipe("a hat", reference_images=[image()], latents=START.clone(), output_type="latent", **SETTINGS).frames

    pipe, expected = wan.pipeline(tmp_path / "keep"), latents_of(wan.pipeline(tmp_path / "merge"))
    before = latents_of(pipe)
    pipe.load_lora_weights(tmp_path / "keep")
    assert_close(latents_of(pipe), expected, 2e-5)
    assert (before - expected).abs().max() > 1e-2
    card = (tmp_path / "keep" / "README.md").read_text()
    assert "low-rank weights, kept" in card and "load_lora_weights" in card and FILES["first_stage"] in card
    assert not (tmp_path / "merge" / DIFFUSERS_FILE).exists()
    told = f"keep: found {DIFFUSERS_FILE}, expected whole weights; .*: python sat/convert_weights.py to-sat {tmp_path / 'keep'} NEW.pt$"
    refused(told, load_wan_transformer, tmp_path / "keep", TINY_ADALN)
    for mode in ("merge", "keep"):  # and back, with nothing lost
        to_native(find_source(tmp_path / mode), tmp_path / f"{mode}.pt")
    merged, kept = (torch.load(tmp_path / f"{mode}.pt") for mode in ("merge", "keep"))
    assert merged.keys() == kept.keys() and all(torch.allclose(merged[name], kept[name], atol=1e-6) for name in merged)


def test_what_diffusers_saves_has_the_scale_of_its_metadata(wan, tmp_path):
    """Against its fused weights; saved with the adapter in place they are refused, and a variant is read."""
    folder = shutil.copytree(wan.folders["adaln"], tmp_path / "hf")
    pipe = wan.pipeline(folder)
    save_adapter(pipe, folder, r=4, lora_alpha=16, target_modules=["attn1.to_q", "proj_out"])
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"call fuse_lora\(\) and unload_lora_weights\(\), or upload the folder"):
        pipe.save_pretrained(tmp_path / "wrapped")
    pipe.transformer.save_pretrained(tmp_path / "wrapped" / "transformer")
    refused(r"in diffusers call pipe.fuse_lora\(\); pipe.unload_lora_weights\(\) and save again", find_source, tmp_path / "wrapped")
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "fused", variant="fp16", max_shard_size="50KB")
    for name in ("hf", "fused"):
        to_native(find_source(tmp_path / name), tmp_path / f"{name}.pt")
    found, expected, plain = (torch.load(path) for path in (tmp_path / "hf.pt", tmp_path / "fused.pt", wan.native / FILES["adaln"]))
    assert found.keys() == expected.keys() == plain.keys()
    for name in expected:
        assert_close(found[name], expected[name], 1e-6, name)
    assert (expected["head.head.weight"] - plain["head.head.weight"]).abs().max() > 0.1
    for index in (tmp_path / "fused" / "transformer").glob("*.json"):
        index.unlink() if "index" in index.name else None
    refused("transformer: found no weights, expected diffusion_pytorch_model.safetensors", find_source, tmp_path / "fused")


@pytest.mark.parametrize("layout", ["flat", "DeepSpeed's"])
def test_low_rank_weights_of_the_originals_training(wan, tmp_path, layout):
    """Files of Wan's names and peft's, here of later layers alone, which say nothing of what was trained."""
    generator, base = torch.Generator().manual_seed(2), wan.native / FILES["first_stage"]
    native = torch.load(base)
    pairs, expected = {}, dict(native)
    for layer in ("blocks.1.self_attn.q", "blocks.1.ffn.2"):
        height, width = native[f"{layer}.weight"].shape
        down, up = torch.randn(4, width, generator=generator), torch.randn(height, 4, generator=generator)
        pairs |= {f"{layer}.lora_A.default.weight": down, f"{layer}.lora_B.default.weight": up}
        expected[f"{layer}.weight"] = native[f"{layer}.weight"] + up @ down
    file = written(tmp_path / "epoch=0-step=500.ckpt", pairs, layout)
    out = tmp_path / "x"
    refused("low-rank products alone; name .* with --load", merge_low_rank, file, out, None, None, False)
    refused("--weights: is for training runs of this project", merge_low_rank, file, out, "ema", str(base), False)
    assert merge_low_rank(file, tmp_path / "merged", None, str(base), False) == 2
    to_native(find_source(file, load=str(base)), tmp_path / "mine.pt")
    for path in (tmp_path / "merged", tmp_path / "mine.pt"):
        found = read_wan_tensors(path)
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    save_file(pairs, tmp_path / "told.safetensors", {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8})})
    merge_low_rank(tmp_path / "told.safetensors", tmp_path / "told", None, str(base), False)
    change, twice = (read_wan_tensors(tmp_path / name)["blocks.1.ffn.2.weight"] for name in ("merged", "told"))
    assert_close(twice - native["blocks.1.ffn.2.weight"], 2 * (change - native["blocks.1.ffn.2.weight"]), 1e-6)
    file = written(tmp_path / "comfyui.ckpt", {f"diffusion_model.{name}": tensor for name, tensor in pairs.items()}, layout)
    merge_low_rank(file, tmp_path / "comfyui", None, str(base), False)
    assert torch.equal(read_wan_tensors(tmp_path / "comfyui")["blocks.1.ffn.2.weight"], change)
    file = written(tmp_path / "peft.ckpt", {f"base_model.model.{name}": tensor for name, tensor in pairs.items()}, layout)
    told = "of base_model.model.blocks.1.self_attn.q, expected .*, or Wan's own names; merge it where it was made"
    refused(told, merge_low_rank, file, out, None, "y", False)
    refused("in another program's names; merge them where they were made", read_wan_tensors, file)


def written(path, tensors, layout):
    """Write tensors as the original's training does, by itself or under DeepSpeed."""
    if layout == "flat":
        torch.save(tensors, path)
        return path
    (path / "checkpoint").mkdir(parents=True)
    (path / "latest").write_text("checkpoint")
    module = {f"pipe.dit.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"module": module, "dp_world_size": 2, **tensors}, path / "checkpoint" / "mp_rank_00_model_states.pt")
    return path


def test_whole_weights_of_the_originals_training_under_deepspeed(wan, tmp_path):
    native = torch.load(wan.native / FILES["adaln"])
    path = written(tmp_path / "last.ckpt", native, "DeepSpeed's")
    for number, given in enumerate((path, path / "checkpoint", path / "checkpoint" / "mp_rank_00_model_states.pt")):
        to_native(find_source(given), tmp_path / f"{number}.pt")
        found = torch.load(tmp_path / f"{number}.pt")
        assert found.keys() == native.keys() and all(torch.equal(found[name], native[name]) for name in native)


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1), {1: torch.zeros(1)}])
def test_files_of_something_else_are_told(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    refused("other.ckpt: ", merge_low_rank, tmp_path / "other.ckpt", tmp_path / "x", None, "y", False)
