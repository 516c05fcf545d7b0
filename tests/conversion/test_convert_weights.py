"""The entry script, as users call it."""

import json
import shlex
from functools import partial

import pytest
import torch
from conftest import ROOT
from entry import only_error
from safetensors.torch import save_file

from concat_id.weights.loading import load_sat_checkpoint, load_tensors


@pytest.fixture
def convert(call):
    return partial(call, "convert_weights")


def test_there_checked_and_back(convert, rotary, tmp_path):
    out = convert("to-hf", rotary.checkpoint, tmp_path / "hf", "--base", *rotary.bases, "--check").done
    assert "weights: " in out and "sha256:" in out and float(out.split("outputs: ")[1].split()[0]) < 2e-5
    assert convert("to-sat", tmp_path / "hf", tmp_path / "back", "--dtype", "bfloat16").done
    before, after = (load_sat_checkpoint(path).state_dict for path in (rotary.checkpoint, tmp_path / "back"))
    assert torch.equal(before["time_embed.0.weight"].bfloat16(), after["time_embed.0.weight"])
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    file = tmp_path / "hf" / "transformer" / "diffusion_pytorch_model.safetensors"
    for factor in (2, float("nan")):  # 16-bit types are compared in test_folders.py
        tensors = load_tensors(file)
        save_file(tensors | {"proj_out.weight": tensors["proj_out.weight"] * factor}, file)
        code, out, err = convert("check", rotary.checkpoint, tmp_path / "hf", "--base", *rotary.bases)
        assert code == 1 and "outputs: " in out and "hf: does not compute what" in err and err.count("\n") == 1


def test_a_runs_own_configuration_is_taken(convert, run, tmp_path):
    out = convert("to-hf", run, tmp_path / "hf", "--weights", "ema").done
    assert "training_config.yaml" in out and "5-ema" in out
    written = load_tensors(tmp_path / "hf" / "transformer" / "diffusion_pytorch_model.safetensors")
    averages = load_sat_checkpoint(run / "5-ema").state_dict
    assert torch.equal(written["time_embedding.linear_1.weight"], averages["time_embed.0.weight"])
    settings, card = json.loads((tmp_path / "hf/transformer/config.json").read_text()), (tmp_path / "hf/README.md").read_text()
    assert [settings[f"sample_{name}"] for name in ("height", "width", "frames")] == [12, 8, 5]
    assert "up to 5 frames of 96x64" in card and "fps=12" in card


def test_wan_checkpoints_go_to_the_module_that_knows_them(convert, tmp_path):
    source, target = ROOT / "models" / "mini" / "wan" / "first_stage.pt", tmp_path / "back.pt"
    assert convert("to-sat", source, target, "--dtype", "float16").done
    assert {tensor.dtype for tensor in load_tensors(target).values()} == {torch.float16}
    for told, *command in [
        ("is of kind cogvideox, expected Wan's VAE", "to-hf", source, tmp_path / "x"),
        ("--check: is for CogVideoX alone", "to-hf", source, tmp_path / "x", "--check"),
        ("--lora keep: is no option of to-sat; leave it out to merge", "to-sat", source, tmp_path / "x.pt", "--lora", "keep"),
        ("check: is for CogVideoX alone", "check", source, tmp_path / "x"),
        ("--weights: is for training runs", "to-hf", source, tmp_path / "x", "--weights", "ema"),
        ("--shares: is no option of to-hf", "to-hf", source, tmp_path / "x", "--shares", "0.5"),
    ]:
        code, _, err = convert(*command)
        assert told in only_error(code, err) and [path.name for path in tmp_path.iterdir()] == ["back.pt"]


@pytest.mark.parametrize("options, told", [
    (("to-hf", "{checkpoint}", "{x}", "--lora", "keep"), "found whole weights, no low-rank ones to keep; leave --lora keep out"),
    (("to-hf", "{folder}", "{x}"), "this is diffusers' kind; convert it: python sat/convert_weights.py to-sat {folder} FOLDER"),
    (("to-hf", "{checkpoint}", "{x}"), "t5: no such file or folder, expected T5's encoder"),  # that of configs/debug.yaml, which fits
    (("to-hf", "{checkpoint}", "{folder}", "--base", "{bases}"), "exists already"),
    (("to-sat", "{checkpoint}", "{x}"), "expected a diffusers folder"),
])  # fmt: skip
def test_mistakes_take_one_line(convert, rotary, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "cogvideox_5b.yaml").write_text("of another project")
    places = {"{checkpoint}": [rotary.checkpoint], "{folder}": [rotary.folder], "{nowhere}": [tmp_path / "nowhere"],
              "{x}": [tmp_path / "x"], "{bases}": rotary.bases}  # fmt: skip
    code, _, err = convert(*(value for option in options for value in places.get(option, [option])))
    assert told.replace("{folder}", shlex.quote(str(rotary.folder))) in only_error(code, err)
    assert not (tmp_path / "x").exists()
