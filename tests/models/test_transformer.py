"""The transformer against the released one's outputs, gradients and tensor names."""

import json

import pytest
import torch
from conftest import GOLDEN, assert_close, golden_meta, seeded
from in_process import refused

from concat_id.config.cogvideox import TransformerConfig
from concat_id.models.backbones import initialize_weights
from concat_id.models.tensor_names import POSITIONS
from concat_id.models.transformer import DiffusionTransformer

CASES = golden_meta("sat_shared")
# Of the largest value. Processors round exp differently: one frequency of the timestep that is an ulp off moves outputs by 1e-5.
TOLERANCE = 2e-5


def config_of(case: dict, **changes) -> TransformerConfig:
    """The configuration of a golden case."""
    return TransformerConfig(**{
        "num_layers": case["layers"], "hidden_size": case["hidden"], "num_attention_heads": case["heads"],
        "time_embed_dim": case["tdim"], "latent_width": case["w"], "latent_height": case["h"], "num_frames": case["frames"],
        "text_hidden_size": case["texth"], "text_length": case["textl"],
        **changes,
    })  # fmt: skip


def golden_weight(key: str, shape) -> torch.Tensor:
    """A tensor of the golden models, by the rule of their README."""
    weight = seeded(key, shape) * (0.3 if "adaLN" in key or "query_key_value" in key else 0.1)
    return 1 + weight if "norm" in key and key.endswith("weight") else weight


def golden_model(name: str, unused: dict | None = None, **changes) -> DiffusionTransformer:
    """A golden model with its weights, built and loaded as users' models are."""
    case = CASES[name]
    model = DiffusionTransformer(config_of(case, **changes), device="meta")
    model.load_sat_tensors({key: golden_weight(key, shape) for key, shape in case["keys"].items()} | (unused or {}), name)
    return model


def golden_inputs(name: str, num_refs: int) -> tuple[torch.Tensor, ...]:
    """Latents, timesteps, text and references of a golden case."""
    case, index = CASES[name], name[-1]
    frames = (case["frames"] - 1) // 4 + 1
    latents = seeded(f"x{index}", (2, frames, 16, case["h"], case["w"]))
    text = seeded(f"ctx{index}", (2, case["textl"], case["texth"]))
    refs = seeded(f"ref{index}_{num_refs}", (2, num_refs, 16, case["h"], case["w"]))
    return latents, torch.tensor([17, 843]), text, refs


@pytest.mark.parametrize("num_refs", [1, 2, 3])
@pytest.mark.parametrize("name", ["dit0", "dit1"])
@pytest.mark.parametrize("grad", [False, True])
def test_output_equals_released(sat_golden, name, num_refs, grad):
    with torch.set_grad_enabled(grad):
        output = golden_model(name)(*golden_inputs(name, num_refs))
    assert_close(output.detach(), sat_golden[f"{name}/refs{num_refs}/out"], TOLERANCE)


def test_positions_that_nothing_uses_may_be_any_number_and_nothing_else_may():
    inputs, other = golden_inputs("dit0", 1), {POSITIONS: torch.ones(3, 5)}
    model = golden_model("dit0", other)
    assert torch.equal(model(*inputs), golden_model("dit0")(*inputs)) and torch.equal(model.state_dict()[POSITIONS], other[POSITIONS])
    golden_model("dit0", {"mixins.pos_embed.pos_embedding": torch.ones(1, 3, 5)}, position_embedding="sincos")  # as CogVideoX-2B's
    refused("1 of .* of another shape: time_embed.0.bias", golden_model, "dit0", other | {"time_embed.0.bias": torch.ones(3)})


def test_norms_have_the_released_epsilons():
    epsilons = {module: found.eps for module, found in golden_model("dit0").named_modules() if hasattr(found, "eps")}
    of_mixins = {module: eps for module, eps in epsilons.items() if module.startswith("mixins.")}
    assert set(of_mixins.values()) == {1e-6} and {eps for module, eps in epsilons.items() if module not in of_mixins} == {1e-5}


@pytest.mark.parametrize("name", ["dit0", "dit1"])
def test_one_frame_equals_released(sat_golden, name):
    case, index = CASES[name], name[-1]
    shape = (1, 1, 16, case["h"], case["w"])
    text = seeded(f"ctx1f{index}", (1, case["textl"], case["texth"]))
    with torch.no_grad():
        output = golden_model(name)(seeded(f"x1f{index}", shape), torch.tensor([500]), text, seeded(f"ref1f{index}", shape))
    assert_close(output, sat_golden[f"{name}/oneframe/out"], TOLERANCE)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["dit0", "dit1"])
def test_gradients_equal_released(sat_golden, name, checkpointed):
    model = golden_model(name, checkpoint_activations=checkpointed)
    latents, timestep, text, refs = golden_inputs(name, 2)
    refs.requires_grad_()
    loss = model(latents, timestep, text, refs).square().mean()
    loss.backward()

    assert_close(loss.detach(), sat_golden[f"{name}/loss"], TOLERANCE)
    assert_close(refs.grad, sat_golden[f"{name}/grad_ref"], TOLERANCE)
    parameters = dict(model.named_parameters())
    norms = [parameters[key].grad.norm() for key in CASES[name]["grad_names"]]
    assert_close(torch.stack(norms), sat_golden[f"{name}/grad_norms"], TOLERANCE)


def test_names_and_shapes_equal_released_5b():
    config = TransformerConfig(num_layers=42, hidden_size=3072, num_attention_heads=48)
    model = DiffusionTransformer(config, device="meta")
    released = json.loads((GOLDEN / "cogvideox_5b_sat_keys.json").read_text())
    assert {f"model.diffusion_model.{name}": list(tensor.shape) for name, tensor in model.state_dict().items()} == released
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_no_references_is_plain_text_to_video():
    """Without references the sequence is text and video only, so its length must not matter to the result's shape."""
    model = golden_model("dit0")
    latents, timestep, text, refs = golden_inputs("dit0", 1)
    with torch.no_grad():
        plain, with_refs = model(latents, timestep, text), model(latents, timestep, text, refs)
    assert plain.shape == with_refs.shape == latents.shape
    assert (plain - with_refs).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_positions_of_sampling_serve_training_and_each_length_of_text_and_type_has_its_own(positions):
    model, fresh = (golden_model("dit0", position_embedding=positions) for _ in range(2))
    latents, timestep, text, refs = golden_inputs("dit0", 1)
    with torch.inference_mode():
        model(latents, timestep, text, refs)
    shorter = latents, timestep, text[:, :-1], refs
    assert torch.equal(model(*shorter), fresh(*shorter))
    model(latents, timestep, text, refs).sum().backward()
    assert model.bfloat16()(latents.bfloat16(), timestep, text.bfloat16(), refs.bfloat16()).dtype == torch.bfloat16


def test_new_weights_predict_zero_and_depend_on_the_generator_alone():
    models = [DiffusionTransformer(config_of(CASES["dit0"])) for _ in range(2)]
    for model in models:
        initialize_weights(model, torch.Generator().manual_seed(3))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)
    with torch.no_grad():
        assert models[0](*golden_inputs("dit0", 1)).abs().max() == 0
