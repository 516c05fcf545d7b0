"""Samplers: from noise to latents, as functions of a `denoise` estimate."""

from collections.abc import Callable

import torch
from torch import Tensor

from concat_id.diffusion.denoiser import Denoise
from concat_id.diffusion.schedule import SamplingSteps

NoiseSource = Callable[[Tensor], Tensor]
"""Fresh standard-normal noise like the given tensor."""

OnStep = Callable[[int, Tensor], None]
"""Told (step index, latents) after each step."""


def _ignore(step: int, latents: Tensor) -> None: ...


@torch.no_grad()
def sample_sde_dpmpp_2m(
    denoise: Denoise, latents: Tensor, steps: SamplingSteps, noise: NoiseSource, on_step: OnStep = _ignore
) -> Tensor:
    """SDE-DPM-Solver++(2M): second order in lambda = log(signal / noise level), with fresh noise (Lu et al. 2022, eq. 18).

    With h the step in lambda, h' the one before, D' the estimate before:
    D = D_i + h / (2 h') * (D_i - D'),   x <- s'/s * e^-h * x + a' * (1 - e^-2h) * D + s' * sqrt(1 - e^-2h) * z.
    The first step starts at lambda = -inf, so h' = inf makes the second one first order; the last returns its estimate.
    """
    signal, level = steps.signal, steps.noise_level
    log_ratio = torch.log(signal / level)
    last_h = previous = None
    for step in range(len(steps.timesteps)):
        estimate = denoise(latents, step)
        if step == len(steps.timesteps) - 1:
            latents = estimate
        else:
            h = log_ratio[step + 1] - log_ratio[step]
            extrapolated = estimate if previous is None else estimate + float(h / (2 * last_h)) * (estimate - previous)
            decayed = float(level[step + 1] / level[step] * (-h).exp()) * latents
            renewed = float(-torch.expm1(-2 * h))
            latents = decayed + float(signal[step + 1]) * renewed * extrapolated + float(level[step + 1]) * renewed**0.5 * noise(latents)
            last_h, previous = h, estimate
        on_step(step, latents)
    return latents


@torch.no_grad()
def sample_ddim(
    denoise: Denoise, latents: Tensor, steps: SamplingSteps, noise: NoiseSource, on_step: OnStep = _ignore
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 with eta = 0): deterministic, `noise` is not asked.

    x <- a' * x_0 + s' * eps, with eps = (x - a * x_0) / s.
    """
    signal, level = steps.signal, steps.noise_level
    for step in range(len(steps.timesteps)):
        estimate = denoise(latents, step)
        kept = float(level[step + 1] / level[step])
        latents = float(signal[step + 1]) * estimate + kept * (latents - float(signal[step]) * estimate)
        on_step(step, latents)
    return latents


SAMPLERS = {"sde_dpmpp_2m": sample_sde_dpmpp_2m, "ddim": sample_ddim}
