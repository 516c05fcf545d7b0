"""From a batch of clips to a loss: encode, corrupt, drop and noise it, all of it decided by (seed, step, part of the batch)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from concat_id.config.cogvideox import ModelConfig
from concat_id.config.schema import Config
from concat_id.config.wan import WanModelConfig
from concat_id.data.dataset import Batch
from concat_id.diffusion.denoiser import Condition, Network
from concat_id.diffusion.flow import FlowSchedule, flow_loss
from concat_id.diffusion.loss import add_pixel_noise, diffusion_loss, draw_timesteps, drop_conditions
from concat_id.diffusion.schedule import zero_snr_schedule
from concat_id.distributed import sent
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.video.transforms import to_frames
from concat_id.weights.tensor_cache import TensorCache

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
        return Recipe(FlowSchedule(steps, shift), flow_loss, partial(drop_conditions, each=True), posterior_samples=False)
    return Recipe(zero_snr_schedule(steps, shift), diffusion_loss, drop_conditions, posterior_samples=True)


class Objective:
    """The loss of batches of clips; autoencoder and text encoder stay frozen and outside of ZeRO."""

    def __init__(
        self, config: Config, autoencoder: VideoAutoencoder, embed: EmbedPrompts, device: torch.device, latents: TensorCache | None = None
    ):
        self.model, self.seed, self.device = config.model, config.args.seed, device
        self.dtype: torch.dtype = getattr(torch, config.args.dtype_name)
        self.autoencoder, self.embed, self.latents = autoencoder, embed, latents
        self.recipe, self.num_timesteps = recipe_of(config.model), config.model.schedule.num_timesteps

    def training_loss(self, network: Network, batch: Batch, step: int, part: int, parts: int) -> Tensor:
        """Loss of micro-batch `part` of the `parts` that make up a step; each draws timesteps from a slice of its own."""
        generator = generator_of(self.seed, "training", step, part)
        timestep = self.draw_timesteps(len(batch.captions), generator, part, parts)
        sampled = generator if self.recipe.posterior_samples else None
        refs = self.encode_refs(add_pixel_noise(batch.refs, generator), sampled)
        condition = Condition(sent(self.embed(batch.captions), self.device), refs)
        condition = self.recipe.drop(condition, self.model.ref_image_dropout, self.model.text_dropout, generator)
        latents = self.encode_video(batch, sampled)
        noise, timestep = (sent(drawn, self.device) for drawn in (torch.randn(latents.shape, generator=generator), timestep))
        return self.recipe.loss(self._cast(network), self.recipe.schedule, latents, noise, timestep, condition).mean()

    def draw_timesteps(self, batch: int, generator: torch.Generator, part: int, parts: int) -> Tensor:
        """Draw timesteps (B,) uniformly from slice `part` of `parts` of the schedule."""
        return draw_timesteps(batch, generator, part, parts, self.num_timesteps)

    def validation_losses(self, network: Network, batch: Batch, timesteps: list[int], key: int) -> list[float]:
        """Loss of a batch at fixed timesteps with fixed noise; nothing is dropped or corrupted."""
        condition = Condition(sent(self.embed(batch.captions), self.device), self.encode_refs(batch.refs))
        latents = self.encode_video(batch)
        losses = []
        for timestep in timesteps:
            noise = sent(torch.randn(latents.shape, generator=generator_of("validation", key, timestep)), self.device)
            at = torch.full((len(latents),), timestep, device=self.device)
            losses.append(self.recipe.loss(self._cast(network), self.recipe.schedule, latents, noise, at, condition).mean())
        return torch.stack(losses).tolist()  # the one wait for the device

    def encode_refs(self, refs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode references (B, R, 3, H, W), each alone as a single frame, into (B, R, C, h, w): samples if there is a generator."""
        frames = sent(refs.flatten(0, 1)[:, :, None], self.device)  # (B*R, 3, 1, H, W)
        latents = self.autoencoder.encode(frames, sample=generator is not None, generator=generator)  # (B*R, 1, C, h, w)
        return latents.view(*refs.shape[:2], *latents.shape[2:])

    def encode_video(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Latents (B, T, C, h, w) of the clips, from the cache where they are in it: posterior samples if there is a generator."""
        if self.latents is None:
            mean, std = self.autoencoder.encode_moments(sent(batch.video, self.device))
        else:
            mean, std = (sent(torch.stack(tensors), self.device) for tensors in zip(*self._cached_moments(batch), strict=True))
        return mean if generator is None else mean + std * sent(torch.randn(mean.shape, generator=generator), self.device)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents (1, T, C, h, w) into uint8 frames (F, H, W, 3)."""
        return to_frames(self.autoencoder.decode(latents.to(self.autoencoder.dtype))[0].cpu())

    def shown(self, batch: Batch) -> Tensor:
        """The references (R, 3, H, W) of the first clip, which are shown beside what is made of them."""
        return batch.refs[0]

    def _cached_moments(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation (T, C, h, w) of each clip on the CPU; those that are not cached are encoded one by one and kept."""
        moments, videos = list(batch.moments), iter(() if batch.video is None else batch.video.split(1))
        for index, found in enumerate(moments):
            if found is None:
                moments[index] = tuple(tensor[0].cpu() for tensor in self.autoencoder.encode_moments(sent(next(videos), self.device)))
                if batch.windows[index] is not None:
                    self.latents.write(batch.windows[index], *moments[index])
        return moments

    def _cast(self, network: Network) -> Network:
        """Let the network compute in the run's type."""

        def cast(latents: Tensor, timestep: Tensor, text: Tensor, refs: Tensor | None) -> Tensor:
            return network(latents.to(self.dtype), timestep, text.to(self.dtype), None if refs is None else refs.to(self.dtype))

        return cast
