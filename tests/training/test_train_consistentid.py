"""sat/train_consistentid.py: from photographs to a portrait of a trained adapter, and mistakes in one line."""

import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT
from golden_consistentid import META, make_unet, released_folder, tokenizer  # noqa: F401
from odd_input import is_told
from tiny_faces import write_arcface, write_segformer
from training.alone import CPU, metrics, same, states, weights

from concat_id.config.loading import load_config
from concat_id.models.consistentid.adapter import AdapterSizes, ConsistentIDAdapter, read_adapter, released_groups
from concat_id.training import consistentid

FILE = ROOT / "configs" / "training" / "consistentid.yaml"


@pytest.fixture(scope="module")
def portraits(setup, tmp_path_factory, released_folder, photographs, face_folder):  # noqa: F811
    """The setup of these tests with portraits of photographs in place of clips, and a small ConsistentID to train."""
    folder = tmp_path_factory.mktemp("portraits")
    write_arcface(folder / "arcface")
    write_segformer(folder / "parser")
    models = {"detector": str(face_folder), "recognizer": str(folder / "arcface"), "parser": str(folder / "parser")}
    photos = [str(photographs[name]) for name in ("astronaut", "six", "actor")]
    options = [word for name, path in models.items() for word in (f"--{name}", path)]
    options += ["--photos", *photos, "--caption", "A person looks at us. It is day.", "--output", str(folder / "data"), "--device", "cpu"]
    assert setup.ask({"script": "prepare_portraits", "arguments": options, "processes": 1, "folder": str(folder)})["codes"] == [0]
    torch.manual_seed(0)
    adapter = ConsistentIDAdapter(make_unet(), AdapterSizes(META["sizes"]["d"], META["sizes"]["clip"], width=64, depth=1, heads=1, rank=4))
    torch.save(released_groups(adapter.state_dict()), folder / "tiny.bin")
    lists, base = [str(folder / "data" / "JSON_all.json")], str(released_folder / "base")
    args = {
        "mode": "finetune", "load": str(folder / "tiny.bin"), "experiment_name": "run", "train_data": lists, "valid_data": lists,
        "train_iters": 8, "save_interval": 4, "eval_interval": 4, "num_workers": 0, "tensorboard": False, "bf16": False, "lr": 3e-3,
    }  # fmt: skip
    model = {"base": base, "image_encoder": str(released_folder / "clip"), "rank": 4, "faces": models}
    own = {"model": model | {"sampler": {"num_inference_steps": 2}}, "args": args, "data": {"video_size": [64, 64]}}
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    bases, setup.bases = setup.bases, [str(FILE), str(folder / "own.yaml")]
    script = {"script": "train_consistentid"}
    called = {name: partial(getattr(setup, name), **script) for name in ("train", "refused")}
    yield SimpleNamespace(setup=setup, of_clips=bases, **called)
    setup.bases = bases


@pytest.fixture(scope="module")
def whole(portraits, tmp_path_factory):
    """Eight steps of two processes at a stretch."""
    return portraits.train(tmp_path_factory.mktemp("whole"), codes=(0, 0))[1]


def test_a_run_learns_and_leaves_the_adapter_alone(whole):
    losses = [line["validation_loss"] for line in metrics(whole) if "validation_loss" in line]
    assert losses[1] < losses[0] < metrics(whole)[0]["loss"], losses
    assert {name.split(".")[0] for name in weights(whole, "8")} == {"image_proj", "adapter_modules", "FacialEncoder"}
    assert len(list((whole / "samples" / "000008").glob("*.png"))) == 2


def test_killed_and_continued_equals_uninterrupted(portraits, whole, tmp_path):
    portraits.train(tmp_path, "--train_iters", 1000, codes=(-9, -9), signal=signal.SIGKILL, at_step=6)
    said, run = portraits.train(tmp_path, "--resume", codes=(0, 0))
    assert f"continuing {run} after step 4" in said and metrics(run) == metrics(whole)
    assert states(run, 8) and same(states(run, 8), states(whole, 8)) and same(weights(run, "8"), weights(whole, "8"))


def test_accumulating_and_computing_activations_again_equals_more_processes(portraits, whole, tmp_path):
    _, run = portraits.train(tmp_path, "--gradient_accumulation_steps", 2, "--checkpoint_activations")
    for mine, theirs in zip(metrics(run), metrics(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_a_trained_adapter_is_sampled_and_written_as_released(portraits, whole, call, photo, tmp_path):
    assert "268 tensors in the released file's layout" in call("convert_weights", "to-consistentid", whole, tmp_path / "a.bin").done
    assert call("convert_weights", "to-consistentid", whole / "4", tmp_path / "4.bin", "--dtype", "float16").done
    assert not (whole / "4-ema").exists()  # as the recipe says
    assert is_told(ended := call("convert_weights", "to-consistentid", whole, tmp_path / "a.safetensors"), 2) and "NAME.bin" in ended.err
    assert is_told(ended := call("convert_weights", "to-hf", whole, tmp_path), 2) and "convert it with to-consistentid" in ended.err
    assert torch.load(tmp_path / "a.bin").keys() == {"image_proj", "adapter_modules", "FacialEncoder"}
    assert same(read_adapter(tmp_path / "a.bin"), weights(whole, "8"))
    assert same(read_adapter(tmp_path / "4.bin"), {name: tensor.half() for name, tensor in weights(whole, "4").items()})
    made = []
    for load in (whole, tmp_path / "a.bin"):
        options = "--prompt", "a woman laughs", "--image", photo, "--sampling_image_size", 64, 64, "--load", load
        bases = ROOT / "configs" / "consistentid.yaml", portraits.setup.bases[-1]
        assert call("sample_video", "--base", *bases, *options, "--output", tmp_path / f"of {load.name}").done
        made.append(next((tmp_path / f"of {load.name}").glob("0*/portrait.png")).read_bytes())
    assert made[0] == made[1]


def test_new_adapters_are_equal(portraits, monkeypatch, tmp_path):
    monkeypatch.setattr(consistentid, "AdapterSizes", partial(AdapterSizes, width=64, depth=1, heads=1))
    overrides = {"mode": "pretrain", "bf16": True, "save": str(tmp_path)}
    config = load_config(portraits.setup.bases, overrides)
    config.args.load = None
    made = [consistentid.load_network(config, *consistentid.load_frozen(config, CPU), None) for _ in range(2)]
    assert same(*(adapter.state_dict() for adapter in made)) and made[0].sizes.rank == 4
    assert {tensor.dtype for tensor in (*made[0].state_dict().values(), *made[0].unet.parameters())} == {torch.bfloat16}
    assert not made[0].adapter_modules[0].to_q_lora.up.weight.any()


def test_mistakes_are_told_in_one_line(portraits, whole, setup, tiny_model, tmp_path):
    own, model = tmp_path / "own", lambda **values: {"base": {"model": values}}
    portraits.refused("args.train_data: missing", own, base={"args": {"train_data": []}})
    portraits.refused("expected a square", own, base={"data": {"video_size": [64, 72]}})
    portraits.refused("latent_cache: found 'there', expected none", own, "--latent_cache", "there")
    portraits.refused("model.rank: found 8, expected 4, as the adapter in", own, **model(rank=8))
    portraits.refused("model.mask_loss: unknown key", own, **model(mask_loss=0.5))
    portraits.refused("args.load: missing, expected an adapter to go on with, or mode: pretrain", own, base={"args": {"load": None}})
    setup.refused("model.kind: found 'consistentid', expected cogvideox or wan; train it with sat/train_consistentid.py", own)
    bases, setup.bases = setup.bases, portraits.of_clips
    try:
        other = setup.train(tmp_path / "other", "--train_iters", 1)[1]
        portraits.refused("train it with sat/train_video.py", own)
    finally:
        setup.bases = bases
    portraits.refused("found no image_proj, adapter_modules, FacialEncoder", own, "--resume", other)
