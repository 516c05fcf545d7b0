"""The Wan pipeline with small random weights in Wan's own formats: shapes, seeds, what it listens to, memory modes."""

import pytest
import torch
from conftest import ROOT, assert_close
from PIL import Image
from tiny_wan import write_tiny_wan

from concat_id.config.loading import load_config
from concat_id.errors import UserError
from concat_id.models.backbones import weight_digests
from concat_id.sampling.pipeline import WanPipeline, make_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_wan(tmp_path_factory):
    return write_tiny_wan(tmp_path_factory.mktemp("tiny wan"))


@pytest.fixture
def pipeline_of(tiny_wan):
    def make(**overrides) -> WanPipeline:
        return make_pipeline(load_config([ROOT / "configs" / "wan_mini.yaml", tiny_wan], overrides), CPU)

    return make


def image(shade: int, size: tuple[int, int]) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize(size[::-1]).point(lambda value: (value + shade) % 256)


def latents_of(pipeline: WanPipeline, prompt: str = "a man in a red hat", num_refs: int = 1, seed: int = 0) -> torch.Tensor:
    (prompt_embeds,) = pipeline.encode_prompts([prompt])
    images = [image(60 * index, pipeline.config.args.sampling_image_size) for index in range(num_refs)]
    return pipeline.sample(prompt_embeds, pipeline.encode_references(images), seed)


@pytest.mark.parametrize("num_refs, frames, size", [(1, 3, (64, 96)), (2, 1, (32, 48)), (3, 2, (96, 64))])
def test_prompt_and_references_become_a_video(pipeline_of, num_refs, frames, size):
    pipeline = pipeline_of(sampling_num_frames=frames, sampling_image_size=size)
    assert isinstance(pipeline, WanPipeline)
    video = pipeline.decode(latents_of(pipeline, num_refs=num_refs))
    assert video.shape == (3, 4 * frames - 3, *size) and torch.isfinite(video).all()


def test_everything_is_heard_and_a_seed_reproduces(pipeline_of):
    base = latents_of(pipeline_of())
    assert torch.equal(base, latents_of(pipeline_of()))
    others = {
        "seed": latents_of(pipeline_of(), seed=1),
        "prompt": latents_of(pipeline_of(), prompt="two people in rain"),
        "references": latents_of(pipeline_of(), num_refs=2),
        "negative prompt": latents_of(pipeline_of(negative_prompt="a blue wall")),
        "guidance": latents_of(pipeline_of(guidance_scale=1)),
        "sampler": latents_of(pipeline_of(sampler="unipc", num_inference_steps=4)),
    }
    for name, latents in others.items():
        assert (base - latents).abs().max() > 1e-4, name


def test_guidance_goes_from_the_negative_prompt_through_the_prompt(pipeline_of):
    estimates = []
    for scale in (0, 1, 3):
        pipeline = pipeline_of(guidance_scale=scale, negative_prompt="a wall")
        pipeline.samplers = {"euler": lambda denoise, start, *_: estimates.append(denoise(start, 0)) or start}
        latents_of(pipeline)
    none, full, strong = estimates
    assert (full - none).abs().max() > 1e-3
    torch.testing.assert_close(strong, none + 3 * (full - none), atol=1e-4, rtol=1e-4)
    pipeline = pipeline_of(guidance_scale=0, negative_prompt="a man in a red hat")  # both branches are the same
    pipeline.samplers = {"euler": lambda denoise, start, *_: estimates.append(denoise(start, 0)) or start}
    latents_of(pipeline)
    torch.testing.assert_close(estimates[-1], full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("memory", ["low", "high"])
def test_memory_modes_give_equal_results(pipeline_of, memory):
    expected, found = (latents_of(pipeline_of(memory=mode), num_refs=2) for mode in ("balanced", memory))
    assert_close(found, expected, 1e-4)


def test_tiles_are_asked_for_by_either_option(pipeline_of):
    asked = []

    class Autoencoder(torch.nn.Module):
        def decode(self, latents, tiled):
            asked.append(tiled)
            return torch.zeros(1, 3, 1, 8, 8)

    for overrides in ({}, {"tiled_decoding": True}, {"memory": "low"}):
        pipeline = pipeline_of(**overrides)
        pipeline.autoencoder = Autoencoder()
        pipeline.decode(torch.zeros(1, 1, 16, 1, 1))
    assert asked == [False, True, True]


def test_sixteen_bits_stay_near_float32(pipeline_of):
    small = {"sampling_num_frames": 1, "sampling_image_size": (16, 16)}  # bfloat16 is emulated on many processors
    exact, rounded = (latents_of(pipeline_of(**small, bf16=bf16)) for bf16 in (False, True))
    assert 0 < (exact - rounded).abs().mean() < 0.1 * exact.abs().mean()


def test_weights_are_named_by_content(tiny_wan):
    def digests(**overrides):
        return weight_digests(load_config([ROOT / "configs" / "wan_mini.yaml", tiny_wan], overrides))

    first = digests()
    second = digests(load=str(tiny_wan.parent / "Concat-ID-Wan" / "second_stage_adaln.pt"))
    assert [name for name in first if first[name] != second[name]] == ["transformer"]
    with pytest.raises(UserError, match="nowhere.pt"):
        digests(load="nowhere.pt")
    with pytest.raises(UserError, match="args.load: missing"):
        digests(load=None)


def test_choices_that_wan_has_not(pipeline_of):
    for overrides, message in (
        ({"sampler": "ddim"}, "command line: --sampler: found 'ddim', expected euler or unipc"),
        ({"guidance": "dynamic"}, "--guidance: found 'dynamic', expected constant"),
        ({"attention_kernel": "flash"}, "--attention_kernel: found 'flash', expected auto"),
        ({"sampling_image_size": [60, 96]}, "divisible by 16"),
    ):
        with pytest.raises(UserError) as caught:
            pipeline_of(**overrides)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="sampler: found 'unipc', expected sde_dpmpp_2m or ddim"):
        load_config([ROOT / "configs" / "debug.yaml"], {"sampler": "unipc"})


def test_a_kind_that_nobody_knows(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("model: {kind: wam}\n")
    with pytest.raises(UserError, match="model.kind: found 'wam', expected one of cogvideox, wan; the nearest is wan"):
        load_config([ROOT / "configs" / "wan_mini.yaml", path])


def test_the_other_backbone_takes_a_negative_prompt_too(tiny_model):
    latents = []
    for negative in (None, "two people"):
        config = load_config([ROOT / "configs" / "debug.yaml", tiny_model], {"negative_prompt": negative})
        latents.append(latents_of(make_pipeline(config, CPU)))
    assert torch.isfinite(latents[1]).all() and (latents[0] - latents[1]).abs().max() > 1e-3
