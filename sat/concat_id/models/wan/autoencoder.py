"""Wan2.1's causal 3D VAE (diffusers' AutoencoderKLWan), with latents as the transformer sees them: by channel of mean 0 and deviation 1.

Eight times smaller in height and width, four times in time, with the first frame by itself: F = 4k+1 frames become T = k+1.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from concat_id.errors import UserError
from concat_id.models.frozen_autoencoder import FrozenAutoencoder, Progress, check_latents, counter, folder_settings
from concat_id.weights.folders import weight_files
from concat_id.weights.loading import check_named, load_files, load_strictly, load_tensors, shape_of
from concat_id.weights.model_folders import built_from, made_on

TILE_SIZE, TILE_STRIDE = (30, 52), (15, 26)  # latents of a tile and between two, as in the released sampling
STEM = "diffusion_pytorch_model"
NATIVE_MARK = "encoder.downsamples.0.residual.2.weight"  # a tensor under Wan's name that diffusers' files have not

Value = TypeVar("Value")

# Wan's names and diffusers': modules of the encoder and of the decoder, and of each residual block.
MODULES = {
    "conv1": "conv_in",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
    "head.0": "norm_out",
    "head.2": "conv_out",
}
IN_RESIDUAL_BLOCK = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


class WanAutoencoder(FrozenAutoencoder):
    """Encode pixels (B, 3, F, H, W) in [-1, 1] into normalised latents (B, T, C, H/8, W/8), and decode them."""

    def __init__(self, autoencoder: AutoencoderKLWan):
        super().__init__(autoencoder, spatial=autoencoder.config.scale_factor_spatial)
        config = autoencoder.config
        self.mean, self.std = tuple(config.latents_mean), tuple(config.latents_std)  # by channel; not buffers, which casts would round
        tile, stride = ([side * self.spatial for side in sides] for sides in (TILE_SIZE, TILE_STRIDE))
        autoencoder.enable_tiling(*tile, *stride)
        autoencoder.disable_tiling()

    @classmethod
    def from_path(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", trust: bool = False, **settings: Any
    ) -> "WanAutoencoder":
        """Load Wan2.1_VAE.pth (or .safetensors), whose sizes are read off its tensors, or a diffusers folder (vae/ or around it).

        `settings` of AutoencoderKLWan, such as `latents_mean`, replace what the path says. Raises `UserError` for weights that do not fit.
        """
        path = Path(path)
        if os.path.isdir(path):
            folder = path / "vae" if os.path.isdir(path / "vae") else path
            settings = folder_settings(folder, AutoencoderKLWan, "Wan2.1_VAE.pth", "correct the autoencoder's path") | settings
            state_dict = load_files(weight_files(folder, (STEM,)), trust)
        else:
            native = load_tensors(path, trust)
            if not isinstance(native, dict) or NATIVE_MARK not in native:
                raise UserError(f"{path}: found no {NATIVE_MARK}, expected Wan's autoencoder (Wan2.1_VAE.pth); name another file")
            check_named(native, str(path))
            settings = native_settings(native, str(path)) | settings
            state_dict = to_diffusers_names(native, len(settings["dim_mult"]), settings["num_res_blocks"])
        with built_from(folder / "config.json" if os.path.isdir(path) else path, "VAE", state_dict), made_on("meta"):
            autoencoder = AutoencoderKLWan.from_config(settings)
        load_strictly(autoencoder, state_dict, str(path), dtype=dtype)
        return cls(autoencoder).to(device)

    @torch.no_grad()
    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the posterior of the latents, both (B, T, C, H/8, W/8), float32, normalised.

        Every clip is encoded by itself; single frames go together, though none sees another.
        """
        parts = self.split_clips(video)
        posteriors = [self.autoencoder.encode(clips.to(self.device, self.dtype)).latent_dist for clips in parts]
        mean = torch.cat([posterior.mean for posterior in posteriors]).transpose(1, 2)  # (B, T, C, H, W)
        deviation = torch.cat([posterior.std for posterior in posteriors]).transpose(1, 2)
        return (mean - self._by_channel(self.mean)) / self._by_channel(self.std), deviation / self._by_channel(self.std)

    @torch.no_grad()
    def decode(self, latents: Tensor, tiled: bool = False, progress: Progress | None = None) -> Tensor:
        """Decode latents (B, T, C, H, W) into a float32 video (B, 3, 4T-3, 8H, 8W) in [-1, 1], one latent frame after the other.

        With `tiled`, images larger than `TILE_SIZE` are decoded in overlapping tiles: less memory, blended where tiles overlap.
        """
        check_latents(latents, self.autoencoder.config.z_dim)
        latents = latents.to(self.device) * self._by_channel(self.std) + self._by_channel(self.mean)
        latents = latents.transpose(1, 2).to(self.dtype)
        sides = latents.shape[-2:]
        tiled = tiled and any(side > limit for side, limit in zip(sides, TILE_SIZE, strict=True))
        tiles = [len(range(0, side, stride)) for side, stride in zip(sides, TILE_STRIDE, strict=True)] if tiled else [1]
        report = counter(progress, len(latents) * latents.shape[2] * torch.Size(tiles).numel())
        decode = self.autoencoder.tiled_decode if tiled else self.autoencoder.decode
        with self.autoencoder.decoder.register_forward_hook(report):
            return torch.cat([decode(clip, return_dict=False)[0].float() for clip in latents.split(1)])

    def _by_channel(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=self.device).view(1, 1, -1, 1, 1)


def to_diffusers_names(tensors: Mapping[str, Value], num_levels: int = 4, num_res_blocks: int = 2) -> dict[str, Value]:
    """Rename the tensors of Wan2.1_VAE.pth to diffusers' names; unknown ones stay as they are."""
    modules = _module_names(num_levels, num_res_blocks)
    return {_renamed(name, modules, IN_RESIDUAL_BLOCK): tensor for name, tensor in tensors.items()}


def native_settings(tensors: Mapping[str, Tensor], source: str = "autoencoder") -> dict:
    """Read AutoencoderKLWan's sizes off tensors under Wan's names."""
    places = {name.split(".")[2] for name in tensors if name.startswith("encoder.downsamples.") and name.count(".") > 2}
    row = sorted(int(place) for place in places if place.isdecimal())
    samplers = [index for index in row if f"encoder.downsamples.{index}.resample.1.weight" in tensors]
    num_res_blocks = samplers[0] if samplers else len(row)
    firsts = [f"encoder.downsamples.{level * (num_res_blocks + 1)}.residual.2.weight" for level in range(len(samplers) + 1)]
    base, latent, *widths = (shape_of(tensors, name, 5, source)[0] for name in ("encoder.conv1.weight", "conv2.weight", *firsts))
    return {
        "base_dim": base,
        "z_dim": latent,
        "dim_mult": [width // base for width in widths],
        "num_res_blocks": num_res_blocks,
        "temperal_downsample": [f"encoder.downsamples.{index}.time_conv.weight" in tensors for index in samplers],
    }


def _module_names(num_levels: int, num_res_blocks: int) -> dict[str, str]:
    """Modules that hold tensors: Wan's name -> diffusers'. Wan lists a side's blocks in one row, diffusers the decoder's by levels."""
    names = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    names |= {f"{side}.{wan}": f"{side}.{diffusers}" for side in ("encoder", "decoder") for wan, diffusers in MODULES.items()}
    in_level = num_res_blocks + 1  # of the encoder, with a downsampler at the end; the decoder has one residual block more
    names |= {f"encoder.downsamples.{i}": f"encoder.down_blocks.{i}" for i in range(num_levels * in_level - 1)}
    for index in range(num_levels * (in_level + 1) - 1):
        level, place = divmod(index, in_level + 1)
        part = f"resnets.{place}" if place < in_level else "upsamplers.0"
        names[f"decoder.upsamples.{index}"] = f"decoder.up_blocks.{level}.{part}"
    return names


def _renamed(name: str, modules: Mapping[str, str], layers: Mapping[str, str]) -> str:
    old, rest = _split(name, modules)
    layer, kind = _split(rest, layers)
    return ".".join(part for part in (modules.get(old, old), layers.get(layer, layer), kind) if part)


def _split(name: str, starts: Iterable[str]) -> tuple[str, str]:
    """Cut a name behind the one of `starts` that it begins with."""
    start = next((start for start in starts if name.startswith(f"{start}.")), "")
    return start, name.removeprefix(f"{start}." if start else "")
