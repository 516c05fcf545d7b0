"""How much signal is left at each of the training timesteps, and which of them a sampler visits."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from concat_id.diffusion.denoiser import clean_from_velocity

BETA_START, BETA_END = 0.00085, 0.0120  # Stable Diffusion's scaled-linear schedule, which CogVideoX keeps


@dataclass(frozen=True)
class SamplingSteps:
    """The n timesteps that a sampler visits, noisiest first.

    `signal` (n + 1, float64) is what the solver takes for the signal at each, followed by 1, the clean end;
    `network_signal` (n) is what turns the network's velocity into an estimate there.
    """

    timesteps: list[int]
    signal: Tensor
    network_signal: Tensor

    @property
    def noise_level(self) -> Tensor:
        """The noise's factor at each step, 0 at the end."""
        return noise_level(self.signal)

    def clean(self, step: int, noised: Tensor, velocity: Tensor) -> Tensor:
        """Estimate the clean latents from the network's velocity at a step."""
        signal = self.network_signal[step].to(noised.dtype)  # a number on the CPU: no device waits for it
        return clean_from_velocity(noised, velocity, signal, noise_level(signal))


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise: x_t = signal[t] * x_0 + sqrt(1 - signal[t]^2) * noise, for t = 0 (clean) to the last (pure noise).

    `signal` is sqrt(alpha_bar) with zero terminal SNR, `unscaled` the same before that correction; float64 on the CPU.
    """

    unscaled: Tensor

    @property
    def signal(self) -> Tensor:
        """The signal's factor at every training timestep."""
        return rescaled_to_zero_snr(self.unscaled)

    def sampling_steps(self, num_steps: int) -> SamplingSteps:
        """Timesteps evenly spaced from the last, without 0, truncated to integers.

        As released: zero terminal SNR is imposed on the chosen timesteps anew, so that the signal at the *last of them* is
        what is left unchanged, not the signal at timestep 0: 0.7 % of the range higher at 7 steps. The network's output is
        read with the nearest value of the training table (which may belong to a neighbouring timestep).
        """
        timesteps = np.linspace(len(self.unscaled) - 1, 0, num_steps, endpoint=False).astype(int).tolist()
        signal = rescaled_to_zero_snr(self.unscaled[timesteps[::-1]]).flip(0)
        nearest = (self.signal - signal[:, None]).abs().argmin(dim=1)
        return SamplingSteps(timesteps, torch.cat([signal, signal.new_ones(1)]), self.signal[nearest])


def noise_level(signal: Tensor) -> Tensor:
    """The noise's factor sqrt(1 - signal^2)."""
    return (1 - signal**2).sqrt()


def rescaled_to_zero_snr(signal: Tensor) -> Tensor:
    """Shift and scale so that the last value becomes 0 and the first stays (Lin et al. 2023, algorithm 1)."""
    first, last = signal[0], signal[-1]
    return (signal - last) * first / (first - last)


def zero_snr_schedule(num_timesteps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
    """Build CogVideoX's schedule, whose last timestep is pure noise.

    alpha_bar is the cumulative product of 1 - beta, moved to a lower signal-to-noise ratio by
    alpha_bar / (shift + (1 - shift) * alpha_bar).
    """
    betas = torch.linspace(math.sqrt(BETA_START), math.sqrt(BETA_END), num_timesteps, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)
    return NoiseSchedule((alpha_bar / (shift + (1 - shift) * alpha_bar)).sqrt())
