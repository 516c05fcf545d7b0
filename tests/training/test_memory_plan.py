"""The memory plan against what real processes of a small training keep and allocate."""

import json
from pathlib import Path

import pytest
import torch
from in_process import load_script

from concat_id.config.loading import load_config
from concat_id.config.presets import files_of
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.models.backbones import initialize_weights, new_transformer
from concat_id.training import memory_plan, memory_trace
from concat_id.training.memory_plan import measure_sizes, plan

measured = load_script(Path(__file__).with_name("measured.py"))
SHAPES = [1, 3, 16, 8, 12], [1, 16, 32], [1, 1, 16, 8, 12]  # latents, text, references of 9 frames of 64x96


@pytest.mark.parametrize("processes, stage, offload, bf16", [(1, 1, False, True), (2, 3, False, False), (2, 2, True, True)])
def test_what_real_processes_keep_and_allocate(setup, tmp_path, processes, stage, offload, bf16):
    section = {"stage": stage, "reduce_bucket_size": 100_000, "allgather_bucket_size": 100_000}
    section |= {"offload_optimizer": {"device": "cpu"}} if offload else {}
    section |= {"stage3_param_persistence_threshold": 3000} if stage == 3 else {}
    given = {"mode": "pretrain", "ema_decay": 0.9, "bf16": bf16}
    deepspeed = {"zero_optimization": section, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"bases": setup.bases[:1], "args": given, "deepspeed": deepspeed, "shapes": SHAPES}))
    answer = setup.ask({"script": "measured", "arguments": [str(request)], "processes": processes, "folder": str(tmp_path)})
    assert answer["codes"] == [0] * processes, answer["output"]
    found, config = json.loads(request.with_suffix(".answer").read_text()), load_config(setup.bases[:1], given)
    config.deepspeed = deepspeed
    planned = plan(config, measure_sizes(config), processes)
    assert found["all"] == pytest.approx(planned.states - planned.autoencoder + planned.host, rel=0.01)
    if offload:
        assert planned.master == planned.moments == planned.average == 0
    else:
        assert found["update"] == pytest.approx(planned.update, rel=0.1)
    assert 0.9 * found["forward"] <= planned.network <= 1.35 * found["forward"]  # when processes let go of what they reduce varies


@pytest.mark.parametrize("deepspeed, processes, clips", [
    ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}, 2, 2),
    ({"train_batch_size": 8, "gradient_accumulation_steps": 1}, 4, 2), ({"train_batch_size": 8}, 4, 1),
])  # fmt: skip
def test_the_micro_batch_is_that_of_the_engine(setup, monkeypatch, deepspeed, processes, clips):
    monkeypatch.setattr(memory_plan, "trace_network", lambda config, clips, num_refs: clips * 2**40)
    config = load_config(setup.bases[:1])
    config.deepspeed = deepspeed
    assert plan(config, measure_sizes(config), processes).network >> 40 == clips
    config.training.zero_stage = 1
    assert plan(config, measure_sizes(config), processes, 3).zero_stage == 3


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("wan", [False, True])
def test_activations_are_traced_as_they_are_allocated(setup, recompute, wan):
    files = files_of("wan_mini", training=True) if wan else setup.bases[:1]
    config = load_config(files, {"checkpoint_activations": recompute})
    config.model.transformer.num_layers, config.data = 8, load_config(setup.bases[:1]).data
    network = new_transformer(config)
    initialize_weights(network, torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    latents, refs = torch.randn(SHAPES[0]), torch.randn(SHAPES[2])
    text = torch.randn(1, config.model.transformer.text_length, config.model.transformer.text_hidden_size)
    network(latents, torch.tensor([500]), text, refs).mean().backward()  # makes tables that stay
    with measured.Allocations() as found:
        network(latents, torch.tensor([500]), text, refs).float().square().mean().backward()
    traced = memory_trace.trace_network(config, 1, 1)
    assert traced == pytest.approx(found.peak, rel=0.05)


def test_encoding_of_a_wan_of_other_latents_is_traced(setup):
    config = load_config(files_of("wan_1_3b"))
    config.model.autoencoder.latent_channels, config.data = 8, load_config(setup.bases[:1]).data
    assert memory_trace.trace_encoder(config)[0] > 0


def test_encoding_is_traced_as_it_is_allocated(setup):
    config = load_config(setup.bases[:2])
    autoencoder = VideoAutoencoder.from_config(config.model.autoencoder, config.model.scale_factor)
    video = torch.zeros(1, 3, 9, 64, 96)
    with measured.Allocations() as found:
        autoencoder.encode_moments(video)
    traced, _ = memory_trace.trace_encoder(config)
    assert 0.75 * found.peak < traced - video.nbytes <= found.peak  # convolutions on a CPU take one more tensor for themselves
