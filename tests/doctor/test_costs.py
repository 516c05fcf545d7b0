"""The reckoning of memory against what networks hold and what the allocator gives out while the demonstration model runs on a CPU."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from training.measured import Allocations
from transformers import T5Config, T5EncoderModel

from concat_id.config.loading import load_config
from concat_id.config.presets import files_of
from concat_id.doctor.costs import costs_of
from concat_id.models import backbones
from concat_id.models.quantization import bytes_of
from concat_id.sampling.pipeline import make_pipeline

near = partial(pytest.approx, rel=0.35)  # of activations: kernels differ, and what does not grow with the video is not reckoned


def peak(call) -> int:
    """Bytes that the allocator has given out at most during a call, above what there was."""
    with Allocations() as found:
        call()
    return found.peak


@pytest.mark.parametrize(("mode", "options"), [
    (("balanced", False), {}),
    (("low", True, 2), {"memory": "low", "network": "diffusers"}),
    (("balanced", True, 2, True), {"quantize": "int8", "tiled_decoding": True}),
])  # fmt: skip
def test_a_video_takes_what_is_reckoned(mode, options):
    config = load_config(files_of("mini"), {"device": "cpu", "bf16": False, "num_inference_steps": 2, **options})
    pipeline, model, costs = make_pipeline(config, torch.device("cpu")), config.model, costs_of(config)
    pipeline.load()
    held, made = bytes_of(pipeline.transformer), []
    assert (costs.quantized if mode[3:] else costs.transformer) == pytest.approx(held, rel=0.02)
    autoencoder = sum(weight.nbytes for weight in pipeline.autoencoder.parameters())
    assert costs.autoencoder == pytest.approx(autoencoder, rel=0.1)
    text = torch.zeros(1, model.transformer.text_length, model.transformer.text_hidden_size)
    references = torch.zeros(1, 1, 16, 12, 18)
    steps = peak(lambda: made.append(pipeline.sample(text, references, seed=0)))
    decoding = peak(lambda: pipeline.decode(made[0]))
    branches = 1 if mode[0] == "low" else costs.branches
    assert branches * costs.eager == near(steps) and (costs.tiled if mode[1] else costs.decoding) == near(decoding)
    assert costs.needs(False, *mode) == (near(held + autoencoder + max(steps, decoding)), 0)
    if mode[2:]:  # blocks of diffusers' network, of which two are on a GPU
        block = bytes_of(pipeline.transformer.network.transformer_blocks[0])
        assert replace(costs, eager=0, tiled=0, autoencoder=0).needs(True, "low", True, *mode[2:])[0] == pytest.approx(2 * block, rel=0.06)


@pytest.mark.parametrize("size, traced", [((480, 720), 4.75), ((288, 512), 3.63), ((640, 288), 3.25)])
def test_decoding_in_tiles_takes_what_is_traced_without_contents(size, traced):
    costs = costs_of(load_config(files_of("cogvideox_5b"), {"bf16": True, "sampling_image_size": size}))
    assert costs.tiled / 2**30 == pytest.approx(traced, rel=0.02)


@torch.inference_mode()
def test_a_step_of_wan_takes_what_is_reckoned():
    config = load_config(files_of("wan_1_3b"), {"bf16": False, "sampling_num_frames": 3})
    sizes = {"num_layers": 2, "hidden_size": 384, "num_attention_heads": 6, "ffn_dim": 2240, "text_hidden_size": 64}
    config.model.transformer, config.args.sampling_image_size = replace(config.model.transformer, **sizes), (96, 144)
    network = backbones.new_transformer(config)
    backbones.initialize_weights(network, torch.Generator().manual_seed(0))
    latents, text, references = torch.zeros(1, 3, 16, 12, 18), torch.zeros(1, 512, 64), torch.zeros(1, 1, 16, 12, 18)
    assert costs_of(config).eager == near(peak(lambda: network(latents, torch.tensor([500]), text, references)))


@pytest.mark.parametrize("name", ["cogvideox_5b", "wan_1_3b"])
def test_weights_of_the_large_models_are_those_of_their_networks(name):
    config = load_config(files_of(name))
    costs, sizes = costs_of(config), {"d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
    with torch.device("meta"):
        text_encoder = T5EncoderModel(T5Config(d_model=4096, vocab_size=256384 if config.model.kind == "wan" else 32128, **sizes))
    networks = backbones.new_transformer(config, "meta"), text_encoder, backbones.new_autoencoder(config)
    for network, reckoned in zip(networks, (costs.transformer, costs.text_encoder, costs.autoencoder), strict=True):
        assert reckoned == pytest.approx(2 * sum(weight.numel() for weight in network.parameters()), rel=0.005)  # bfloat16
    half = sum(weight.numel() * (4 if ".wo." in name else 2) for name, weight in text_encoder.named_parameters())
    assert costs_of(load_config(files_of(name), {"fp16": True})).text_encoder == pytest.approx(half, rel=0.005)
