"""ConsistentID's loss: the released code's values and gradients, and what is drawn, dropped and left out."""

from types import SimpleNamespace

import pytest
import torch
from conftest import assert_close, golden_arrays, seeded
from golden_consistentid import META, SIZES, make_adapter, tokenizer  # noqa: F401
from golden_portraits import RELEASED_PARTS
from training.alone import CPU

from concat_id.models.consistentid.base_model import make_scheduler
from concat_id.training import consistentid
from concat_id.training.consistentid import Conditions, PortraitObjective, denoising_loss, localization_losses

GOLDEN, P, LOSS = golden_arrays("consistentid_shared"), "consistentid/", META["loss"]


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
    assert_close(local, GOLDEN[f"loss/local_{kind}_per_layer"], 2e-5)
    losses = {"mse": mse, "mse_masked": masked, f"local_{kind}": local.mean()}
    assert_close(losses[f"local_{kind}"], GOLDEN["loss/local_cross"] if kind == "cross" else 100 * GOLDEN["loss/local_self_weighted"], 2e-5)
    for name, loss in {"mse": mse, "mse_masked": masked, f"total_{kind}": mse + 0.01 * local.mean()}.items():
        assert_close(loss, GOLDEN[f"loss/{name}"], 1e-6, name)
    for name, loss in losses.items():
        assert_close(gradient_norms(adapter, loss), GOLDEN[f"loss/grad_norms_{name}"], 2e-5, name)


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


@pytest.mark.parametrize("case", META["dataset"], ids=range(len(META["dataset"])))
def test_words_of_the_released_data_set(tokenizer, case):  # noqa: F811
    item, parts = case["item"], [RELEASED_PARTS[part] for part in case["parts"]]
    batch = SimpleNamespace(captions=[item["vqa_llva"]], face_captions=[item["vqa_llva_more_face_detail"]], parts=[parts])
    made = objective(tokenizer).prompt(batch, 0, case["dropped"])
    assert (made.text, made.tokens) == (case["text"], case["ids"])
    assert made.positions == [place for place, valid in zip(case["idx"], case["valid"], strict=True) if valid]
    assert made.order(parts) == list(range(len(made.positions)))


def test_probabilities_are_those_of_batches_and_samples(monkeypatch):
    """A network that predicts nothing has the variance of the noise as its loss, and none where all is background."""
    given, zeros = [], torch.zeros(4, 4, 8, 8)
    monkeypatch.setattr(consistentid, "encode_moments", lambda base, images: (zeros, zeros))
    batch = SimpleNamespace(captions=[""] * 4, images=zeros, without_background=torch.zeros(4, 1, 64, 64))

    def loss(step=0, part=0, **settings) -> float:
        made = objective(localization_weight=0.0, **settings)
        made.conditions = lambda batch, dropped: given.append(dropped) or Conditions(*[zeros] * 4, [[]] * 4, [])
        return made.training_loss(lambda latents, *_: (latents * 0, []), batch, step, part, 2).item()

    assert loss(mask_loss_prob=1.0, text_dropout=1.0) == 0 and given.pop() == [True] * 4
    assert 0.8 < loss(mask_loss_prob=0.0) == loss(mask_loss_prob=0.0) < 1.2 and given.pop() == [False] * 4
    losses = [loss(step, part, mask_loss_prob=0.5, text_dropout=0.5) for step in range(100) for part in range(2)]
    assert 60 < losses.count(0) < 140 and len(set(losses)) > 60
    assert 300 < sum(map(sum, given)) < 500 and len(set(map(tuple, given))) == 16
