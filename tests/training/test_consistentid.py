"""ConsistentID's training: losses and gradients of the released code, and the way from photographs to a portrait of a trained adapter."""

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
    yield SimpleNamespace(setup=setup, train=partial(setup.train, **script), refused=partial(setup.refused, **script), list=lists[0])
    setup.bases = bases


@pytest.fixture(scope="module")
def whole(portraits, tmp_path_factory):
    """Eight steps of two processes at a stretch."""
    return portraits.train(tmp_path_factory.mktemp("whole"), codes=(0, 0))[1]


def test_a_run_learns_and_leaves_the_adapter_alone(whole):
    losses = [line["validation_loss"] for line in metrics(whole) if "validation_loss" in line]
    assert losses[1] < losses[0] < 1.6, losses
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
