"""CogVideoX's causal 3D VAE (diffusers' AutoencoderKLCogVideoX), used exactly as the released sampling and training use it.

Eight times smaller in height and width, four times in time, with the first frame by itself: F = 4k+1 frames become T = k+1.
"""

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.errors import UserError
from concat_id.files.paths import resolve_path
from concat_id.models.diffusers_library import AutoencoderKLCogVideoX, CogVideoXCausalConv3d
from concat_id.models.frozen_autoencoder import FrozenAutoencoder, Progress, check_latents, counter
from concat_id.weights.loading import check_named, load_strictly, load_tensors
from concat_id.weights.model_folders import built_from, made_on, read_diffusers

CHUNK = 2  # latent frames decoded at once after the first chunk of three, as in the released sampling
TILE_SIZE = (36, 52)  # latents; 480x720 pixels become 2x2 tiles
TILE_OVERLAP = 8  # latents; features see about this far


class CausalConv3d(CogVideoXCausalConv3d):
    """diffusers' causal convolution, which sees a lone frame as the image it is.

    In front of its first frame a clip is continued by copies of it, so a lone frame meets the kernel's sum over time: the same numbers
    from a third of the work.
    """

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve (B, C, F, H, W); returns the output and what the next chunk needs of this one."""
        if inputs.shape[2] > 1 or conv_cache is not None or self.pad_mode == "replicate":
            return super().forward(inputs, conv_cache)
        first, *later = self.conv.weight.unbind(2)
        kernel = sum(later, first.float()).to(inputs.dtype)  # five times as fast as .sum(2) where channels are last
        output = F.conv2d(inputs[:, :, 0], kernel, self.conv.bias, self.conv.stride[1:], self.const_padding_conv3d[1:])
        return output[:, :, None], inputs.expand(-1, -1, max(self.time_kernel_size - 1, 1), -1, -1)


class VideoAutoencoder(FrozenAutoencoder):
    """Encode pixels (B, 3, F, H, W) in [-1, 1] into latents (B, T, C, H/8, W/8) times `scale_factor`, and decode them."""

    def __init__(self, autoencoder: AutoencoderKLCogVideoX, scale_factor: float):
        levels = len(autoencoder.config.block_out_channels)
        super().__init__(autoencoder, 2 ** (levels - 1), int(autoencoder.config.temporal_compression_ratio))  # 8 and 4 as released
        for module in autoencoder.modules():
            if type(module) is CogVideoXCausalConv3d:
                module.__class__ = CausalConv3d
        self.scale_factor = scale_factor
        self._channels_last: bool | None = None

    @classmethod
    def from_config(
        cls,
        config: AutoencoderConfig,
        scale_factor: float | None,
        trust: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        temporal: int = 4,
    ) -> "VideoAutoencoder":
        """Load `config.path`: a released `3d-vae.pt`, built by the sizes in `config`, or a diffusers folder, which holds its own.

        `scale_factor` None is the folder's. Raises `UserError` unless latents are those of `config`, `scale_factor` and `temporal`.
        """
        path = resolve_path(config.path)
        if os.path.isdir(path):
            settings, state_dict = read_diffusers(path, AutoencoderKLCogVideoX, "a 3d-vae.pt", "correct autoencoder.path", trust)
        else:
            settings = released_settings(config, temporal)
            state_dict = to_diffusers_names(_released_state_dict(path, trust))
        with built_from(path / "config.json" if os.path.isdir(path) else path, "VAE", state_dict), made_on("meta"):
            autoencoder = AutoencoderKLCogVideoX.from_config(settings)
        scale_factor = autoencoder.config.scaling_factor if scale_factor is None else scale_factor
        built = cls(autoencoder, scale_factor)
        built.check_keys(
            path,
            ("pixels a latent", built.spatial, config.spatial_factor, "autoencoder.block_out_channels"),
            ("frames a latent", built.temporal, temporal, "transformer.time_compressed_rate"),
            ("latent channels", autoencoder.config.latent_channels, config.latent_channels, "autoencoder.latent_channels"),
            ("scaling_factor", settings.get("scaling_factor", scale_factor), scale_factor, "scale_factor"),
        )
        load_strictly(autoencoder, state_dict, str(path), dtype=dtype)
        return built.to(device)

    @torch.no_grad()
    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the posterior of the latents, both (B, T, C, H/8, W/8), float32, scaled.

        Every clip is seen whole, and alone unless it is a single frame: GroupNorm's statistics, hence the latents, would change with
        its parts.
        """
        parts = self.split_clips(video)
        self._arrange_weights()
        moments = torch.cat([self.autoencoder.encoder(self._arrange(clips))[0].float() for clips in parts])
        mean, log_variance = moments.transpose(1, 2).chunk(2, dim=2)  # (B, 2C, T, H, W) -> 2 x (B, T, C, H, W)
        std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return mean * self.scale_factor, std * self.scale_factor

    @torch.no_grad()
    def decode(
        self, latents: Tensor, tiled: bool = False, progress: Progress | None = None, tile_size: tuple[int, int] = TILE_SIZE
    ) -> Tensor:
        """Decode latents (B, T, C, H, W) into a float32 video (B, 3, 4(T-1)+1, 8H, 8W), about [-1, 1] and not clamped.

        With `tiled`, images of more latents than `tile_size` are decoded in overlapping tiles: less memory, slightly other
        colours per tile (GroupNorm's statistics), blended where tiles overlap.
        """
        check_latents(latents, self.autoencoder.config.latent_channels)
        self._arrange_weights()
        batch, frames, _, height, width = latents.shape
        rows, columns = (tiles_of(side, limit if tiled else side) for side, limit in zip((height, width), tile_size, strict=True))
        report = counter(progress, batch * len(rows) * len(columns) * len(_chunks(frames)))

        size = self.temporal * (frames - 1) + 1, height * self.spatial, width * self.spatial
        video = latents.new_zeros(batch, 3, *size, dtype=torch.float32)
        total = torch.zeros(video.shape[-2:], device=video.device)
        for row, column in itertools.product(rows, columns):
            weight = _ramp(row, height, self.spatial)[:, None] * _ramp(column, width, self.spatial)
            weight = weight.to(video.device)
            pixels = ..., _pixels(row, self.spatial), _pixels(column, self.spatial)
            total[pixels] += weight
            for index in range(batch):
                tile = latents[index : index + 1, :, :, row, column].transpose(1, 2).float() / self.scale_factor
                for start, chunk in self._decode_in_chunks(tile, report):
                    video[index, :, start : start + chunk.shape[2]][pixels] += weight * chunk[0]
        return video.div_(total)

    def _decode_in_chunks(self, latents: Tensor, report: Callable[[], None]):
        """Yield (first frame, pixels (1, 3, f, H, W)) of one clip's latents (1, C, T, H, W), with causal caches in between."""
        frames = latents.shape[2]
        if frames % 2 == 0:  # the network's first chunk must be odd; what follows a frame does not reach it, but for statistics
            latents = torch.cat([latents, latents[:, :, -1:]], dim=2)
        cache = None
        for start, stop in _chunks(frames):
            chunk, cache = self.autoencoder.decoder(self._arrange(latents[:, :, start:stop]), conv_cache=cache)
            first = max(self.temporal * (start - 1) + 1, 0)
            report()
            yield first, chunk[:, :, : self.temporal * (frames - 1) + 1 - first].float()

    def _arrange(self, tensor: Tensor) -> Tensor:
        layout = torch.channels_last_3d if self._channels_last else torch.contiguous_format
        return tensor.to(self.device, self.dtype).contiguous(memory_format=layout)

    def _arrange_weights(self) -> None:
        """Put channels last for bfloat16 on a CPU, where convolutions are 1.5 times as fast so, and first elsewhere."""
        channels_last = self.device.type == "cpu" and self.dtype == torch.bfloat16
        if channels_last == self._channels_last:
            return
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
        for parameter in self.parameters():
            parameter.data = parameter.data.contiguous(memory_format=layouts.get(parameter.dim(), torch.contiguous_format))
        self._channels_last = channels_last


def to_diffusers_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released VAE's tensors to diffusers' names."""
    pairs = _name_pairs(state_dict)
    return {_replaced(name, pairs): tensor for name, tensor in state_dict.items()}


def to_sat_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a diffusers VAE's tensors to the released names."""
    pairs = [(diffusers, sat) for sat, diffusers in _name_pairs(state_dict)]
    return {_replaced(name, pairs): tensor for name, tensor in state_dict.items()}


def _name_pairs(names: dict[str, Tensor]) -> list[tuple[str, str]]:
    """List what differs, (released, diffusers). The released decoder counts its levels from the output, diffusers from the input."""
    levels = len({name.split(".")[2] for name in names if name.startswith(("decoder.up.", "decoder.up_blocks."))})
    pairs = [
        (".mid.block_1.", ".mid_block.resnets.0."),
        (".mid.block_2.", ".mid_block.resnets.1."),
        (".nin_shortcut.", ".conv_shortcut."),
    ]
    for level in range(levels):
        from_output = levels - 1 - level
        pairs += [
            (f"encoder.down.{level}.block.", f"encoder.down_blocks.{level}.resnets."),
            (f"encoder.down.{level}.downsample.", f"encoder.down_blocks.{level}.downsamplers.0."),
            (f"decoder.up.{from_output}.block.", f"decoder.up_blocks.{level}.resnets."),
            (f"decoder.up.{from_output}.upsample.", f"decoder.up_blocks.{level}.upsamplers.0."),
        ]
    return pairs


def _replaced(name: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def released_settings(config: AutoencoderConfig, temporal: int = 4) -> dict:
    """Name the sizes of a configuration, and how many frames a latent holds, as diffusers does."""
    channels = tuple(config.block_out_channels)
    return {
        "block_out_channels": channels,
        "down_block_types": ("CogVideoXDownBlock3D",) * len(channels),
        "up_block_types": ("CogVideoXUpBlock3D",) * len(channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "temporal_compression_ratio": temporal,
    }


def _released_state_dict(path: Path, trust: bool) -> dict[str, Tensor]:
    content = load_tensors(path, trust)
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, expected an entry 'state_dict' with tensors; correct autoencoder.path")
    check_named(state_dict, str(path))
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith("loss")}


def _chunks(frames: int) -> list[tuple[int, int]]:
    """Cut T latent frames, rounded up to an odd number, into the first three and then two at a time."""
    frames += 1 - frames % 2
    starts = [0, *range(CHUNK + 1, frames, CHUNK)]
    return list(itertools.pairwise([*starts, frames]))


def tiles_of(side: int, limit: int) -> list[slice]:
    """Cut one side into equal tiles of at most `limit` latents that overlap by at least `TILE_OVERLAP`."""
    if side <= limit:
        return [slice(0, side)]
    overlap = min(TILE_OVERLAP, limit - 1)
    count = math.ceil((side - overlap) / (limit - overlap))
    size = math.ceil((side + (count - 1) * overlap) / count)
    return [slice(start, start + size) for start in (round(index * (side - size) / (count - 1)) for index in range(count))]


def _ramp(tile: slice, side: int, spatial: int) -> Tensor:
    """Weigh one side's pixels of a tile: 1 inside, falling linearly over the overlap towards a neighbour."""
    position = torch.arange((tile.stop - tile.start) * spatial) + 0.5
    width = float(TILE_OVERLAP * spatial)
    low = position / width if tile.start > 0 else torch.ones_like(position)
    high = position.flip(0) / width if tile.stop < side else torch.ones_like(position)
    return torch.minimum(low, high).clamp(max=1.0)


def _pixels(tile: slice, spatial: int) -> slice:
    return slice(tile.start * spatial, tile.stop * spatial)
