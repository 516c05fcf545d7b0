"""The training objective, and how training draws its timesteps and corrupts its references."""

import torch
from torch import Tensor

from concat_id.diffusion.denoiser import Condition, Network, clean_from_velocity
from concat_id.diffusion.schedule import NoiseSchedule, noise_level

PIXEL_NOISE_LOG_MEAN, PIXEL_NOISE_LOG_STD = -3.0, 0.5  # of references, as released


def diffusion_loss(
    network: Network, schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timestep: Tensor, condition: Condition
) -> Tensor:
    """Loss (B,) of noising clean latents (B, T, C, H, W) to `timestep` (B,): mean of (x_0 estimate - x_0)^2 / (1 - alpha_bar).

    That is the mean squared error of the velocity. References stay clean and are not part of the loss.
    """
    signal = schedule.signal.to(latents.device)[timestep].to(latents.dtype).view(-1, 1, 1, 1, 1)
    level = noise_level(signal)
    noised = signal * latents + level * noise
    velocity = network(noised, timestep, condition.prompt_embeds, condition.ref_latents).to(latents)
    estimate = clean_from_velocity(noised, velocity, signal, level)
    return torch.mean((estimate - latents) ** 2 / level**2, dim=(1, 2, 3, 4))


def draw_timesteps(batch: int, generator: torch.Generator, part: int = 0, parts: int = 1, num_timesteps: int = 1000) -> Tensor:
    """Draw timesteps (B,) uniformly from slice `part` of `parts` equal ones, so that batches drawn together cover the range evenly.

    As released, each data-parallel rank has a slice; here each micro-batch of an optimizer step has.
    """
    part %= num_timesteps  # more parts than timesteps: start again
    parts = min(parts, num_timesteps)
    low, high = num_timesteps * part // parts, num_timesteps * (part + 1) // parts
    return torch.randint(low, max(high, low + 1), (batch,), generator=generator).clamp_(max=num_timesteps - 1)


def add_pixel_noise(refs: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of a strength sigma = exp(N(-3, 0.5)) of its own to every reference (B, R, 3, H, W) in [-1, 1]."""
    sigma = torch.exp(PIXEL_NOISE_LOG_MEAN + PIXEL_NOISE_LOG_STD * torch.randn(refs.shape[:2], generator=generator))
    noise = torch.randn(refs.shape, generator=generator)
    return refs + (sigma[:, :, None, None, None] * noise).to(refs)


def drop_conditions(
    condition: Condition, ref_dropout: float, text_dropout: float, generator: torch.Generator, each: bool = False
) -> Condition:
    """Zero the reference latents of the batch, or of `each` sample by itself, with one probability, and each sample's text with another.

    What is left is guidance's other branch.
    """
    size = len(condition.prompt_embeds)
    keep_refs = torch.rand(size if each else 1, generator=generator) >= ref_dropout
    keep_text = torch.rand(size, generator=generator) >= text_dropout
    text, refs = condition.prompt_embeds * keep_text.to(condition.prompt_embeds)[:, None, None], condition.ref_latents
    return Condition(text, None if refs is None else refs * keep_refs.to(refs)[:, None, None, None, None])
