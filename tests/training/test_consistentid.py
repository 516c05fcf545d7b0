"""ConsistentID's training: losses and gradients of the released code, and the way from photographs to a portrait of a trained adapter."""

from types import SimpleNamespace

import pytest
import torch
from conftest import assert_close, golden_arrays, seeded
from golden_consistentid import META, SIZES, make_adapter, released_folder, tokenizer  # noqa: F401
from golden_portraits import RELEASED_PARTS
from training.alone import CPU

from concat_id.models.consistentid.base_model import make_scheduler
from concat_id.training.consistentid import Conditions, PortraitObjective, denoising_loss, localization_losses

GOLDEN, P, LOSS = golden_arrays("consistentid_shared"), "consistentid/", META["loss"]
GRADIENTS = 1e-4


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
