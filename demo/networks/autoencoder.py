"""Teach a small video autoencoder pieces of clips: what moves is coded in the latents of the frames it moves in.

Its decoder learns in the chunks in which sampling decodes. Latents get mean 0 and deviation 1 in the end, as the schedule expects.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.distributed import has_bfloat16
from concat_id.models.autoencoder import VideoAutoencoder
from networks.building import build_autoencoder, fold_statistics, matrices
from networks.learner import Descent

PIECE = (9, 32, 32)  # frames, height and width of what a clip is learned from: many small pieces teach more in the same time than one large
STILL = 0.25  # share of the time in which single frames are learned from, which is fast, before what moves
LARGE = 0.75  # share of it after which pieces are twice as high and wide: norms take their statistics from all of an image
EDGES = 0.5  # weight of differences between neighbours, against differences of pixels
NEARNESS = 1e-3  # weight of the Kullback-Leibler divergence from a standard normal distribution
SCALES = (1, 2, 4)  # pixels over which edges are compared
FIRST = 3  # latents that are decoded at once; then two at a time, as in sampling
LOG_VARIANCE = (-12.0, 4.0)


class AutoencoderTrainer(Descent):
    """Trains an autoencoder with fresh weights on pieces (B, 3, F, H, W) of clips in [-1, 1], F = 8k+1."""

    def __init__(self, config: AutoencoderConfig, temporal: int, device: torch.device, seed: int = 0, learning_rate: float = 1.5e-3):
        torch.manual_seed(seed)
        self.autoencoder = build_autoencoder(config, temporal).to(device)
        network = self.autoencoder.autoencoder.requires_grad_(True)
        super().__init__(network, matrices(network), learning_rate)

    def step(self, video: Tensor, progress: float) -> Tensor:
        """Encode, decode as sampling does, compare, descend; returns the decibels on the device."""
        with autocast(video.device):
            moments = self.network.encoder(video)[0].float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        decoded = self._decode(latents)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        self.descend(difference(decoded, video) + NEARNESS * divergence, progress)
        return decibels(decoded.detach(), video).mean()

    def finish(self, videos: Sequence[Tensor]) -> VideoAutoencoder:
        """Keep the average of the weights, fold the statistics of clips' latents into them, and freeze the autoencoder."""
        self.keep_average()
        self.network.requires_grad_(False)
        latents = torch.cat([self.autoencoder.encode(video).movedim(2, 0).flatten(1) for video in videos], dim=1)  # (C, N)
        fold_statistics(self.autoencoder, latents.mean(1), latents.std(1))
        return self.autoencoder

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, T, H, W) chunk by chunk, with gradients."""
        cache, parts = None, []
        for chunk in latents.tensor_split(tuple(range(FIRST, latents.shape[2], 2)), dim=2):
            with autocast(latents.device):
                pixels, cache = self.network.decoder(chunk, conv_cache=cache)
            parts.append(pixels.float())
        return torch.cat(parts, dim=2)


def cut_pieces(choose: Callable[[], np.ndarray], count: int, progress: float, rng: np.random.Generator) -> np.ndarray:
    """Cut a batch (B, f, h, w, 3) out of clips (F, H, W, 3), uint8: `count` pieces, or as many pixels of single frames or large pieces.

    `choose` returns a clip.
    """
    enlarged = 2 if progress >= LARGE else 1
    piece, pieces = (1 if progress < STILL else PIECE[0], *(enlarged * side for side in PIECE[1:])), []
    for _ in range(max(1, count * prod(PIECE) // prod(piece))):
        clip = choose()
        first = [int(rng.integers(own - side + 1)) for own, side in zip(clip.shape, piece, strict=False)]
        pieces.append(clip[tuple(slice(start, start + side) for start, side in zip(first, piece, strict=True))])
    return np.stack(pieces)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor has it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def difference(decoded: Tensor, video: Tensor) -> Tensor:
    """Compare pixels by the root of their mean square, and differences along height, width and time, the former two at several scales."""
    total = ((decoded - video).square().mean((1, 2, 3, 4)) + 1e-7).sqrt().mean()
    if video.shape[2] > 1:
        total = total + EDGES * F.l1_loss(decoded.diff(dim=2), video.diff(dim=2))
    for scale in SCALES:
        small = [F.avg_pool3d(side, (1, scale, scale)) for side in (decoded, video)]
        total = total + EDGES * sum(F.l1_loss(small[0].diff(dim=along), small[1].diff(dim=along)) for along in (-2, -1))
    return total


def decibels(decoded: Tensor, video: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B, F) of each frame of videos (B, 3, F, H, W) in [-1, 1]."""
    return 10 * torch.log10(4 / (decoded - video).square().mean((1, 3, 4)).clamp(min=1e-10))


def to_video(frames: Tensor) -> Tensor:
    """Turn uint8 frames (..., F, H, W, 3) into a video (..., 3, F, H, W) in [-1, 1]."""
    return torch.movedim(frames.float() / 127.5 - 1, -1, -4)
