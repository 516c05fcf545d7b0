"""ConsistentID's training: losses and gradients of the released code, and the way from photographs to a portrait of a trained adapter."""

import shutil
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, assert_close, golden_arrays, seeded
from golden_consistentid import META, SIZES, make_adapter, make_unet, released_folder, tokenizer  # noqa: F401
from golden_portraits import RELEASED_PARTS
from tiny_faces import write_arcface, write_segformer
from training.alone import CPU, metrics, same, states, weights

from concat_id.config.loading import load_config
from concat_id.models.consistentid.adapter import AdapterSizes, ConsistentIDAdapter, read_adapter, released_groups
from concat_id.models.consistentid.base_model import make_scheduler
from concat_id.training import consistentid
from concat_id.training.consistentid import Conditions, PortraitObjective, denoising_loss, localization_losses

GOLDEN, P, LOSS = golden_arrays("consistentid_shared"), "consistentid/", META["loss"]
GRADIENTS = 1e-4
FILES = [ROOT / "configs" / "consistentid.yaml", ROOT / "configs" / "training" / "consistentid.yaml"]


def objective(tokenizer=None, **settings) -> PortraitObjective:  # noqa: F811
    model = SimpleNamespace(**{"pairing": "released", "text_dropout": 0.0, **settings})
    config = SimpleNamespace(model=model, args=SimpleNamespace(seed=1, dtype_name="float32"))
    return PortraitObjective(config, SimpleNamespace(tokenizer=tokenizer, scheduler=make_scheduler("euler")), None, CPU)


def masks_of(areas) -> torch.Tensor:
    masks = torch.zeros(len(areas), LOSS["mask_size"], LOSS["mask_size"])
    for mask, boxes in zip(masks, areas, strict=True):
        for top, bottom, left, right in boxes:
            mask[top:bottom, left:right] = 1
    return masks


def gradient_norms(adapter, loss) -> torch.Tensor:
    names = [name.replace("/", ".", 1) for name in META["grad_names"]]
    found = torch.autograd.grad(loss, [adapter.get_parameter(name) for name in names], retain_graph=True, allow_unused=True)
    return torch.stack([torch.zeros(()) if gradient is None else gradient.norm() for gradient in found])


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_losses_and_gradients_are_those_of_the_released_code(kind):
    adapter, boxes = make_adapter().train(), LOSS["boxes"]
    adapter.record(kind)
    layers = [name for name, layer in zip(META["processors"], adapter.adapter_modules, strict=True) if layer.records]
    assert sorted(name.removesuffix(".processor") for name in layers) == sorted(LOSS[f"{kind}_layers"])
    positions, features = LOSS["idx"], (META["clip_tokens"], SIZES.features)
    masks = [masks_of([boxes[(part + sample) % 5] for part in range(len(own))]) for sample, own in enumerate(positions)]
    conditions = Conditions(
        seeded(f"{P}loss/text", (2, LOSS["tokens"], SIZES.text)), seeded(f"{P}loss/id", (2, 1, 512))[:, 0],
        seeded(f"{P}loss/clip", (2, *features)), seeded(f"{P}loss/parts", (2, 5, *features)), positions, masks,
    )  # fmt: skip
    latents, noise = (seeded(f"{P}loss/{name}", (2, 4, 32, 32)) for name in ("z", "noise"))
    prediction, maps, target = objective().predict(adapter, latents, noise, torch.tensor(LOSS["timesteps"]), conditions)
    assert_close(prediction, GOLDEN["loss/pred"], 1e-5)
    without = masks_of(LOSS["without_background"])[:, None]
    mse, masked = denoising_loss(prediction, target), denoising_loss(prediction, target, without)
    local = localization_losses(maps, masks, positions)
    assert_close(mse, GOLDEN["loss/mse"], 1e-6)
    assert_close(masked, GOLDEN["loss/mse_masked"], 1e-6)
    assert_close(local, GOLDEN[f"loss/local_{kind}_per_layer"], 2e-5)
    assert_close(mse + 0.01 * local.mean(), GOLDEN[f"loss/total_{kind}"], 1e-6)
    for name, loss in {"mse": mse, "mse_masked": masked, f"local_{kind}": local.mean()}.items():
        assert_close(gradient_norms(adapter, loss), GOLDEN[f"loss/grad_norms_{name}"], GRADIENTS, name)


def test_words_have_their_own_parts_and_dropped_samples_the_vector_alone(tokenizer):  # noqa: F811
    made = objective(tokenizer, pairing="intended")
    made.features = lambda pixels: pixels.flatten(2)[..., :6].transpose(1, 2)  # (B, 6, 3)
    made.base.text_encoder = lambda tokens: [tokens]
    parts, item = ("face", "eyes", "ears"), META["dataset"][0]["item"]
    batch = SimpleNamespace(
        captions=[item["vqa_llva"]] * 2, face_captions=["A face, small ears, and green eyes."] * 2, parts=[parts] * 2,
        clip_pixels=torch.ones(2, 3, 8, 8), part_pixels=torch.arange(5.0)[None, :, None, None, None].expand(2, 5, 3, 8, 8),
        part_masks=torch.arange(5.0)[None, :, None, None].expand(2, 5, 8, 8), identities=torch.ones(2, 1, 512),
    )  # fmt: skip
    found = made.conditions(batch, [False, True])
    assert len(found.positions[0]) == 3 and found.positions[1] == [] and found.masks[0][:, 0, 0].tolist() == [0, 2, 1]
    assert found.parts[:, :, 0, 0].tolist() == [[0, 2, 1], [0, 0, 0]] and found.features[:, 0, 0].tolist() == [1, 0]
    assert found.vectors.all() and found.text[1].tolist() == META["dataset"][3]["ids"]
    batch.face_captions = ["Green eyes."] * 2
    assert made.conditions(batch, [False, False]).masks[0][:, 0, 0].tolist() == [1], "parts without a word have no place"


def test_batches_without_parts_have_gradients_for_every_weight():
    adapter, inputs = make_adapter().train(), (2, META["clip_tokens"], SIZES.features)
    prediction, maps = adapter(
        torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.randn(2, 77, SIZES.text), torch.randn(2, 512), torch.randn(inputs),
        torch.zeros(2, 1, *inputs[1:]), [[], []],
    )  # fmt: skip
    prediction.square().mean().backward()
    missing = [name for name, parameter in adapter.named_parameters() if parameter.grad is None]
    assert not missing and not maps and not adapter.FacialEncoder.fuse_module.mlp1.fc1.weight.grad.any()


def test_words_behind_the_last_pixel_count_nothing():
    """As released, `self` takes a word's place for a pixel; where there is none, the released code fails."""
    maps, masks = [torch.rand(1, 2, 16, 16)], [torch.ones(2, 8, 8)]
    masks[0][:, :4] = 0
    alone = localization_losses(maps, [masks[0][:1]], [[3]])
    assert_close(localization_losses(maps, masks, [[3, 16]]), alone, 1e-4)


def test_words_of_the_released_data_set(tokenizer):  # noqa: F811
    names = [tuple(RELEASED_PARTS[part] for part in RELEASED_PARTS)] * len(META["dataset"])
    items = [case["item"] for case in META["dataset"]]
    batch = SimpleNamespace(
        captions=[item["vqa_llva"] for item in items], face_captions=[item["vqa_llva_more_face_detail"] for item in items], parts=names
    )
    for sample, case in enumerate(META["dataset"]):
        offered = [RELEASED_PARTS[part] for part in case["parts"]]
        batch.parts[sample] = tuple(offered)
        made = objective(tokenizer).prompt(batch, sample, case["dropped"])
        assert (made.text, made.tokens) == (case["text"], case["ids"])
        assert made.positions == [place for place, valid in zip(case["idx"], case["valid"], strict=True) if valid]
        assert made.order(offered) == list(range(len(made.positions)))


@pytest.fixture(scope="module")
def portraits(setup, tmp_path_factory, released_folder, photographs, face_folder):  # noqa: F811
    """The setup of these tests with portraits of photographs in place of clips, and a small ConsistentID to train."""
    folder = tmp_path_factory.mktemp("portraits")
    write_arcface(folder / "arcface")
    (folder / "parser").mkdir()
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
    bases, setup.bases = setup.bases, [*map(str, FILES), str(folder / "own.yaml")]
    script = {"script": "train_consistentid"}
    called = {name: partial(getattr(setup, name), **script) for name in ("train", "refused")}
    yield SimpleNamespace(setup=setup, base=base, of_clips=bases, **called)
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


def test_accumulating_equals_more_processes(portraits, whole, tmp_path):
    _, run = portraits.train(tmp_path, "--gradient_accumulation_steps", 2)
    for mine, theirs in zip(metrics(run), metrics(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_a_trained_adapter_is_sampled_and_written_as_released(portraits, whole, call, photo, tmp_path):
    assert "268 tensors in the released file's layout" in call("convert_weights", "to-consistentid", whole, tmp_path / "a.bin").done
    call("convert_weights", "to-consistentid", whole / "4", tmp_path / "4.bin", "--weights", "ema", "--dtype", "float16")
    assert torch.load(tmp_path / "a.bin").keys() == {"image_proj", "adapter_modules", "FacialEncoder"}
    assert same(read_adapter(tmp_path / "a.bin"), weights(whole, "8"))
    averaged = {name: tensor.half() for name, tensor in weights(whole, "4-ema").items()}
    assert same(read_adapter(tmp_path / "4.bin"), averaged)
    made = []
    for load in (whole, tmp_path / "a.bin"):
        options = "--prompt", "a woman laughs", "--image", photo, "--sampling_image_size", 64, 64, "--load", load
        bases = portraits.setup.bases[0], portraits.setup.bases[2]
        assert call("sample_video", "--base", *bases, *options, "--output", tmp_path / load.name).done
        made.append(next((tmp_path / load.name).glob("0*/portrait.png")).read_bytes())
    assert made[0] == made[1]


def test_new_adapters_are_equal_and_masters_are_float32(portraits, monkeypatch, tmp_path):
    monkeypatch.setattr(consistentid, "AdapterSizes", partial(AdapterSizes, width=64, depth=1, heads=1))
    overrides = {"mode": "pretrain", "bf16": True, "save": str(tmp_path), "checkpoint_activations": True}
    config = load_config(portraits.setup.bases, overrides)
    config.args.load = None
    made = [consistentid.load_network(config, *consistentid.load_frozen(config, CPU), None) for _ in range(2)]
    assert same(*(adapter.state_dict() for adapter in made)) and made[0].sizes.rank == 4
    assert {tensor.dtype for tensor in (*made[0].state_dict().values(), *made[0].unet.parameters())} == {torch.bfloat16}
    assert not made[0].adapter_modules[0].to_q_lora.up.weight.any()


def test_activations_that_are_computed_again_change_nothing(portraits, tmp_path):
    runs = [portraits.train(tmp_path / flag, "--train_iters", 2, "--checkpoint_activations", flag)[1] for flag in ("true", "false")]
    for mine, theirs in zip(*map(metrics, runs), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_mistakes_are_told_in_one_line(portraits, whole, setup, tiny_model, tmp_path):
    own, model = tmp_path / "own", lambda **values: {"base": {"model": values}}
    portraits.refused("args.train_data: missing", own, base={"args": {"train_data": []}})
    portraits.refused("expected a square", own, base={"data": {"video_size": [64, 72]}})
    portraits.refused("latent_cache: found 'there', expected none", own, "--latent_cache", "there")
    portraits.refused("model.rank: found 8, expected 4, as the adapter in", own, **model(rank=8))
    portraits.refused("model.mask_loss: unknown key", own, **model(mask_loss=0.5))
    portraits.refused("args.load: missing, expected an adapter to go on with, or mode: pretrain", own, base={"args": {"load": None}})
    xl = tmp_path / "xl"
    shutil.copytree(portraits.base, xl)
    index = xl / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    portraits.refused("found a StableDiffusionXLPipeline, expected Stable Diffusion 1.5", own, **model(base=str(xl)))
    setup.refused("model.kind: found 'consistentid', expected cogvideox or wan; train it with sat/train_consistentid.py", own)
    bases, setup.bases = setup.bases, portraits.of_clips
    try:
        other = setup.train(tmp_path / "other", "--train_iters", 1)[1]
        portraits.refused("train it with sat/train_video.py", own)
    finally:
        setup.bases = bases
    portraits.refused("found no image_proj, adapter_modules, FacialEncoder", own, "--resume", other)
