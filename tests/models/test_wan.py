"""Wan's transformer against the released one's outputs and diffusers' own, and what holds for any weights."""

import copy
import dataclasses
import itertools

import pytest
import torch
from conftest import assert_close, golden_arrays, golden_meta, seeded
from diffusers import ContextParallelConfig, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from ranks import in_processes
from tiny_wan import TINY, TINY_ADALN, WIDTH, random_transformer

from concat_id.config.wan import WanTransformerConfig
from concat_id.models.backbones import initialize_weights
from concat_id.models.wan.network import FramePositions
from concat_id.models.wan.transformer import WanDiffusionTransformer, network_settings
from concat_id.models.wan.weights import PREFIX, native_names
from concat_id.weights.loading import load_strictly

CASE = golden_meta("wan_shared")
SIZES = CASE["cfg"]
FRAMES = (CASE["frames"] - 1) // 4 + 1
VARIANTS = {"first_stage": TINY, "adaln": TINY_ADALN}


def golden_weight(name: str, shape) -> torch.Tensor:
    """A tensor of the golden transformer, by the rule of the golden files' README."""
    weight = seeded(name, shape) * (0.3 if "modulation" in name or "self_attn" in name else 0.1)
    return weight + 1 if "norm" in name and name.endswith("weight") else weight


def golden_network(variant: str) -> WanDiffusionTransformer:
    config = WanTransformerConfig(
        num_layers=SIZES["num_layers"], hidden_size=SIZES["dim"], num_attention_heads=SIZES["num_heads"], ffn_dim=SIZES["ffn_dim"],
        time_embed_dim=SIZES["freq_dim"], text_hidden_size=SIZES["text_dim"], ref_modulation=variant == "adaln",
    )  # fmt: skip
    names = native_names(config.num_layers, config.ref_modulation)
    keys = CASE[f"{variant}_keys"]
    assert names.keys() == keys.keys()
    network = WanDiffusionTransformer(config, device="meta")
    weights = {PREFIX + names[key]: golden_weight(f"{variant}/{key}", shape) for key, shape in keys.items()}
    load_strictly(network, weights, variant)
    return network


@pytest.mark.parametrize("timestep", [31, 777])
@pytest.mark.parametrize("variant", ["first_stage", "adaln"])
def test_equals_released(variant, timestep):
    network = golden_network(variant)
    size = (CASE["h"], CASE["w"])
    latents, ref = seeded("wan/x", (1, 16, FRAMES, *size)).transpose(1, 2), seeded("wan/ref", (1, 16, 1, *size)).transpose(1, 2)
    with torch.no_grad():
        output = network(latents, torch.tensor([timestep]), seeded("wan/ctx", (1, 10, 48)), ref)
    assert_close(output.transpose(1, 2), golden_arrays("wan_shared")[f"{variant}/t{timestep}"], 1e-5)


def inputs(num_refs: int = 1, frames: int = 3, batch: int = 1, seed: int = 0, width: int = 12):
    """latents, timestep, text, references."""
    generator = torch.Generator().manual_seed(seed)
    latents, refs = (torch.randn(batch, count, 16, width - 4, width, generator=generator) for count in (frames, num_refs))
    return latents, torch.full((batch,), 700.0), torch.randn(batch, 7, WIDTH, generator=generator), refs


@pytest.fixture(scope="module", params=list(VARIANTS))
def network(request):
    return random_transformer(VARIANTS[request.param])


def test_without_references_it_is_diffusers_own(network):
    settings = network_settings(network.config)
    settings.pop("ref_modulation")
    theirs = WanTransformer3DModel(**settings)
    theirs.load_state_dict({name: tensor for name, tensor in network.network.state_dict().items() if "_ref" not in name})
    latents, timestep, text, _ = inputs(batch=2)
    with torch.no_grad():
        expected = theirs(latents.transpose(1, 2), timestep, text).sample.transpose(1, 2)
    assert torch.equal(network(latents, timestep, text), expected)
    assert not torch.allclose(network(*inputs(batch=2)), expected, atol=1e-2)  # with a reference it is another


@pytest.mark.parametrize("num_refs", [1, 2, 3])
def test_one_to_three_references_each_matter_in_their_order(network, num_refs):
    latents, timestep, text, refs = inputs(num_refs)
    output = network(latents, timestep, text, refs)
    assert output.shape == latents.shape
    named = network.network(latents.transpose(1, 2), timestep, text, ref_latents=refs.transpose(1, 2)).sample
    assert torch.equal(named.transpose(1, 2), output)
    for index in range(num_refs):
        changed = refs.clone()
        changed[:, index] += 1
        assert (network(latents, timestep, text, changed) - output).abs().max() > 1e-3
    if num_refs > 1:
        assert (network(latents, timestep, text, refs.flip(1)) - output).abs().max() > 1e-3


def test_positions_of_references():
    """Reference i of T latent frames is at time T+i and in the columns w..2w-1; everything else is diffusers' own table."""
    latents = torch.zeros(1, 16, 5, 8, 12)
    cos, sin = FramePositions(28, (1, 2, 2))(latents, num_refs=2)
    wide = WanRotaryPosEmbed(28, (1, 2, 2), 1024)
    for found, expected in zip((cos, sin), wide(torch.zeros(1, 16, 5, 8, 24)), strict=True):
        grid = expected.view(5, 4, 12, 28)
        ours = found.view(5, 4, 6, 28)
        assert torch.equal(ours[:3], grid[:3, :, :6])
        assert torch.equal(ours[3:], grid[3:, :, 6:])


def test_casts_do_not_round_positions():
    network = random_transformer(TINY).bfloat16()
    cos, sin = network.network.rope(torch.zeros(1, 16, 5, 8, 12, dtype=torch.bfloat16))
    assert cos.dtype == sin.dtype == torch.float32
    assert torch.equal(cos, FramePositions(24, (1, 2, 2))(torch.zeros(1, 16, 5, 8, 12))[0])


def test_the_released_slip():
    """Without attention's output, a reference token x becomes x + gate * mlp(norm(x) * (1 + scale of attention) + shift of attention).

    The modulations are its own, and the text has no part in it.
    """
    block, generator = random_transformer(TINY_ADALN).network.blocks[0], torch.Generator().manual_seed(0)
    tokens, text, temb = (torch.randn(1, *shape, generator=generator) for shape in ((72, 48), (7, 48), (6, 96)))
    rotary = *FramePositions(24, (1, 2, 2))(torch.zeros(1, 16, 3, 8, 12), num_refs=1), 24
    block.attn1.to_out[0].weight.zero_()
    block.attn1.to_out[0].bias.zero_()
    shift, scale, _, _, _, gate = (block.scale_shift_table_ref + temb[..., 48:]).unbind(1)
    ref = tokens[:, 48:]
    expected = ref + gate * block.ffn(torch.nn.functional.layer_norm(ref, (48,), eps=1e-6) * (1 + scale) + shift)
    assert_close(block(tokens, text, temb, rotary)[:, 48:], expected, 1e-6)


def test_sixteen_bits_are_rounded_where_diffusers_rounds(network):
    """With none of its tokens a reference's, as in some processes, a block is diffusers' own, bit for bit."""
    block, generator = copy.deepcopy(network.network.blocks[0]).bfloat16(), torch.Generator().manual_seed(0)
    width = 96 if network.config.ref_modulation else 48
    tokens, text, temb = (torch.randn(1, *shape, generator=generator).bfloat16() for shape in ((72, 48), (7, 48), (6, width)))
    rotary = FramePositions(24, (1, 2, 2))(torch.zeros(1, 16, 3, 8, 12))
    assert torch.equal(block(tokens, text, temb, (*rotary, 0)), block(tokens, text, temb, rotary))
    assert network.network._no_split_modules == network.network._repeated_blocks == [type(block).__name__]


def gradients(trained, checkpointed: bool):
    network = WanDiffusionTransformer(dataclasses.replace(trained.config, checkpoint_activations=checkpointed)).train()
    network.load_state_dict(trained.state_dict())
    assert network.network.is_gradient_checkpointing == checkpointed
    latents, timestep, text, refs = inputs(2)
    refs.requires_grad_(True)
    loss = network(latents, timestep, text, refs).square().mean()
    loss.backward()
    return loss, refs.grad, [parameter.grad for parameter in network.parameters()]


def test_gradients_reach_everything_and_checkpointing_keeps_them(network):
    loss, of_refs, of_weights = gradients(network, checkpointed=False)
    assert of_refs.abs().max() > 0 and all(gradient is not None and gradient.isfinite().all() for gradient in of_weights)
    again, of_refs_again, of_weights_again = gradients(network, checkpointed=True)
    assert torch.equal(loss, again) and torch.equal(of_refs, of_refs_again)
    for one, other in zip(of_weights, of_weights_again, strict=True):
        assert_close(other, one, 1e-5)


def test_no_hook_stays_after_an_error(network):
    latents, timestep, text, refs = inputs()
    with pytest.raises(RuntimeError):
        network(latents, timestep, text[..., 1:], refs)
    assert not network.network.rope._forward_pre_hooks and not network.network.rope._forward_hooks
    assert network(latents, timestep, text).shape == latents.shape


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_tokens(processes):
    """Also where some have no references, and others nothing else."""

    def compare(rank: int) -> None:
        for config, anything in itertools.product(VARIANTS.values(), (False, True)):
            network = random_transformer(dataclasses.replace(config, num_attention_heads=4))
            cases = [inputs(num_refs, frames=2, width=10 if anything else 12) for num_refs in (0, 1, 3)]
            cases = [(*case[:3], case[3] if case[3].shape[1] else None) for case in cases]
            expected = [network(*case) for case in cases]
            parallel = ContextParallelConfig(ulysses_degree=processes, ulysses_anything=anything)
            network.network.enable_parallelism(config=parallel)
            for case, output in zip(cases, expected, strict=True):
                assert_close(network(*case), output, 1e-5)

    in_processes(processes, compare)


def test_meta_construction_of_the_real_sizes_takes_no_memory():
    """The published base file has 5,676,070,424 bytes, of which 83 kB are the safetensors header."""
    for ref_modulation, count, tensors in ((False, 1_418_996_800, 825), (True, 1_433_438_272, 857)):
        state_dict = WanDiffusionTransformer(WanTransformerConfig(ref_modulation=ref_modulation), device="meta").state_dict()
        assert all(tensor.is_meta for tensor in state_dict.values())
        assert (sum(tensor.numel() for tensor in state_dict.values()), len(state_dict)) == (count, tensors)
    odd = WanDiffusionTransformer(dataclasses.replace(TINY, patch_size=1, in_channels=8, out_channels=12), device="meta").network
    assert (odd.patch_embedding.weight.shape, odd.proj_out.weight.shape) == ((48, 8, 1, 1, 1), (12, 48))


def test_initial_weights_start_at_zero_velocity_and_follow_the_generator(network):
    fresh, again = (WanDiffusionTransformer(network.config) for _ in range(2))
    for made in (fresh, again):
        initialize_weights(made, torch.Generator().manual_seed(5))
    assert all(torch.equal(one, other) for one, other in zip(fresh.parameters(), again.parameters(), strict=True))
    assert all((weight == 1).all() for name, weight in fresh.named_parameters() if "norm" in name and name.endswith("weight"))
    assert fresh.network.blocks[0].scale_shift_table.std().item() == pytest.approx(48**-0.5, rel=0.2)
    with torch.no_grad():
        assert not fresh(*inputs()).any()
    fresh(*inputs()).sum().backward()
    assert fresh.network.proj_out.weight.grad.abs().max() > 0
