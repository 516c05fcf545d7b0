"""Flow matching: straight lines from noise to latents, their samplers as functions of `denoise`, and the loss (Lipman et al. 2023)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from concat_id.diffusion.denoiser import Condition, Denoise, Network
from concat_id.diffusion.samplers import NoiseSource, OnStep, _ignore

LARGEST_SIGMA = 1 - 1e-6  # where log(signal / noise level) is asked for, which pure noise has not


@dataclass(frozen=True)
class FlowSteps:
    """The n noise levels that a sampler visits, noisiest first, and 0, the clean end: `sigmas` (n + 1), float64."""

    sigmas: Tensor
    num_timesteps: int = 1000

    @property
    def timesteps(self) -> list[float]:
        """What the network is told at each: the noise level on the scale 0..num_timesteps."""
        return (self.num_timesteps * self.sigmas[:-1]).tolist()

    def clean(self, step: int, noised: Tensor, velocity: Tensor) -> Tensor:
        """x_0 = x_sigma - sigma * v, from v = noise - x_0."""
        return noised - float(self.sigmas[step]) * velocity


@dataclass(frozen=True)
class FlowSchedule:
    """x_sigma = (1 - sigma) * x_0 + sigma * noise with noise levels moved towards noise: s * u / (1 + (s - 1) * u), u even in (0, 1].

    The shift s makes up for the redundancy of many latents (Esser et al. 2024, eq. 23); Wan's is 5, in training and in sampling.
    """

    num_timesteps: int = 1000
    shift: float = 5.0

    @property
    def sigmas(self) -> Tensor:
        """The noise level of every training timestep, from little noise to pure noise; float64 on the CPU."""
        return self._shifted(torch.arange(1, self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps)

    def sampling_steps(self, num_steps: int) -> FlowSteps:
        """Noise levels that are evenly spaced before the shift, from pure noise to the clean end."""
        return FlowSteps(self._shifted(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)), self.num_timesteps)

    def _shifted(self, levels: Tensor) -> Tensor:
        return self.shift * levels / (1 + (self.shift - 1) * levels)


@torch.no_grad()
def sample_euler(denoise: Denoise, latents: Tensor, steps: FlowSteps, noise: NoiseSource, on_step: OnStep = _ignore) -> Tensor:
    """Euler's method, the released sampling: x <- x + (sigma' - sigma) * v, which is x_0 + sigma' / sigma * (x - x_0).

    Deterministic, `noise` is not asked.
    """
    sigmas = steps.sigmas.tolist()
    for step in range(len(sigmas) - 1):
        latents = torch.lerp(denoise(latents, step), latents, sigmas[step + 1] / sigmas[step])
        on_step(step, latents)
    return latents


@torch.no_grad()
def sample_unipc(denoise: Denoise, latents: Tensor, steps: FlowSteps, noise: NoiseSource, on_step: OnStep = _ignore) -> Tensor:
    """UniPC of second order (Zhao et al. 2023, B(h) = e^h - 1): predict, look where that led, correct; one estimate a step.

    First order in the first and last step. Deterministic, `noise` is not asked.
    """
    sigmas = steps.sigmas.clamp(max=LARGEST_SIGMA).tolist()
    ratios = [math.log((1 - sigma) / sigma) if sigma else math.inf for sigma in sigmas]  # lambda of DPM-Solver
    count = len(sigmas) - 1
    start, estimates = latents, []  # where the last step began, and the estimates of it and of the one before
    for step in range(count):
        estimate = denoise(latents, step)
        start = _unipc_update(start, sigmas, ratios, step - 1, estimates, corrected_by=estimate) if step else latents
        estimates = [estimate, *estimates[:1]] if step < count - 1 else [estimate]
        latents = _unipc_update(start, sigmas, ratios, step, estimates)
        on_step(step, latents)
    return latents


def _unipc_update(
    latents: Tensor, sigmas: list[float], ratios: list[float], step: int, estimates: list[Tensor], corrected_by: Tensor | None = None
) -> Tensor:
    """Go from noise level `step` to the next: first order, and what the differences of the estimates add to it.

    `estimates` are that of `step` and, for second order, the one before; `corrected_by` is that of the arrival, if it is known.
    With h the step in lambda: x' = s'/s x - a' (e^-h - 1) (D + sum_i rho_i (D_i - D) / r_i).
    """
    current, *before = estimates
    h = ratios[step + 1] - ratios[step]
    renewed = -math.expm1(-h)
    change = torch.zeros_like(current)
    slopes = [(earlier - current) / ((ratios[step - 1] - ratios[step]) / h) for earlier in before]
    if corrected_by is not None:
        *weights, last = _corrector_weights(h, [(ratios[step - 1] - ratios[step]) / h for _ in before])
        change = sum((weight * slope for weight, slope in zip(weights, slopes, strict=True)), last * (corrected_by - current))
    elif slopes:
        change = 0.5 * slopes[0]
    return sigmas[step + 1] / sigmas[step] * latents + (1 - sigmas[step + 1]) * renewed * (current + change)


def _corrector_weights(h: float, distances: list[float]) -> list[float]:
    """Weights rho of the earlier estimate, if there is one, at its distance r in units of h, and of the arrival at distance 1.

    First order: 1/2. Second: rho_1 + rho_2 = b_1 and r rho_1 + rho_2 = b_2, what makes the step exact for linear estimates (eq. 9).
    """
    if not distances:
        return [0.5]
    denominator = math.expm1(-h)
    first = denominator / -h - 1
    second = 2 * (first / -h - 0.5)
    b_1, b_2 = first / denominator, second / denominator
    earlier = (b_2 - b_1) / (distances[0] - 1)
    return [earlier, b_1 - earlier]


FLOW_SAMPLERS = {"euler": sample_euler, "unipc": sample_unipc}


def flow_loss(
    network: Network, schedule: FlowSchedule, latents: Tensor, noise: Tensor, timestep: Tensor, condition: Condition
) -> Tensor:
    """Loss (B,) of noising clean latents (B, T, C, H, W) to the levels of `timestep` (B,): mean of (v - (noise - x_0))^2.

    As released, all noise levels of the shifted schedule weigh the same. References stay clean and are not part of the loss.
    """
    sigma = schedule.sigmas.to(latents.device)[timestep]
    level = sigma.to(latents.dtype).view(-1, 1, 1, 1, 1)
    noised = (1 - level) * latents + level * noise
    told = (schedule.num_timesteps * sigma).float()
    velocity = network(noised, told, condition.prompt_embeds, condition.ref_latents).to(latents)
    return torch.mean((velocity - (noise - latents)) ** 2, dim=(1, 2, 3, 4))
