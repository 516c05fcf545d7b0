"""Whole samples: our network, guidance and sampler on diffusers' signal levels against the whole diffusers pipeline, same noise."""

import numpy as np
import pytest
import torch
from conftest import assert_close
from diffusers import CogVideoXDDIMScheduler

from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.guidance import guidance_scale
from concat_id.diffusion.samplers import sample_ddim, sample_sde_dpmpp_2m
from concat_id.diffusion.schedule import SamplingSteps, zero_snr_schedule
from concat_id.sampling.pipeline import CogVideoXPipeline as SatPipeline

PROMPT = "a man in a red hat"


def noise_like_diffusers(generator: torch.Generator):
    """diffusers' DPM scheduler draws noise once at the first step and twice, for nothing the first time, at every other."""
    drawn = []

    def noise(x: torch.Tensor) -> torch.Tensor:
        for _ in range(1 if not drawn else 2):
            fresh = torch.randn(x.shape, generator=generator)
        drawn.append(True)
        return fresh

    return noise


@pytest.mark.parametrize("positions, scheduler, num_refs, shape, guidance, scale, ref_scale", [
    ("rotary", "sde_dpmpp_2m", 2, (3, 8, 12), "dynamic", 6.0, 1.0),
    ("rotary", "sde_dpmpp_2m", 2, (3, 8, 12), "dynamic", 6.0, [2.0, 1.2]),
    ("rotary", "ddim", 3, (3, 8, 12), "constant", 6.0, [0.5, 1.0, 2.0]),
    ("rotary", "ddim", 1, (3, 8, 12), "constant", 1.0, 2.0),
    ("sincos", "ddim", 2, (2, 12, 8), "constant", 6.0, 2.0),
    ("sincos", "sde_dpmpp_2m", 1, (1, 8, 12), "constant", 6.0, 1.0),
])  # fmt: skip
def test_whole_samples_agree(request, image, positions, scheduler, num_refs, shape, guidance, scale, ref_scale):
    model = request.getfixturevalue(positions)
    pipe, sat = model.pipeline(), SatPipeline(model.config, torch.device("cpu"))
    if scheduler == "ddim":
        pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    frames, height, width = shape
    images = [image(50 * index).resize((8 * width, 8 * height)) for index in range(num_refs)]
    start = torch.randn(1, frames, 16, height, width, generator=torch.Generator().manual_seed(3))
    found = pipe(
        PROMPT, reference_images=images, latents=start, num_inference_steps=4, guidance_scale=scale, use_dynamic_cfg=guidance == "dynamic",
        num_frames=4 * frames - 3, height=8 * height, width=8 * width, generator=torch.Generator().manual_seed(9), output_type="latent",
        ref_guidance_scale=ref_scale,
    ).frames  # fmt: skip

    timesteps = pipe.scheduler.timesteps.tolist()
    signal = pipe.scheduler.alphas_cumprod[timesteps].double().sqrt()
    steps = SamplingSteps(timesteps, torch.cat([signal, signal.new_ones(1)]), signal)
    condition = Condition(sat.encode_prompts([PROMPT])[0], sat.encode_references(images))
    denoise = guided_denoiser(sat.transformer, steps, condition, guidance_scale(guidance, scale, 4), ref_scales=np.atleast_1d(ref_scale))
    sampler = sample_ddim if scheduler == "ddim" else sample_sde_dpmpp_2m
    expected = sampler(denoise, start, steps, noise_like_diffusers(torch.Generator().manual_seed(9)))
    assert_close(found, expected, 2e-5)


def test_noise_levels_and_size_are_the_models(rotary, sincos):
    for model in (rotary, sincos):
        pipe, settings = model.pipeline(), model.config.model.schedule
        scheduler = pipe.scheduler
        expected = zero_snr_schedule(settings.num_timesteps, settings.shift).signal
        assert_close(scheduler.alphas_cumprod.sqrt(), expected, 1e-5)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
        assert (pipe.transformer.config.sample_height, pipe.transformer.config.sample_width) == (8, 12)


def test_pixels_agree_too(rotary):
    sat, pipe = SatPipeline(rotary.config, torch.device("cpu")), rotary.pipeline()
    latents = torch.randn(1, 3, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    assert_close(pipe.decode_latents(latents), sat.autoencoder.decode(latents), 2e-5)
