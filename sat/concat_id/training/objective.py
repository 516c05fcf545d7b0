"""From a batch of clips to a loss: encode, spoil, drop and noise it, all of it decided by (seed, step, part of the batch)."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from concat_id.config import Config, ModelConfig
from concat_id.data.cache import REFERENCES, CachedLatents
from concat_id.diffusion.denoiser import Condition, Network
from concat_id.diffusion.flow import FlowSchedule, drop_each, flow_loss
from concat_id.diffusion.loss import (
    add_pixel_noise,
    diffusion_loss,
    draw_logit_normal_timesteps,
    draw_timesteps,
    drop_conditions,
    face_weights,
)
from concat_id.diffusion.schedule import zero_snr_schedule
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.wan_config import WanModelConfig

EmbedPrompts = Callable[[list[str]], Tensor]
"""Captions -> embeddings (B, L, D)."""


def generator_of(*key: Any) -> torch.Generator:
    """A generator on the CPU whose numbers depend on `key` alone, the same on every device."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Recipe:
    """What differs between backbones: noise levels, the loss, how conditions are dropped, and whether latents are posterior samples."""

    schedule: Any
    loss: Callable[..., Tensor]
    drop: Callable[[Condition, float, float, torch.Generator], Condition]
    posterior_samples: bool


def recipe_of(model: ModelConfig | WanModelConfig) -> Recipe:
    """Choose the recipe that a backbone was trained by."""
    steps, shift = model.schedule.num_timesteps, model.schedule.shift
    if model.kind == "wan":
        return Recipe(FlowSchedule(steps, shift), flow_loss, drop_each, posterior_samples=False)
    return Recipe(zero_snr_schedule(steps, shift), diffusion_loss, drop_conditions, posterior_samples=True)


class Objective:
    """The loss of batches of clips; autoencoder and text encoder stay frozen and outside of ZeRO."""

    def __init__(
        self, config: Config, autoencoder: VideoAutoencoder, embed: EmbedPrompts, device: torch.device, latents: CachedLatents | None = None
    ):
        self.model, self.args, self.seed, self.device = config.model, config.args, config.args.seed, device
        self.dtype: torch.dtype = getattr(torch, config.args.dtype_name)
        self.autoencoder, self.embed, self.latents = autoencoder, embed, latents
        self.recipe = recipe_of(config.model)

    def training_loss(self, network: Network, batch: dict[str, Any], step: int, part: int, parts: int) -> Tensor:
        """Loss of micro-batch `part` of the `parts` that make up a step; each draws timesteps from a slice of its own."""
        generator = generator_of(self.seed, "training", step, part)
        timestep = self.draw_timesteps(len(batch["captions"]), generator, part, parts)
        sampled = generator if self.recipe.posterior_samples else None
        condition = Condition(self.embed(batch["captions"]).to(self.device), self.encode_noisy_refs(batch, generator, sampled))
        condition = self.recipe.drop(condition, self.model.ref_image_dropout, self.model.text_dropout, generator)
        latents = self.encode_video(batch, sampled)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        at, weights = timestep.to(self.device), self._weights(batch, latents)
        return self.recipe.loss(self._cast(network), self.recipe.schedule, latents, noise, at, condition, weights).mean()

    def draw_timesteps(self, batch: int, generator: torch.Generator, part: int, parts: int) -> Tensor:
        """Draw timesteps (B,) from slice `part` of `parts` of the distribution that `args.timestep_sampling` names."""
        where = batch, generator, part, parts, self.model.schedule.num_timesteps
        if self.args.timestep_sampling == "logit_normal":
            return draw_logit_normal_timesteps(*where, self.args.logit_mean, self.args.logit_std)
        return draw_timesteps(*where)

    def validation_losses(self, network: Network, batch: dict[str, Any], timesteps: list[int], key: int) -> list[float]:
        """Loss of a batch at fixed timesteps with fixed noise; nothing is dropped or spoiled."""
        condition = Condition(self.embed(batch["captions"]).to(self.device), self.encode_refs(batch["refs"]))
        latents = self.encode_video(batch)
        losses = []
        for timestep in timesteps:
            noise = torch.randn(latents.shape, generator=generator_of("validation", key, timestep)).to(self.device)
            at = torch.full((len(latents),), timestep, device=self.device)
            losses.append(self.recipe.loss(self._cast(network), self.recipe.schedule, latents, noise, at, condition).mean().item())
        return losses

    def encode_refs(self, refs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode references (B, R, 3, H, W), each alone as a single frame, into (B, R, C, h, w): samples if there is a generator."""
        frames = refs.flatten(0, 1)[:, :, None].to(self.device)  # (B*R, 3, 1, H, W)
        latents = self.autoencoder.encode(frames, sample=generator is not None, generator=generator)  # (B*R, 1, C, h, w)
        return latents.view(*refs.shape[:2], *latents.shape[2:])

    def encode_noisy_refs(self, batch: dict[str, Any], generator: torch.Generator, sampled: torch.Generator | None) -> Tensor:
        """Latents (B, R, C, h, w) of references with noise on their pixels, from the cache where they are in it."""
        if "ref_keys" not in batch:
            return self.encode_refs(add_pixel_noise(batch["refs"], generator), sampled)

        def encode(refs: Tensor, key: Any) -> tuple[Tensor, Tensor]:
            noisy = add_pixel_noise(refs, generator_of("reference", json.dumps(key, sort_keys=True)))  # the same whenever it is made
            mean, std = self.autoencoder.encode_moments(noisy[0, :, :, None].to(self.device))  # (R, 1, C, h, w)
            return mean.transpose(0, 1), std.transpose(0, 1)

        return self._draw(self.latents.complete(batch, encode, REFERENCES), sampled)

    def encode_video(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> Tensor:
        """Latents (B, T, C, h, w) of the clips, from the cache where they are in it: posterior samples if there is a generator."""
        if "windows" in batch and self.latents is not None:
            moments = self.latents.complete(batch, lambda video, _: self.autoencoder.encode_moments(video.to(self.device)))
        else:
            moments = self.autoencoder.encode_moments(batch["video"].to(self.device))
        return self._draw(moments, generator)

    def _weights(self, batch: dict[str, Any], latents: Tensor) -> Tensor | float:
        """What the errors of a batch's latents are multiplied with."""
        if self.args.face_weight == 1 or not any(batch["boxes"]):
            return 1.0
        return face_weights(batch["boxes"], tuple(latents.shape[-2:]), self.args.face_weight).to(self.device)

    def _draw(self, moments: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
        """Draw samples of posteriors, or take their means if there is no generator."""
        mean, std = (tensor.to(self.device) for tensor in moments)
        return mean if generator is None else mean + std * torch.randn(mean.shape, generator=generator).to(self.device)

    def _cast(self, network: Network) -> Network:
        """Let the network compute in the run's type."""

        def cast(latents: Tensor, timestep: Tensor, text: Tensor, refs: Tensor | None) -> Tensor:
            return network(latents.to(self.dtype), timestep, text.to(self.dtype), None if refs is None else refs.to(self.dtype))

        return cast
