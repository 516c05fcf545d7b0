"""From a network that predicts velocity to a function that estimates clean latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from concat_id.diffusion.guidance import GuidanceScale

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(latents (B,T,C,H,W), timestep (B,), prompt_embeds (B,L,D), ref_latents (B,R,C,H,W) or None) -> velocity (B,T,C,H,W)."""

Denoise = Callable[[Tensor, int], Tensor]
"""(noised latents, step index) -> estimate of the clean latents."""


class Steps(Protocol):
    """The timesteps that a sampler visits, and how an estimate of the clean latents follows from the network's velocity at each."""

    @property
    def timesteps(self) -> Sequence[float]:
        """What the network is told at each step."""

    def clean(self, step: int, noised: Tensor, velocity: Tensor) -> Tensor:
        """Estimate the clean latents."""


@dataclass(frozen=True)
class Condition:
    """What the video should show: prompt embeddings (B, L, D) and, optionally, reference latents (B, R, C, H, W)."""

    prompt_embeds: Tensor
    ref_latents: Tensor | None

    def without_text(self) -> "Condition":
        """The unconditional branch: zero text, the same references."""
        return Condition(torch.zeros_like(self.prompt_embeds), self.ref_latents)

    def without_refs(self) -> "Condition":
        """The same text with zero references, as training drops them."""
        return Condition(self.prompt_embeds, None if self.ref_latents is None else torch.zeros_like(self.ref_latents))


def clean_from_velocity(noised: Tensor, velocity: Tensor, signal: Tensor, noise_level: Tensor) -> Tensor:
    """x_0 = signal * x_t - noise_level * v, from v = signal * noise - noise_level * x_0 (Salimans & Ho 2022, appendix D)."""
    return signal * noised - noise_level * velocity


def guided_denoiser(
    network: Network,
    steps: Steps,
    condition: Condition,
    scale: GuidanceScale,
    unconditional: Condition | None = None,
    batched: bool = True,
    ref_scale: float = 1.0,
) -> Denoise:
    """Wrap `network` into estimate(x, step) = u + scale * (c - u), c conditional and u unconditional.

    `unconditional` is the condition without its text if not given. `batched` runs all branches as one batch, otherwise
    one after the other in less memory. A scale of exactly 1 leaves the unconditional branch out.

    Where `ref_scale` is other than 1, which the release does not know, (ref_scale - 1) * (u - n) is added from a third branch n that has
    neither text nor references (Brooks et al. 2023, eq. 3).
    """
    unconditional = unconditional or condition.without_text()
    branches = (unconditional, condition) if ref_scale == 1 else (unconditional.without_refs(), unconditional, condition)
    together = [_join(branches)] if batched else list(branches)

    def denoise(noised: Tensor, step: int) -> Tensor:
        timestep = steps.timesteps[step]
        strength = scale(step, timestep)
        velocities = []
        for group in [condition] if strength == ref_scale == 1 else together:
            repeats = group.prompt_embeds.shape[0] // noised.shape[0]
            inputs = noised.repeat(repeats, 1, 1, 1, 1)
            at = torch.full((inputs.shape[0],), timestep, device=noised.device)
            velocities += network(inputs, at, group.prompt_embeds, group.ref_latents).to(noised).chunk(repeats)
        *others, conditional = [steps.clean(step, noised, velocity) for velocity in velocities]
        if not others:
            return conditional
        guided = torch.lerp(others[-1], conditional, strength)
        return guided if ref_scale == 1 else guided + (ref_scale - 1) * (others[-1] - others[0])

    return denoise


def _join(conditions: tuple[Condition, ...]) -> Condition:
    refs = None if conditions[0].ref_latents is None else torch.cat([c.ref_latents for c in conditions])
    return Condition(torch.cat([c.prompt_embeds for c in conditions]), refs)
