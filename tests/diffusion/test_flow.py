"""Flow matching against diffusers' schedulers, against what is known in closed form, and what training draws of it."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.flow import FLOW_SAMPLERS, FlowSchedule, FlowSteps, flow_loss, sample_euler, sample_unipc
from concat_id.diffusion.loss import drop_conditions

SHAPE = 2, 3, 4, 6, 5
CONDITION = Condition(torch.ones(2, 3, 4), torch.ones(2, 1, 4, 6, 5))


def normal(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bent(latents, timestep, text, refs):
    """A velocity that depends on everything and is no straight line."""
    scaled = (timestep / 1000).view(-1, 1, 1, 1, 1)
    return (latents * (1 + scaled)).sin() + scaled**2 + 0.1 * text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1) * refs.mean()


def run(scheduler, latents: torch.Tensor) -> torch.Tensor:
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        told = torch.full((2,), 1000 * float(sigma), dtype=torch.float64)
        latents = scheduler.step(bent(latents, told, *vars(CONDITION).values()), timestep, latents).prev_sample
    return latents


def sampled(name: str, steps: FlowSteps, latents: torch.Tensor) -> torch.Tensor:
    return FLOW_SAMPLERS[name](guided_denoiser(bent, steps, CONDITION, lambda *_: 1.0), latents, steps, None)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_noise_levels_and_euler_equal_those_of_diffusers(count):
    ours = FlowSchedule(1000, 5.0).sampling_steps(count)
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(sigmas=torch.linspace(1, 0, count + 1)[:-1].tolist())
    torch.testing.assert_close(ours.sigmas.float(), theirs.sigmas)
    torch.testing.assert_close(torch.tensor(ours.timesteps), theirs.timesteps)
    torch.testing.assert_close(sampled("euler", ours, normal(0)), run(theirs, normal(0)).double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 20])
def test_unipc_equals_that_of_diffusers(count):
    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, solver_order=2)
    theirs.set_timesteps(count)
    ours = FlowSteps(theirs.sigmas.double())
    torch.testing.assert_close(sampled("unipc", ours, normal(0)), run(theirs, normal(0)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sample", [sample_euler, sample_unipc])
def test_a_known_image_is_reached_exactly_and_every_step_is_told(sample):
    target, told = normal(2), []
    steps = FlowSchedule().sampling_steps(7)
    found = sample(lambda x, step: target, normal(3), steps, None, lambda step, x: told.append(step))
    torch.testing.assert_close(found, target)
    assert told == list(range(7))


def test_loss_is_the_distance_to_noise_minus_latents():
    latents, noise, timestep = normal(0), normal(1), torch.tensor([10, 999])
    schedule, seen = FlowSchedule(1000, 5.0), []

    def network(noised, told, text, refs):
        seen.append((noised, told))
        return noise - latents + 0.5

    losses = flow_loss(network, schedule, latents, noise, timestep, CONDITION)
    torch.testing.assert_close(losses, torch.full((2,), 0.25, dtype=torch.float64))
    ((noised, told),) = seen
    sigma = 5 * 0.011 / (1 + 4 * 0.011)
    torch.testing.assert_close(noised[0], (1 - sigma) * latents[0] + sigma * noise[0])
    torch.testing.assert_close(noised[1], noise[1])
    torch.testing.assert_close(told, torch.tensor([1000 * sigma, 1000.0]))
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    torch.testing.assert_close(noised.float(), theirs.scale_noise(latents.float(), theirs.timesteps[[989, 0]], noise.float()))


def test_texts_may_be_dropped_and_references_may_be_absent():
    condition = Condition(torch.ones(4, 2, 3), torch.ones(4, 1, 2, 2, 2))
    assert (drop_conditions(condition, 0.0, 1.0, torch.Generator(), each=True).prompt_embeds == 0).all()
    assert drop_conditions(Condition(condition.prompt_embeds, None), 1.0, 0.0, torch.Generator()).ref_latents is None
