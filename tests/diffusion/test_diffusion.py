"""Schedule, guidance, samplers and loss against the released system's outputs, and their algebra."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import assert_close, seeded

from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.guidance import guidance_scale
from concat_id.diffusion.loss import diffusion_loss
from concat_id.diffusion.samplers import SAMPLERS, sample_ddim
from concat_id.diffusion.schedule import noise_level, zero_snr_schedule


def stand_in(latents, timestep, prompt_embeds, ref_latents):
    """The network of the golden sampler and loss files."""
    text = prompt_embeds.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
    return torch.tanh(0.7 * latents + timestep.view(-1, 1, 1, 1, 1) / 1000) + 0.1 * text + 0.05 * ref_latents.mean(1, keepdim=True)


TEXT, NO_TEXT, REFS = seeded("cond", (1, 5, 8)), seeded("uc", (1, 5, 8)), seeded("ci", (1, 2, 16, 4, 6))


@pytest.mark.parametrize("steps", [7, 25, 50, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_schedule_equals_released(sat_golden, shift, steps):
    course = zero_snr_schedule(shift=shift).sampling_steps(steps)
    assert course.signal[-1] == 1
    assert_close(course.signal[:-1], sat_golden[f"sigmas/shift{shift}/n{steps}"], 1e-5)
    if steps != 1000:
        assert course.timesteps[::-1] == sat_golden[f"sigmas/shift{shift}/n{steps}/idx"].tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_terminal_snr_is_zero_and_the_first_signal_is_kept(shift):
    signal = zero_snr_schedule(shift=shift).signal
    alpha_bar = 1 - 0.00085
    assert signal[-1] == 0
    assert signal[0].item() == pytest.approx(math.sqrt(alpha_bar / (shift + (1 - shift) * alpha_bar)), abs=1e-12)
    assert (signal.diff() < 0).all()


@pytest.mark.parametrize("noise", ["zero", "one"])
@pytest.mark.parametrize("steps", [4, 50])
@pytest.mark.parametrize("kind, released", [("constant", "VanillaCFG"), ("dynamic", "DynamicCFG")])
@pytest.mark.parametrize("batched", [True, False])
def test_sampler_equals_released(sat_golden, kind, released, steps, noise, batched):
    course = zero_snr_schedule().sampling_steps(steps)
    scale = guidance_scale(kind, 6.0, steps, 5.0)
    denoise = guided_denoiser(stand_in, course, Condition(TEXT, REFS), scale, Condition(NO_TEXT, REFS), batched)
    source = torch.zeros_like if noise == "zero" else torch.ones_like
    sampled = SAMPLERS["sde_dpmpp_2m"](denoise, seeded("noise", (1, 3, 16, 4, 6)), course, source)
    assert_close(sampled, sat_golden[f"sampler/{released}/steps{steps}/noise_{noise}"], 1e-5)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_guidance_by_references_adds_what_they_change(scale, batched):
    """n + ref_scale (u - n) + scale (c - u), and each branch is a condition of its own: text, then references, are zero."""
    course, seen = zero_snr_schedule().sampling_steps(4), []

    def network(noised, timestep, text, refs):
        seen.extend(zip(text.abs().sum((1, 2)).tolist(), refs.abs().sum((1, 2, 3, 4)).tolist(), strict=True))
        return stand_in(noised, timestep, text, refs)

    def estimate(**options) -> torch.Tensor:
        denoise = guided_denoiser(network, course, Condition(TEXT, REFS), lambda *_: scale, batched=batched, **options)
        return denoise(seeded("noise", (1, 3, 16, 4, 6)), 1)

    def branch(text, refs) -> torch.Tensor:
        return guided_denoiser(stand_in, course, Condition(text, refs), lambda *_: 1.0)(seeded("noise", (1, 3, 16, 4, 6)), 1)

    plain = estimate()
    assert torch.equal(plain, estimate(ref_scales=[1.0, 1.0])) and len(seen) == (2 if scale == 1 else 4)
    seen.clear()
    neither, without_text, whole = (branch(*inputs) for inputs in ((0 * TEXT, 0 * REFS), (0 * TEXT, REFS), (TEXT, REFS)))
    together = estimate(ref_scales=[2.5])
    assert_close(together, neither + 2.5 * (without_text - neither) + scale * (whole - without_text), 1e-5)
    assert [(text > 0, refs > 0) for text, refs in seen] == [(False, False), (False, True), (True, True)]
    assert torch.equal(together, estimate(ref_scales=[2.5, 2.5]))
    one = Condition(TEXT, REFS[:, :1])  # of more values than people the first count: a training's samples may show fewer
    shown = [guided_denoiser(stand_in, course, one, lambda *_: scale, batched=batched, ref_scales=scales)(torch.ones(1, 3, 16, 4, 6), 1)
             for scales in ([2.5], [2.5, 1.2])]  # fmt: skip
    assert torch.equal(*shown)

    alone = [branch(0 * TEXT, REFS * torch.tensor(shown)[:, None, None, None]) for shown in ((1, 0), (0, 1))]
    guided = without_text + scale * (whole - without_text)
    for scales, added in (
        ((2.5, 1), 1.5 * (without_text - alone[1])),  # without the first person, whose strength it is
        ((1, 2.5), 1.5 * (without_text - alone[0])),
        ((2.5, 0.5), -0.5 * (alone[1] - neither) + 1.5 * (without_text - alone[1])),
    ):
        seen.clear()
        assert_close(estimate(ref_scales=scales), guided + added, 1e-5)
        assert len(seen) == 2 + len(set(scales) - {1})


def test_branches_have_names_of_their_own_and_add_up_in_the_type_of_the_latents():
    course, noised, sizes, names = zero_snr_schedule().sampling_steps(4), seeded("noise", (1, 3, 16, 4, 6)), [], []

    def network(latents, *inputs):
        sizes.append(len(latents))
        return stand_in(latents, *inputs).bfloat16()

    def denoiser(network, **options):
        return guided_denoiser(network, course, Condition(TEXT, REFS), guidance_scale("dynamic_intended", 6.0, 4), **options)

    found = denoiser(network)(noised, 3)
    assert sizes == [2], "the scale is 1 at the first step alone"
    assert torch.equal(found, denoiser(lambda *inputs: network(*inputs).float())(noised, 3))
    denoise = denoiser(network, batched=False, branch=lambda name: names.append(name) or nullcontext())
    for step in (0, 1):
        denoise(noised, step)
    first, second, *again = names
    assert first != second and again == [first, second]


def test_loss_equals_released(sat_golden):
    text, refs = torch.cat([TEXT, NO_TEXT]), torch.cat([REFS, 0.5 * REFS])
    latents, noise = seeded("z", (2, 3, 16, 4, 6)), seeded("lossnoise", (2, 3, 16, 4, 6))
    loss = diffusion_loss(stand_in, zero_snr_schedule(), latents, noise, sat_golden["loss/idx"], Condition(text, refs))
    assert_close(loss, sat_golden["loss/value"])


def test_ddim_follows_the_probability_flow():
    """For data of one point the flow is a straight mix: the noise direction never changes."""
    clean, noise, course = torch.full((1, 1, 1, 2, 2), 0.5), torch.randn(1, 1, 1, 2, 2), zero_snr_schedule().sampling_steps(10)
    path = []
    sample_ddim(lambda x, step: clean, noise, course, torch.zeros_like, lambda step, x: path.append(x))
    for signal, x in zip(course.signal[1:], path, strict=True):
        assert_close(x, (signal * clean + noise_level(signal) * noise).float(), 1e-4)


def test_dynamic_guidance_intended_rises_and_released_slips():
    intended = guidance_scale("dynamic_intended", 6.0, 50)
    scales = [intended(step, 999 - 20 * step) for step in range(50)]
    assert scales[0] == 1 and all(b >= a for a, b in zip(scales, scales[1:], strict=False))
    assert scales[25] == pytest.approx(1 + 6 * (1 - math.cos(math.pi / 32)) / 2)
    released = guidance_scale("dynamic", 6.0, 50)
    assert released(0, 999) == pytest.approx(1 + 6 * (1 - math.cos(math.pi * ((50 - 999) / 50) ** 5)) / 2)
