"""The pipeline with small random weights in the released formats: shapes, seeds, memory modes, and what it refuses."""

import pytest
import torch
from conftest import ROOT, assert_close
from PIL import Image

from concat_id.config.loading import load_config
from concat_id.errors import UserError
from concat_id.sampling.pipeline import CogVideoXPipeline

CPU = torch.device("cpu")


def pipeline_of(tiny_model, **overrides) -> CogVideoXPipeline:
    return CogVideoXPipeline(load_config([ROOT / "configs" / "debug.yaml", tiny_model], overrides), CPU)


def image(shade: int, size: tuple[int, int] = (64, 96)) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize(size[::-1]).point(lambda value: (value + shade) % 256)


def generate(pipeline: CogVideoXPipeline, num_refs: int = 1, seed: int = 0) -> torch.Tensor:
    (prompt_embeds,) = pipeline.encode_prompts(["a man in a red hat smiles"])
    ref_latents = pipeline.encode_references([image(60 * index, pipeline.config.args.sampling_image_size) for index in range(num_refs)])
    return pipeline.decode(pipeline.sample(prompt_embeds, ref_latents, seed))


@pytest.mark.parametrize("num_refs", [1, 2, 3])
def test_prompt_and_references_become_a_video(tiny_model, num_refs):
    video = generate(pipeline_of(tiny_model), num_refs)
    assert video.shape == (3, 9, 64, 96) and torch.isfinite(video).all()


@pytest.mark.parametrize("frames, size", [(1, (64, 96)), (2, (32, 32)), (3, (48, 80))])
def test_lengths_and_sizes_that_the_configuration_allows(tiny_model, frames, size):
    video = generate(pipeline_of(tiny_model, sampling_num_frames=frames, sampling_image_size=size))
    assert video.shape == (3, 4 * frames - 3, *size)


def test_a_seed_reproduces_and_another_differs(tiny_model):
    pipeline = pipeline_of(tiny_model)
    first, again, other = generate(pipeline, seed=1), generate(pipeline_of(tiny_model), seed=1), generate(pipeline, seed=2)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 1e-3


def test_references_and_prompt_are_heard(tiny_model):
    pipeline = pipeline_of(tiny_model)
    (text,) = pipeline.encode_prompts(["a man"])
    (other_text,) = pipeline.encode_prompts(["two people in rain"])
    refs = pipeline.encode_references([image(0), image(90)])
    base = pipeline.sample(text, refs, 0)
    assert (base - pipeline.sample(other_text, refs, 0)).abs().max() > 1e-3
    assert (base - pipeline.sample(text, refs.flip(1), 0)).abs().max() > 1e-4
    assert (base - pipeline.sample(text, refs[:, :1], 0)).abs().max() > 1e-3


def test_references_are_encoded_one_by_one(tiny_model):
    pipeline = pipeline_of(tiny_model)
    both = pipeline.encode_references([image(0), image(90)])
    assert both.shape == (1, 2, 16, 8, 12)
    assert_close(both[:, 1:], pipeline.encode_references([image(90)]), 1e-5)


@pytest.mark.parametrize("memory", ["low", "high"])
def test_memory_modes_give_equal_results(tiny_model, memory):
    expected = generate(pipeline_of(tiny_model, memory="balanced"))
    assert_close(generate(pipeline_of(tiny_model, memory=memory)), expected, 1e-4)


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_kernels_agree(tiny_model, kernel):
    assert_close(generate(pipeline_of(tiny_model, attention_kernel=kernel)), generate(pipeline_of(tiny_model)), 1e-4)


def test_a_kernel_that_cannot_run_is_named(tiny_model):
    with pytest.raises(UserError, match="attention_kernel: cudnn cannot run on cpu"):
        pipeline_of(tiny_model, attention_kernel="cudnn").load()


def test_references_can_be_guidance(tiny_model):
    options = {}, {"ref_guidance_scale": 1}, {"ref_guidance_scale": 2}
    plain, same, stronger = (generate(pipeline_of(tiny_model, **more)) for more in options)
    assert torch.equal(plain, same) and not torch.allclose(plain, stronger, atol=1e-3)


@pytest.mark.parametrize("sampler", ["sde_dpmpp_2m", "ddim"])
@pytest.mark.parametrize("guidance", ["constant", "dynamic", "dynamic_intended"])
def test_samplers_and_guidance(tiny_model, sampler, guidance):
    assert torch.isfinite(generate(pipeline_of(tiny_model, sampler=sampler, guidance=guidance))).all()


def test_sixteen_bits_stay_near_float32(tiny_model):
    small = {"sampling_num_frames": 1, "sampling_image_size": (16, 16)}  # bfloat16 is emulated on many processors
    exact, rounded = (generate(pipeline_of(tiny_model, **small, bf16=bf16)) for bf16 in (False, True))
    assert 0 < (exact - rounded).abs().mean() < 0.1 * exact.abs().mean()


def test_prompts_are_embedded_once_and_kept_on_disk(tiny_model, tmp_path):
    config = load_config([ROOT / "configs" / "debug.yaml", tiny_model])
    first = CogVideoXPipeline(config, CPU, cache_dir=tmp_path).encode_prompts(["a man"])[0]
    second = CogVideoXPipeline(config, CPU, cache_dir=tmp_path)
    assert torch.equal(second.encode_prompts(["a man"])[0], first)
    assert not second.text_encoder.is_loaded


def test_latents_that_are_no_numbers_are_refused(tiny_model):
    pipeline = pipeline_of(tiny_model)
    pipeline.transformer.get_mixin("final_layer").linear.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        generate(pipeline)
