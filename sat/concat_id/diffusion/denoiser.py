"""From a network that predicts velocity to a function that estimates clean latents."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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

    def showing(self, people: Sequence[bool]) -> "Condition":
        """The same text with zero references for those who are not to be seen, as training drops them."""
        if self.ref_latents is None:
            return self
        hidden = torch.tensor([not shown for shown in people], device=self.ref_latents.device)[:, None, None, None]
        return Condition(self.prompt_embeds, self.ref_latents.masked_fill(hidden, 0))


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
    ref_scales: Sequence[float] = (1.0,),
    branch: Callable[[str], AbstractContextManager] = lambda name: nullcontext(),
) -> Denoise:
    """Wrap `network` into estimate(x, step) = u + scale * (c - u), c conditional and u unconditional.

    `unconditional` is the condition without its text if not given. `batched` runs all branches as one batch, otherwise
    one after the other in less memory; `branch` is entered around each call of the network, with a name that tells calls of different
    branches apart. A scale that is 1 at every step leaves the unconditional branch out.

    `ref_scales`, of all references or of each, is what the release does not know: where a scale s is other than 1, (s - 1) * (u - n)
    is added, n having neither text nor references (Brooks et al. 2023, eq. 3). Scales s < t of different people take a branch each:
    (s - 1) * (m - n) + (t - 1) * (u - m), where m lacks those of t, and n those of s as well; people of scale 1 are in all of them.
    """
    unconditional = unconditional or condition.without_text()
    scales, fewer = _without_people(unconditional, ref_scales)
    scale_is_1 = all(scale(step, timestep) == 1 for step, timestep in enumerate(steps.timesteps))
    branches = [condition] if scale_is_1 and not fewer else [*fewer, unconditional, condition]
    together = [_join(branches)] if batched else branches

    def denoise(noised: Tensor, step: int) -> Tensor:
        timestep = steps.timesteps[step]
        velocities = []
        for number, group in enumerate(together):
            repeats = group.prompt_embeds.shape[0] // noised.shape[0]
            inputs = noised.repeat(repeats, 1, 1, 1, 1)
            at = torch.full((inputs.shape[0],), timestep, device=noised.device)
            with branch(f"branch {number}"):
                velocities += network(inputs, at, group.prompt_embeds, group.ref_latents).to(noised).chunk(repeats)
        *others, conditional = [steps.clean(step, noised, velocity) for velocity in velocities]
        if not others:
            return conditional
        guided = torch.lerp(others[-1], conditional, scale(step, timestep))
        for ref_scale, less, more in zip(scales, others, others[1:], strict=False):
            guided = guided + (ref_scale - 1) * (more - less)
        return guided

    return denoise


def _without_people(unconditional: Condition, ref_scales: Sequence[float]) -> tuple[list[float], list[Condition]]:
    """The scales other than 1, rising, and for each the branch without those who have it or a larger one."""
    count = 0 if unconditional.ref_latents is None else unconditional.ref_latents.shape[1]
    each = list(ref_scales) * count if len(ref_scales) == 1 else list(ref_scales)[:count]
    scales = sorted(set(each) - {1.0})
    return scales, [unconditional.showing([own == 1 or own < scale for own in each]) for scale in scales]


def _join(conditions: Sequence[Condition]) -> Condition:
    refs = None if conditions[0].ref_latents is None else torch.cat([c.ref_latents for c in conditions])
    return Condition(torch.cat([c.prompt_embeds for c in conditions]), refs)
