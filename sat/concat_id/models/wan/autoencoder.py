"""Wan2.1's causal 3D VAE (diffusers' AutoencoderKLWan), with latents as the transformer sees them: by channel of mean 0 and deviation 1.

Eight times smaller in height and width, four times in time, with the first frame by itself: F = 4k+1 frames become T = k+1.
"""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

from concat_id.config.wan import WanAutoencoderConfig
from concat_id.errors import UserError
from concat_id.models.frozen_autoencoder import FrozenAutoencoder, Progress, check_latents, counter
from concat_id.weights.loading import check_named, load_strictly, load_tensors
from concat_id.weights.model_folders import built_from, made_on, read_diffusers

TILE_SIZE, TILE_STRIDE = (30, 52), (15, 26)  # latents of a tile and between two, as in the released sampling
NATIVE_MARK = "encoder.downsamples.0.residual.2.weight"  # a tensor under Wan's name that diffusers' files have not


class WanAutoencoder(FrozenAutoencoder):
    """Encode pixels (B, 3, F, H, W) in [-1, 1] into normalised latents (B, T, C, H/8, W/8), and decode them."""

    def __init__(self, autoencoder: AutoencoderKLWan):
        config = autoencoder.config
        halvings = len(config.dim_mult) - 1
        super().__init__(autoencoder, 2**halvings * (config.patch_size or 1), 2 ** sum(config.temperal_downsample[:halvings]))
        self.mean, self.std = tuple(config.latents_mean), tuple(config.latents_std)  # by channel; not buffers, which casts would round
        tile, stride = ([side * self.spatial for side in sides] for sides in (TILE_SIZE, TILE_STRIDE))
        autoencoder.enable_tiling(*tile, *stride)
        autoencoder.disable_tiling()

    @classmethod
    def from_path(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", trust: bool = False, **settings: Any
    ) -> "WanAutoencoder":
        """Load Wan2.1_VAE.pth (or .safetensors), which has 4 levels of 2 residual blocks, or a diffusers folder (vae/ or around it).

        `settings` of AutoencoderKLWan, such as `base_dim`, replace its defaults. Raises `UserError` for weights that do not fit, and for
        a folder of other settings.
        """
        path, given = Path(path), settings
        if os.path.isdir(path):
            folder = path / "vae" if os.path.isdir(path / "vae") else path
            settings, state_dict = read_diffusers(folder, AutoencoderKLWan, "Wan2.1_VAE.pth", "correct the autoencoder's path", trust)
        else:
            native = load_tensors(path, trust)
            if not isinstance(native, dict) or NATIVE_MARK not in native:
                raise UserError(f"{path}: found no {NATIVE_MARK}, expected Wan's autoencoder (Wan2.1_VAE.pth); name another file")
            check_named(native, str(path))
            folder, state_dict = None, native
        with built_from(folder / "config.json" if folder else path, "VAE", state_dict), made_on("meta"):
            state_dict = state_dict if folder else convert_wan_vae_to_diffusers(state_dict)
            autoencoder = AutoencoderKLWan.from_config(settings)
        built, found = cls(autoencoder), autoencoder.config
        expected = {**found, **given}
        channels = [[sizes["base_dim"] * factor for factor in sizes["dim_mult"]] for sizes in (found, expected)]
        built.check_keys(
            folder or path,
            ("channels", *channels, "autoencoder.block_out_channels"),
            ("residual blocks a level", found["num_res_blocks"], expected["num_res_blocks"], "autoencoder.layers_per_block"),
            ("latent channels", found["z_dim"], expected["z_dim"], "autoencoder.latent_channels"),
            ("pixels a latent", built.spatial, 2 ** (len(found["dim_mult"]) - 1), "autoencoder.block_out_channels"),
            ("frames a latent", built.temporal, 4, "transformer.time_compressed_rate"),
        )
        load_strictly(autoencoder, state_dict, str(path), dtype=dtype)
        return built.to(device)

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


def sizes_of(section: WanAutoencoderConfig) -> dict[str, Any]:
    """Name the sizes of a configuration as diffusers does."""
    base = section.block_out_channels[0]
    sizes = {"base_dim": base, "dim_mult": [channels // base for channels in section.block_out_channels]}
    return sizes | {"num_res_blocks": section.layers_per_block, "z_dim": section.latent_channels}
