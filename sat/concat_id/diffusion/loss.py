"""The training objective, and how training draws its timesteps and spoils its references."""

from collections.abc import Sequence

import torch
from torch import Tensor

from concat_id.diffusion.denoiser import Condition, Network, clean_from_velocity
from concat_id.diffusion.schedule import NoiseSchedule, noise_level

PIXEL_NOISE_LOG_MEAN, PIXEL_NOISE_LOG_STD = -3.0, 0.5  # of references, as released


def diffusion_loss(network: Network, schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timestep: Tensor, condition: Condition,
                   weights: Tensor | float = 1.0) -> Tensor:  # fmt: skip
    """Loss (B,) of noising clean latents (B, T, C, H, W) to `timestep` (B,): mean of (x_0 estimate - x_0)^2 / (1 - alpha_bar).

    That is the mean squared error of the velocity. References stay clean and are not part of the loss. `weights`, such as
    `face_weights`, multiply the squared errors.
    """
    signal = schedule.signal.to(latents.device)[timestep].to(latents.dtype).view(-1, 1, 1, 1, 1)
    level = noise_level(signal)
    noised = signal * latents + level * noise
    velocity = network(noised, timestep, condition.prompt_embeds, condition.ref_latents).to(latents)
    estimate = clean_from_velocity(noised, velocity, signal, level)
    return torch.mean(weights * (estimate - latents) ** 2 / level**2, dim=(1, 2, 3, 4))


def face_weights(boxes: Sequence[Sequence[Sequence[float]]], size: tuple[int, int], weight: float) -> Tensor:
    """Weights (B, 1, 1, h, w), 1 on average over each sample, by which what lies in its `boxes` counts `weight` times what does not.

    Boxes are left, top, right, bottom as shares of the frame; latents at an edge count by the part of them that is inside.
    """
    height, width = size
    inside = torch.zeros(len(boxes), height, width)
    for sample, own in zip(inside, boxes, strict=True):
        for left, top, right, bottom in own:
            sample.copy_(torch.maximum(sample, torch.outer(_covered(top, bottom, height), _covered(left, right, width))))
    weights = 1 + (weight - 1) * inside
    return (weights / weights.mean(dim=(1, 2), keepdim=True))[:, None, None]


def _covered(start: float, end: float, cells: int) -> Tensor:
    """How much of each of `cells` equal parts of [0, 1] lies between `start` and `end`."""
    first = torch.arange(cells)
    return (torch.clamp(first + 1, max=end * cells) - torch.clamp(first, min=start * cells)).clamp(0, 1)


def draw_timesteps(batch: int, generator: torch.Generator, part: int = 0, parts: int = 1, num_timesteps: int = 1000) -> Tensor:
    """Draw timesteps (B,) uniformly from slice `part` of `parts` equal ones, so that batches drawn together cover the range evenly.

    As released, each data-parallel rank has a slice; here each micro-batch of an optimizer step has.
    """
    part %= num_timesteps  # more parts than timesteps: start again
    parts = min(parts, num_timesteps)
    low, high = num_timesteps * part // parts, num_timesteps * (part + 1) // parts
    return torch.randint(low, max(high, low + 1), (batch,), generator=generator).clamp_(max=num_timesteps - 1)


def draw_logit_normal_timesteps(
    batch: int, generator: torch.Generator, part: int, parts: int, num_timesteps: int, mean: float, std: float
) -> Tensor:
    """Draw timesteps (B,) whose logit log(t / (1 - t)), t in (0, 1), is normal (Esser et al. 2024, section 3.1): more in the middle.

    Slices hold equal shares of the distribution, so that batches drawn together cover it evenly, as `draw_timesteps` does.
    """
    share = (part + torch.rand(batch, generator=generator, dtype=torch.float64)) / parts
    return (num_timesteps * torch.sigmoid(mean + std * torch.special.ndtri(share))).long().clamp_(max=num_timesteps - 1)


def add_pixel_noise(refs: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of a strength sigma = exp(N(-3, 0.5)) of its own to every reference (B, R, 3, H, W) in [-1, 1]."""
    sigma = torch.exp(PIXEL_NOISE_LOG_MEAN + PIXEL_NOISE_LOG_STD * torch.randn(refs.shape[:2], generator=generator))
    noise = torch.randn(refs.shape, generator=generator)
    return refs + (sigma[:, :, None, None, None] * noise).to(refs)


def drop_conditions(condition: Condition, ref_dropout: float, text_dropout: float, generator: torch.Generator) -> Condition:
    """Zero all reference latents of the batch with one probability, and each sample's text with another (guidance's other branch)."""
    keep_refs = bool(torch.rand(1, generator=generator) >= ref_dropout)
    keep_text = torch.rand(len(condition.prompt_embeds), generator=generator) >= text_dropout
    text = condition.prompt_embeds * keep_text.to(condition.prompt_embeds)[:, None, None]
    refs = condition.ref_latents if keep_refs or condition.ref_latents is None else torch.zeros_like(condition.ref_latents)
    return Condition(text, refs)
