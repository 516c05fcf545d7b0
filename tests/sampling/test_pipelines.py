"""The pipelines of both backbones with small random weights in the released formats: shapes, seeds, memory modes, refusals."""

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_close
from in_process import refused
from tiny_pipelines import image, latents_of

from concat_id.config.loading import load_config
from concat_id.models.backbones import weight_digests
from concat_id.sampling.pipeline import CogVideoXPipeline, WanPipeline

CPU = torch.device("cpu")
PIPELINES = {"debug": CogVideoXPipeline, "wan_mini": WanPipeline}


@pytest.fixture
def cogvideox(pipeline_of):
    return lambda **overrides: pipeline_of("debug", **overrides)


@pytest.fixture
def wan(pipeline_of):
    return lambda **overrides: pipeline_of("wan_mini", **overrides)


@pytest.fixture(params=PIPELINES)
def either(request, pipeline_of):
    return lambda **overrides: pipeline_of(request.param, **overrides)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("num_refs, frames, size", [(1, 3, (64, 96)), (2, 1, (32, 48)), (3, 2, (96, 48))])
def test_prompt_and_references_become_a_video(pipeline_of, name, num_refs, frames, size):
    pipeline = pipeline_of(name, sampling_num_frames=frames, sampling_image_size=size)
    assert isinstance(pipeline, PIPELINES[name])
    video = pipeline.decode(latents_of(pipeline, shades=range(0, 60 * num_refs, 60)))
    assert video.shape == (4 * frames - 3, *size, 3) and video.dtype == np.uint8


@pytest.mark.parametrize("name, sampler", [("debug", "ddim"), ("wan_mini", "unipc")])
def test_everything_is_heard_and_a_seed_reproduces(pipeline_of, name, sampler):
    pipeline, shifted = pipeline_of(name), pipeline_of(name).config
    shifted.model.schedule.shift = 2.0
    base = latents_of(pipeline)
    assert torch.equal(base, latents_of(pipeline_of(name)))
    others = {
        "seed": latents_of(pipeline, seed=1),
        "prompt": latents_of(pipeline, prompt="two people in rain"),
        "reference": latents_of(pipeline, shades=(90,)),
        "another reference": latents_of(pipeline, shades=(0, 90)),
        "their order": latents_of(pipeline, shades=(90, 0)),
        "negative prompt": latents_of(pipeline_of(name, negative_prompt="a blue wall")),
        "guidance": latents_of(pipeline_of(name, guidance_scale=1)),
        "guidance by references": latents_of(pipeline_of(name, ref_guidance_scale=2)),
        "shift": latents_of(type(pipeline)(shifted, CPU)),
        "sampler": latents_of(pipeline_of(name, sampler=sampler, num_inference_steps=4)),
    }
    for what, latents in others.items():
        assert (base - latents).abs().max() > 1e-4, what
    assert (others["another reference"] - others["their order"]).abs().max() > 3e-5
    assert torch.equal(base, latents_of(pipeline_of(name, ref_guidance_scale=1)))


def test_guidance_goes_from_the_negative_prompt_through_the_prompt(wan):
    estimates = []
    for scale, negative in ((0, "a wall"), (1, "a wall"), (3, "a wall"), (0, "a man in a red hat")):
        pipeline = wan(guidance_scale=scale, negative_prompt=negative)
        pipeline.samplers = {"euler": lambda denoise, start, *_: estimates.append(denoise(start, 0)) or start}
        latents_of(pipeline)
    none, full, strong, same = estimates
    assert (full - none).abs().max() > 1e-3
    torch.testing.assert_close(strong, none + 3 * (full - none), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(same, full, atol=1e-4, rtol=1e-4)  # both branches are the same


def test_noise_of_wan_is_the_originals_for_a_seed(wan, monkeypatch):
    """Where nothing moves, what is sampled is the noise: drawn as (1, C, T, H, W)."""
    pipeline = wan(num_inference_steps=2)
    pipeline.load()
    for parameter in pipeline.transformer.parameters():
        parameter.data.zero_()
    latents = latents_of(pipeline, seed=5)
    batch, frames, channels, *sides = latents.shape
    noise = torch.randn(batch, channels, frames, *sides, generator=torch.Generator().manual_seed(5))
    assert_close(latents, noise.transpose(1, 2), 1e-6)


def test_references_are_encoded_one_by_one(cogvideox):
    pipeline = cogvideox()
    both = pipeline.encode_references([image(shade, (64, 96)) for shade in (0, 90)])
    assert both.shape == (1, 2, 16, 8, 12)
    assert_close(both[:, 1:], cogvideox().encode_references([image(90, (64, 96))]), 1e-5)


def test_an_image_is_encoded_once_in_a_run(cogvideox, monkeypatch):
    pipeline = cogvideox()
    encode, encoded = pipeline.autoencoder.encode, []
    pipeline.autoencoder.encode = lambda frame: encoded.append(frame) or encode(frame)
    first = pipeline.encode_references([image(90, (64, 96))])
    assert torch.equal(pipeline.encode_references([image(90, (64, 96)), image(90, (64, 96))]), first.repeat(1, 2, 1, 1, 1))
    assert len(encoded) == 1
    monkeypatch.setattr("concat_id.sampling.pipeline.REMEMBERED", 1)
    for shade, count in ((0, 2), (0, 2), (90, 3)):
        pipeline.encode_references([image(shade, (64, 96))])
        assert len(encoded) == count


def test_tiles_are_asked_for_by_either_option(wan):
    asked = []
    for overrides in ({}, {"tiled_decoding": True}, {"memory": "low"}):
        pipeline = wan(**overrides)
        pipeline.autoencoder.decode = lambda latents, tiled: asked.append(tiled) or torch.zeros(1, 3, 1, 8, 8)
        pipeline.decode(torch.zeros(1, 1, 16, 1, 1))
    assert asked == [False, True, True]


def test_dynamic_guidance_reaches_the_sampler(cogvideox):
    found = [latents_of(cogvideox(guidance=guidance, sampling_num_frames=1)) for guidance in ("constant", "dynamic", "dynamic_intended")]
    assert all(torch.isfinite(latents).all() for latents in found)
    assert all((one - other).abs().max() > 1e-4 for one, other in zip(found, found[1:], strict=False))


def test_sixteen_bits_stay_near_float32(either):
    small = {"sampling_num_frames": 1, "sampling_image_size": (16, 16)}  # bfloat16 is emulated on many processors
    exact, rounded = (latents_of(either(**small, bf16=bf16)) for bf16 in (False, True))
    assert 0 < (exact - rounded).abs().mean() < 0.1 * exact.abs().mean()


def test_prompts_are_embedded_once_and_kept_on_disk(cogvideox, tmp_path):
    first = cogvideox(cache_dir=tmp_path / "first").encode_prompts(["a man"])[0]
    second = cogvideox(cache_dir=tmp_path / "first")
    assert torch.equal(second.encode_prompts(["a man"])[0], first)
    assert second.text_encoder._network is None
    second.text_encoder.change("changed", lambda network: None)
    second.encode_prompts(["a man"])
    third = cogvideox(cache_dir=tmp_path / "third")
    third.adopt(second)
    third.encode_prompts(["a man"])
    kept = [{file.name for file in tmp_path.glob(f"{name}/*/*")} for name in ("first", "third")]
    assert kept[1] < kept[0] and [len(names) for names in kept] == [2, 1]
    for memory in ("low", "balanced", "high"):
        pipeline = cogvideox(memory=memory)
        pipeline.encode_prompts(["a man"])
        assert (pipeline.text_encoder._network is not None) == (memory == "high")


def test_weights_are_named_by_content(wan, tiny_wan):
    def digests(**overrides):
        return weight_digests(wan(**overrides).config)

    first = digests()
    second = digests(load=str(tiny_wan.parent / "Concat-ID-Wan" / "second_stage_adaln.pt"))
    assert [name for name in first if first[name] != second[name]] == ["transformer"]
    for load, message in (("nowhere.pt", "nowhere.pt"), (None, "args.load: missing")):
        refused(message, digests, load=load)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_text_encoder_of_another_width_is_refused(pipeline_of, name):
    pipeline = pipeline_of(name)
    pipeline.config.model.transformer.text_hidden_size = 48
    refused("width of its tokens: found 32, expected 48 by model.transformer.text_hidden_size", pipeline.encode_prompts, ["a man"])


def test_choices_that_a_backbone_has_not(cogvideox, wan, tmp_path):
    for make, overrides, message in (
        (wan, {"sampler": "ddim"}, "command line: --sampler: found 'ddim', expected euler or unipc"),
        (wan, {"guidance": "dynamic"}, "--guidance: found 'dynamic', expected constant"),
        (wan, {"sampling_image_size": [60, 96]}, "divisible by 16"),
        (cogvideox, {"sampler": "unipc"}, "sampler: found 'unipc', expected sde_dpmpp_2m or ddim"),
    ):
        refused(message, make, **overrides)
    (tmp_path / "own.yaml").write_text("model: {kind: wam}\n")
    files = [ROOT / "configs" / "wan_mini.yaml", tmp_path / "own.yaml"]
    refused("model.kind: found 'wam', expected one of cogvideox, wan, consisid, consistentid; the nearest is wan", load_config, files)
