"""The diffusers pipeline gives what this project's sampler gives, needs no checkout, and leaves WanPipeline's features whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_close
from conversion_wan.conftest import FILES, SETTINGS, START
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers_pipelines import check_batches, check_needs_no_checkout, check_oldest, check_pixels, check_upload, check_wrong_calls
from tiny_wan import TINY, TINY_VAE

from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.flow import FlowSchedule, sample_euler
from concat_id.models.wan.autoencoder import WanAutoencoder
from concat_id.models.wan.text_encoder import WanTextEncoder
from concat_id.models.wan.weights import load_wan_transformer
from concat_id.sampling.diffusers_wan import ConcatIDWanPipeline, EvenFlowScheduler

PROMPT = "a man in a red hat"


def latents_of(pipe, images, **options):
    return pipe(PROMPT, reference_images=images, latents=START.clone(), output_type="latent", **SETTINGS | options).frames


@pytest.fixture(scope="module")
def plain(wan, image):
    """Latents (1, C, T, H, W) of the AdaLN variant as loaded, with one reference."""
    return latents_of(wan.pipeline(), [image()])


def test_a_folder_needs_no_checkout(wan, tmp_path):
    check_needs_no_checkout(wan.folders["adaln"], tmp_path, **SETTINGS | {"num_frames": 5, "num_inference_steps": 1})


@pytest.mark.parametrize(("variant", "num_refs", "scales", "ref_scale"), [
    ("first_stage", 1, [5.0] * 3, 1.0), ("adaln", 2, [5.0] * 3, 1.0), ("first_stage", 1, [5.0] * 3, 2.0),
    ("adaln", 2, [5.0] * 3, [2.0, 1.2]), ("adaln", 2, [1.0] * 3, [2.0, 1.0]), ("adaln", 2, [5.0, 1.0, 5.0], [2.0, 1.2]),
])  # fmt: skip
def test_sampled_latents_are_this_projects(wan, image, variant, num_refs, scales, ref_scale):
    """The whole way in our own code: text, references, flow matching with shift, guidance away from "..." that keeps the references.

    A callback may stop the text's guidance, and begin it again.
    """
    images = [image(40 * index) for index in range(num_refs)]
    encoder = WanTextEncoder(wan.model.text_encoder.path, TINY.text_length, torch.float32)
    autoencoder = WanAutoencoder.from_path(wan.model.autoencoder.path, **TINY_VAE)
    config = replace(TINY, ref_modulation=variant == "adaln")
    network = load_wan_transformer(wan.native / FILES[variant], config, torch.float32, start=False)
    refs = torch.cat([autoencoder.encode(ConcatIDWanPipeline._pixels(image, (64, 96))) for image in images], dim=1)
    text, negative = encoder.encode([PROMPT, "..."]).split(1)
    steps = FlowSchedule(shift=5.0).sampling_steps(3)
    branches = Condition(text, refs), lambda step, _: scales[step], Condition(negative, refs)
    denoise = guided_denoiser(network, steps, *branches, batched=False, ref_scales=np.atleast_1d(ref_scale))
    expected = sample_euler(denoise, START.transpose(1, 2), steps, torch.zeros_like).transpose(1, 2)

    def change(pipe, step, timestep, tensors):
        pipe._guidance_scale = scales[min(step + 1, 2)]
        return {}

    options = {"guidance_scale": scales[0], "ref_guidance_scale": ref_scale, "callback_on_step_end": change}
    found = latents_of(wan.pipeline(variant), images, **options)
    assert_close(found, expected, 2e-5)


def test_the_schedule_is_evenly_spaced_before_the_shift():
    scheduler = EvenFlowScheduler(shift=5.0)
    scheduler.set_timesteps(50)
    expected = FlowSchedule(shift=5.0).sampling_steps(50)
    assert torch.allclose(scheduler.sigmas, expected.sigmas.float(), atol=1e-6)
    assert torch.allclose(scheduler.timesteps, torch.tensor(expected.timesteps), atol=1e-3)
    scheduler.set_timesteps(2, sigmas=[1.0, 0.25])  # a user's own
    assert torch.allclose(scheduler.sigmas, torch.tensor([1.0, 0.625, 0.0]))
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(50)
    assert (theirs.sigmas - expected.sigmas).abs().max() > 0.01  # or there would be no need of ours


def test_without_references_it_is_wanpipeline(wan):
    pipe = wan.pipeline("first_stage")
    transformer = WanTransformer3DModel.from_pretrained(wan.folders["first_stage"] / "transformer")
    theirs = WanPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.scheduler, transformer)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(PROMPT, "...", latents=START.clone(), output_type="latent", **SETTINGS).frames
    assert torch.equal(latents_of(pipe, []), expected)
    ours = type(pipe).from_pipe(theirs)
    assert ours.transformer is transformer and type(ours.scheduler) is type(pipe.scheduler)
    assert torch.equal(latents_of(ours, []), expected)
    assert not torch.equal(latents_of(pipe, [], negative_prompt="snow"), expected)


def test_unipc_and_other_schedulers_take_its_place(wan, image, plain):
    pipe = wan.pipeline()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    assert not torch.equal(latents_of(pipe, [image()]), plain)
    assert type(wan.pipeline().scheduler).__name__ == "EvenFlowScheduler"


def test_sequential_offload_gives_the_same(wan, image, plain, weights_leave):
    pipe = wan.pipeline()
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert {parameter.device.type for parameter in pipe.transformer.parameters()} == {"meta"}
    assert torch.equal(latents_of(pipe, [image()]), plain)


@pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")  # which older releases ask for
def test_half_precision_loads_and_keeps_the_modulations_exact(wan, image, plain):
    pipe = wan.pipeline(torch_dtype=torch.bfloat16)
    block = pipe.transformer.blocks[0]
    assert block.scale_shift_table_ref.dtype == torch.float32 and block.ffn.net[2].weight.dtype == torch.bfloat16
    assert (latents_of(pipe, [image()]).float() - plain).abs().mean() < 0.1 * plain.std()


def test_batches_and_hooks_left_clean(wan, image):
    pipe = wan.pipeline()
    check_batches(pipe, image, torch.cat([START, START.flip(-1)]), **SETTINGS | {"num_inference_steps": 2})
    settings = SETTINGS | {"output_type": "latent", "num_videos_per_prompt": 2}
    twice = pipe("a man", reference_images=image(), latents=START.repeat(2, 1, 1, 1, 1), **settings).frames
    assert_close(twice[1:], twice[:1], 1e-4)


def test_references_are_read_as_here(tmp_path):
    check_pixels(ConcatIDWanPipeline, tmp_path)


def test_wrong_calls_are_told(wan, image):
    check_wrong_calls(wan.pipeline(), image, **SETTINGS | {"num_inference_steps": 1})


def test_an_upload_holds_the_code(wan, monkeypatch):
    check_upload(wan.pipeline(), monkeypatch, "pipeline.py", "wan_network.py")


def test_an_old_diffusers_is_refused_in_one_line(monkeypatch):
    check_oldest(ConcatIDWanPipeline, "0.34.0", "0.35", monkeypatch)
