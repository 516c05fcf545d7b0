"""The training objective."""

import torch
from torch import Tensor

from concat_id.diffusion.denoiser import Condition, Network, clean_from_velocity
from concat_id.diffusion.schedule import NoiseSchedule, noise_level


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
