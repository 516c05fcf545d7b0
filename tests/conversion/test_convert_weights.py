"""The entry script, as users call it."""

from functools import partial

import pytest
import torch
from entry import only_error
from safetensors.torch import save_file

from concat_id.conversion import wan_folders
from concat_id.weights.loading import load_sat_checkpoint, load_tensors


@pytest.fixture
def convert(call):
    return partial(call, "convert_weights")


def test_there_checked_and_back(convert, rotary, tmp_path):
    out = convert("to-hf", rotary.checkpoint, tmp_path / "hf", "--base", *rotary.bases, "--check").done
    assert "weights: " in out and "sha256:" in out and float(out.split("outputs: ")[1].split()[0]) < 2e-5
    assert convert("to-sat", tmp_path / "hf", tmp_path / "back", "--dtype", "bfloat16").done
    before, after = (load_sat_checkpoint(path).state_dict["time_embed.0.weight"] for path in (rotary.checkpoint, tmp_path / "back"))
    assert torch.equal(before.bfloat16(), after)
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


@pytest.mark.parametrize("direction, function", [("to-hf", "to_diffusers"), ("to-sat", "to_native")])
def test_wan_checkpoints_go_to_the_module_that_knows_them(convert, monkeypatch, tmp_path, direction, function):
    called, source = [], tmp_path / "first_stage.pt"
    monkeypatch.setattr(wan_folders, "is_wan", lambda path, trust: path == source and not trust)
    monkeypatch.setattr(wan_folders, function, lambda *arguments, **options: called.append((*arguments, options)))
    assert convert(direction, source, tmp_path / "x", "--dtype", "float16").code == 0
    assert called[0][:2] == (source, tmp_path / "x") and called[0][-1] == {"dtype": torch.float16, "trust": False}
    code, _, err = convert(direction, tmp_path / "other", tmp_path / "x")
    assert code and len(called) == 1 and "other" in only_error(code, err)
    for options in [("--lora", "keep"), ("--check",)][: 2 if direction == "to-hf" else 1]:
        code, _, err = convert(direction, source, tmp_path / "x", *options)
        assert f"{' '.join(options)}: is for CogVideoX alone" in only_error(code, err) and len(called) == 1
    code, _, err = convert(direction, source, tmp_path / "x", "--shares", "0.5")
    assert f"--shares: is no option of {direction}" in only_error(code, err)


@pytest.mark.parametrize("options, told", [
    (("to-hf", "{checkpoint}", "{x}", "--lora", "keep"), "found whole weights, no low-rank ones to keep; leave --lora keep out"),
    (("to-hf", "{folder}", "{x}"), "this is diffusers' kind; convert it: python sat/convert_weights.py to-sat {folder} FOLDER"),
    (("to-hf", "{checkpoint}", "{x}"), "t5: has no config.json, expected a T5 folder"),  # that of configs/debug.yaml, which fits
    (("to-hf", "{checkpoint}", "{folder}", "--base", "{bases}"), "exists already"),
    (("to-sat", "{checkpoint}", "{x}"), "expected a diffusers folder"),
])  # fmt: skip
def test_mistakes_take_one_line(convert, rotary, tmp_path, options, told):
    places = {"{checkpoint}": [rotary.checkpoint], "{folder}": [rotary.folder], "{nowhere}": [tmp_path / "nowhere"],
              "{x}": [tmp_path / "x"], "{bases}": rotary.bases}  # fmt: skip
    code, _, err = convert(*(value for option in options for value in places.get(option, [option])))
    assert told.replace("{folder}", str(rotary.folder)) in only_error(code, err)
    assert not (tmp_path / "x").exists()
