"""What the video VAEs of all backbones have in common: a frozen network and the way from pixels to samples of latents."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concat_id.distributed import sent
from concat_id.errors import UserError

PIXELS = 2**20  # of single frames encoded at once

Progress = Callable[[int, int], None]  # called with (parts done, parts in all)


class FrozenAutoencoder(nn.Module):
    """A diffusers VAE, causal in time and never trained; `spatial` pixels and, after the first, `temporal` frames make a latent."""

    def __init__(self, autoencoder: nn.Module, spatial: int, temporal: int):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.spatial, self.temporal = spatial, temporal
        for module in autoencoder.modules():
            if isinstance(module, nn.Conv3d):
                module._conv_forward = partial(_convolve, module.stride, module.padding, module.dilation, module.groups)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, in which the network computes."""
        return next(self.autoencoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.autoencoder.parameters()).device  # without diffusers' hooks, which import peft

    def encode(self, video: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Encode (B, 3, 4k+1, H, W) into float32 latents (B, k+1, C, H/8, W/8): the posterior's mean, or a `sample` of it."""
        mean, std = self.encode_moments(video)
        if not sample:
            return mean
        noise_device = mean.device if generator is None else generator.device
        return mean + std * sent(torch.randn(mean.shape, generator=generator, device=noise_device), mean.device)

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the posterior of the latents, both (B, T, C, H/8, W/8), float32."""
        raise NotImplementedError

    def split_clips(self, video: Tensor) -> tuple[Tensor, ...]:
        """Check a batch of videos and cut it into what is encoded at once: clips one by one, single frames together.

        Raises `UserError` for shapes that cannot be encoded.
        """
        _check_video(video, self.spatial, self.temporal)
        return video.split(max(PIXELS // video[0, 0].numel(), 1) if video.shape[2] == 1 else 1)

    def check_keys(self, source: Path, *sizes: tuple[str, Any, Any, str]) -> None:
        """Raise `UserError` unless what is in `source` has the (unit, found, expected) that a key of the configuration gives."""
        for unit, found, expected, key in sizes:
            if found != expected:
                told = f"{unit}: found {found}, expected {expected} by model.{key}"
                raise UserError(f"{source}: {told}; change that key, or correct autoencoder.path")


def _convolve(
    stride: tuple, padding: tuple, dilation: tuple, groups: int, inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolve as nn.Conv3d does, in float32 on a CPU always by oneDNN: for small layers PyTorch takes a slower loop of its own.

    Gradients, and tensors without contents, whose operations are counted, go PyTorch's way.
    """
    plain = type(inputs) is Tensor and inputs.device.type == "cpu" and inputs.dtype == torch.float32
    if plain and torch.backends.mkldnn.is_available() and not torch.is_grad_enabled():
        return torch.mkldnn_convolution(inputs, weight, bias, padding, stride, dilation, groups)
    return F.conv3d(inputs, weight, bias, stride, padding, dilation, groups)


def counter(progress: Progress | None, total: int) -> Callable[..., None]:
    """Make a function that tells `progress` of one more part, of `total`, at every call, whatever it is called with."""
    done = itertools.count(1)
    return lambda *_: None if progress is None else progress(next(done), total)


def check_latents(latents: Tensor, channels: int) -> None:
    """Raise `UserError` unless latents are (B, T, C, H, W)."""
    if latents.dim() != 5 or latents.shape[2] != channels:
        expected = f"(batch, frames, {channels}, height, width)"
        raise UserError(f"latents: found shape {tuple(latents.shape)}, expected {expected}; encode them with this autoencoder")


def _check_video(video: Tensor, spatial: int, temporal: int) -> None:
    if video.dim() != 5 or video.shape[1] != 3:
        raise UserError(f"video: found shape {tuple(video.shape)}, expected (batch, 3, frames, height, width); transpose it")
    frames, height, width = video.shape[2:]
    if (frames - 1) % temporal:
        near = temporal * round((frames - 1) / temporal) + 1
        raise UserError(f"video: found {frames} frames, expected {temporal}k+1; use {max(near, 1)}")
    if height % spatial or width % spatial:
        raise UserError(f"video: found {height}x{width} pixels, expected multiples of {spatial}; resize it")
