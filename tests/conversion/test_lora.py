"""Low-rank weights: the same outputs merged and kept, in diffusers' own loader too, and the way back."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from conftest import assert_close
from diffusers_pipelines import save_adapter
from in_process import refused

from concat_id.conversion.check import TOLERANCE, largest_difference
from concat_id.conversion.folders import to_hf, to_sat
from concat_id.conversion.low_rank_products import DIFFUSERS_FILE, Product, read_diffusers_products, read_sat_products, to_diffusers
from concat_id.conversion.weight_sources import open_source
from concat_id.models.tensor_names import POSITIONS
from concat_id.training.lora import FUSED
from concat_id.weights.loading import load_sat_checkpoint, load_tensors, write_sat_checkpoint
from concat_id.weights.low_rank import load_low_rank, merge_sat_products, save_low_rank

LAYERS = (  # one of every kind
    "transformer.layers.0.attention.query_key_value", "transformer.layers.1.attention.dense", "transformer.layers.1.mlp.dense_h_to_4h",
    "mixins.adaln_layer.adaLN_modulations.1.1", "mixins.final_layer.linear", "time_embed.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def products(rotary, tmp_path_factory):
    """Folder of a training checkpoint with products beside the tiny model's layers."""
    folder = tmp_path_factory.mktemp("lora") / "100"
    folder.mkdir()
    weights = load_sat_checkpoint(rotary.checkpoint).state_dict
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layer in LAYERS:
        height, width = weights[f"{layer}.weight"].shape
        rank = 3 * FUSED.get(layer.rpartition(".")[2], 1)
        tensors[f"{layer}.down.weight"] = torch.randn(rank, width, generator=generator) * 0.1
        tensors[f"{layer}.up.weight"] = torch.randn(height, 3, generator=generator) * 0.1
    save_low_rank(folder, tensors, 0.7)
    return folder


@pytest.fixture(scope="module")
def folders(rotary, products, tmp_path_factory):
    """The model with products merged and kept."""
    source, made = open_source(products, load=str(rotary.checkpoint)), tmp_path_factory.mktemp("lora hf")
    for mode in ("merge", "keep"):
        to_hf(source, made / mode, rotary.config.model, low_rank=mode)
    to_hf(source, made / "half", rotary.config.model, torch.bfloat16, "keep")
    return made


def test_merged_and_kept_are_the_same_change(rotary, products, folders):
    """Against products added to SAT's weights, of which those of fused layers change all that came of these."""
    source = open_source(products, load=str(rotary.checkpoint))
    for mode in ("merge", "keep", "half"):
        assert largest_difference(source, folders / mode, rotary.config.model.transformer) < TOLERANCE
    plain = open_source(rotary.checkpoint)
    assert largest_difference(plain, folders / "merge", rotary.config.model.transformer) > 1e-2
    assert "low-rank weights, merged" in (folders / "merge" / "README.md").read_text()
    card = (folders / "keep" / "README.md").read_text()
    assert "low-rank weights, kept" in card and "pipe.load_lora_weights(folder" in card
    assert not (folders / "merge" / DIFFUSERS_FILE).exists()


def test_diffusers_loads_what_is_kept(rotary, latents_of, folders):
    pipe = rotary.pipeline(folders / "keep")
    before = latents_of(pipe)
    pipe.load_lora_weights(folders / "keep")
    expected = latents_of(rotary.pipeline(folders / "merge"))
    assert_close(latents_of(pipe), expected, 2e-5)
    assert (before - expected).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"call fuse_lora\(\) and unload_lora_weights\(\), or upload the folder"):
        pipe.save_pretrained("never")


def test_back_to_sat(rotary, products, folders, tmp_path):
    to_sat(folders / "keep", tmp_path / "back")
    back = load_sat_checkpoint(tmp_path / "back").state_dict
    expected = open_source(products, load=str(rotary.checkpoint)).merged()
    plain, (tensors, scale) = load_sat_checkpoint(rotary.checkpoint).state_dict, load_low_rank(products)
    for layer in ("transformer.layers.1.attention.dense", "time_embed.0"):
        product = tensors[f"{layer}.up.weight"] @ tensors[f"{layer}.down.weight"]
        assert_close(expected[f"{layer}.weight"], plain[f"{layer}.weight"] + scale * product, 1e-6)
    for layer in LAYERS:
        assert_close(back[f"{layer}.weight"], expected[f"{layer}.weight"], 1e-6)
    once = shutil.copytree(rotary.checkpoint, tmp_path / "once")  # as to-sat --lora keep wrote it
    shutil.copy(products / "lora.safetensors", once)
    refused(f"{once}: found lora.safetensors, expected whole weights: .* merge-lora {once} FOLDER", load_sat_checkpoint, once)
    assert torch.equal(open_source(once).merged()[f"{LAYERS[0]}.weight"], expected[f"{LAYERS[0]}.weight"])


def test_products_are_not_rounded_to_weights_of_16_bits_where_float32_is_asked_for(rotary, products, folders, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in load_sat_checkpoint(rotary.checkpoint).state_dict.items()}
    (tmp_path / "half").mkdir()
    write_sat_checkpoint(tmp_path / "half", "1", half)
    source = open_source(products, load=str(tmp_path / "half"))
    to_hf(source, tmp_path / "hf", rotary.config.model, torch.float32)
    assert largest_difference(source, tmp_path / "hf", rotary.config.model.transformer) < TOLERANCE
    weights, product = source.open(), source.products["time_embed.0"]
    for name, folder in (("back", tmp_path / "hf"), ("merged", folders / "half")):
        to_sat(folder, tmp_path / name, torch.float32)
        found = load_sat_checkpoint(tmp_path / name).state_dict["time_embed.0.weight"]
        assert weights["time_embed.0.weight"].dtype == torch.bfloat16 and found.dtype == torch.float32
        assert_close(found, weights["time_embed.0.weight"].float() + product.up @ product.down, 1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_products_are_not_rounded_away_by_weights_of_8_bits(rotary, tmp_path, dtype):
    """Of a part of a fused layer, whose other parts have none; and of SAT's weights."""
    folder = shutil.copytree(rotary.folder, tmp_path / "hf")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_tensors(file).items()}
    safetensors.torch.save_file(weights, file)
    pair = {"down": torch.ones(1, 128), "up": torch.full((128, 1), 2**-10)}
    layer = "transformer_blocks.0.attn1.to_v"
    kept = {f"transformer.{layer}.lora_A.weight": pair["down"], f"transformer.{layer}.lora_B.weight": pair["up"]}
    safetensors.torch.save_file(kept, folder / DIFFUSERS_FILE)
    to_sat(folder, tmp_path / "back", dtype)
    back = load_sat_checkpoint(tmp_path / "back").state_dict
    expected = (weights[f"{layer}.weight"].float() + 2**-10).bfloat16()
    assert torch.equal(back[f"{LAYERS[0]}.weight"].chunk(3)[2], expected)
    assert torch.equal(back[f"{LAYERS[0]}.weight"].chunk(3)[0], weights["transformer_blocks.0.attn1.to_q.weight"].bfloat16())
    matrices = {f"dense.matrix_{side}.0": tensor for side, tensor in (("A", pair["down"]), ("B", pair["up"]))}
    merged = merge_sat_products({"dense.original.weight": weights[f"{layer}.weight"], **matrices}, "test", 1.0)
    assert torch.equal(merged["dense.weight"], expected)
    shapes = {"A.0": (1, 4), "B.0": (4, 1), "A.1": (1, 4), "B.1": (8, 1)}
    parts = {f"dense.matrix_{name}": torch.full(shape, int(name[-1]) + 1.0) for name, shape in shapes.items()}
    merged = merge_sat_products({"dense.original.weight": torch.zeros(12, 4), **parts}, "test", 1.0)["dense.weight"]
    assert merged[:, 0].tolist() == 4 * [1.0] + 8 * [4.0], "parts of queries and of fewer keys and values"


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@pytest.mark.parametrize("settings", [
    {"r": 4, "lora_alpha": 16, "target_modules": ["to_q", "to_v", "to_out.0"]},
    {"r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_k", "linear", "proj_out", "ff.net.2"], "use_rslora": True,
     "rank_pattern": {"to_q": 2, r"transformer_blocks\.0\..*linear": 3, "o_k": 7, "net.2": 5},
     "alpha_pattern": {"^proj_out": 1, r"0\.attn1\.to_[qk]": 32, "norm1.linear": 5, "attn1": 9, "o_k": 7}},
])  # fmt: skip
def test_what_diffusers_saves_has_the_scale_of_its_metadata(rotary, tmp_path, settings):
    """Alpha and patterns as peft takes them, against its fused weights."""
    folder = shutil.copytree(rotary.folder, tmp_path / "hf")
    save_adapter(rotary.pipeline(folder), folder, **settings)
    pipe = rotary.pipeline(folder)
    pipe.load_lora_weights(folder)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "fused")
    for source in (folder, tmp_path / "fused"):
        to_sat(source, tmp_path / f"{source.name} sat")
    paths = tmp_path / "hf sat", tmp_path / "fused sat", rotary.checkpoint
    found, expected, plain = (load_sat_checkpoint(path).state_dict for path in paths)
    for name in expected.keys() - {POSITIONS}:
        assert_close(found[name], expected[name], 1e-6, name)
    assert (expected[f"{LAYERS[0]}.weight"] - plain[f"{LAYERS[0]}.weight"]).abs().max() > 0.1


@pytest.mark.parametrize("metadata, told", [
    ('{"transformer.r": 2,', "lora_adapter_metadata: line 1"),
    ("[]", "found a list, expected settings by name"),
    ({"use_dora": True}, "use_dora: found True, expected plain low-rank products; load them in diffusers, call pipe.fuse_lora"),
    ({"of_tomorrow": {"x": 1}}, "of_tomorrow: found {'x': 1}, expected plain"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights: found 'pissa', expected plain"),
    ({"r": 3}, "r: found 3 for a, expected 2 as its weights have"),
    ({"lora_alpha": "x"}, "lora_alpha: found 'x' for a, expected a number"),
    ({"lora_alpha": float("nan")}, "lora_alpha: found nan for a"),
    ({"alpha_pattern": {"(": 1}}, r"alpha_pattern: found {'\(': 1}, expected names or patterns"),
    ({"rank_pattern": [1]}, r"rank_pattern: found \[1\]"),
])  # fmt: skip
def test_metadata_that_gives_no_scale_is_told(tmp_path, metadata, told):
    if isinstance(metadata, dict):
        metadata = json.dumps({f"transformer.{key}": value for key, value in ({"r": 2} | metadata).items()})
    pair = {"transformer.a.lora_A.weight": torch.zeros(2, 3), "transformer.a.lora_B.weight": torch.zeros(4, 2)}
    safetensors.torch.save_file(pair, tmp_path / DIFFUSERS_FILE, {"lora_adapter_metadata": metadata})
    refused(told, read_diffusers_products, tmp_path)


@pytest.mark.parametrize("names, told", [
    (["transformer.blocks.0.attn1.to_q.lora_A.weight"], "put it into a diffusers folder as pytorch_lora_weights.safetensors"),
    (["blocks.0.self_attn.q.lora_A.weight", "blocks.0.self_attn.q.alpha"], "found blocks.0.self_attn.q.alpha, which is not read"),
    (["lora_unet__blocks_0_ffn_0.lora_down.weight"], "found lora_unet__blocks_0_ffn_0.lora_down.weight, which is not read"),
    (["a.lora_up.weight", "a.lora_down.weight", "b.diff_b"], "which is not read, expected lora.safetensors of a training, or"),
])  # fmt: skip
@pytest.mark.parametrize("load", [None, "x"])
def test_low_rank_files_in_other_names_are_told(tmp_path, names, told, load):
    file = tmp_path / DIFFUSERS_FILE
    safetensors.torch.save_file({name: torch.zeros(2, 2) for name in names}, file)
    for path in (file, tmp_path)[: 1 + bool(load)]:
        refused(f"{file}: found .*{told.removeprefix('found ')}", open_source, path, load=load)


def test_what_does_not_fit_is_told(rotary, products, tmp_path):
    refused("100: holds low-rank products alone; name the checkpoint they were trained on with --load", open_source, products)
    refused(r"--load x: found no low-rank weights in .*, expected lora.safetensors", open_source, rotary.checkpoint, load="x")
    refused("nowhere.pt: no such folder, expected a SAT", open_source, tmp_path / "nowhere.pt", load=str(rotary.checkpoint))
    run = shutil.copytree(products, tmp_path / "run" / "100")  # whose recorded configuration names what it started from
    (run.parent / "training_config.yaml").write_text(f"args:\n  load: {str(rotary.checkpoint)!r}\n")
    assert open_source(run).base.path.parent.parent == rotary.checkpoint
    refused("found low-rank products, expected the whole weights", open_source, products, load=str(run))
    strange = {"strange": read_sat_products(products)[LAYERS[0]]}
    refused("strange: diffusers has no such layer; use --lora merge", to_diffusers, strange, 2)
    alien = replace(open_source(rotary.checkpoint), products={"time_embed.0": Product(torch.zeros(1, 3), torch.zeros(64, 1))})
    refused(r"time_embed.0: found a product for \(64, 3\), expected \(64, 128\)", lambda: dict(alien.merged()))
    pair = {"transformer.a.lora_A.weight": torch.zeros(2, 3), "transformer.a.lora_B.weight": torch.full((4, 2), 1 + 2**-7).bfloat16()}
    safetensors.torch.save_file(pair | {"transformer.a.alpha": torch.tensor(3.0)}, tmp_path / DIFFUSERS_FILE)
    assert (read_diffusers_products(tmp_path)["a"].up.float() == 1.5 * (1 + 2**-7)).all(), "alpha / rank, not rounded to bfloat16"
    safetensors.torch.save_file(pair | {"transformer.a.dora_scale": torch.ones(4)}, tmp_path / DIFFUSERS_FILE)
    refused("found a.dora_scale, expected pairs", read_diffusers_products, tmp_path)
    for other in ("text_encoder.a.lora_A.weight", "diffusion_model.a.lora_A.weight", "norm_final.diff_b", "transformer_2.a.alpha"):
        safetensors.torch.save_file(pair | {other: torch.ones(1)}, tmp_path / DIFFUSERS_FILE)
        refused(f"found {other}, expected names that start with transformer.", read_diffusers_products, tmp_path)
    safetensors.torch.save_file({"transformer.a.lora_A.weight": torch.zeros(2, 3)}, tmp_path / DIFFUSERS_FILE)
    refused(r"found a, expected pairs of <layer>.lora_A.weight and <layer>.lora_B.weight", read_diffusers_products, tmp_path)
