"""Teach a small video autoencoder: all of it single frames, its encoder what to keep of clips, at last its decoder how clips move.

An encoder that knows single frames alone takes the mean of the four frames of a latent, so that whatever moves is blurred. In the part
`key_frames` it learns to give a clip the latents that its first frame and every fourth after it have alone: a row of sharp images in
the code that a diffusion model knows from single ones. The last part teaches the decoder what lies between them; the encoder stays as
it is, so latents keep their meaning. What is decoded has noise of up to `latent_noise` on it, so that what matters in an image is
coded above the errors that a small diffusion model makes, instead of below them.
"""

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.distributed import has_bfloat16
from concat_id.errors import UserError
from concat_id.models.autoencoder import VideoAutoencoder
from networks.building import build_autoencoder, fold_statistics, matrices, write_autoencoder
from networks.footage import Footage, to_video
from networks.learner import Learner, tensors_digest

EDGES = 0.5  # weight of differences between neighbours, against differences of pixels
NEARNESS = 1e-3  # weight of the Kullback-Leibler divergence from a standard normal distribution
SPREAD = 1.0  # weight of what keeps every channel's mean near 0 and deviation near 1, lest latents outgrow their noise
VARIANCES = 0.02  # weight of the logarithms of latents' variances, against the latents, where an encoder is compared with another
SCALES = (1, 2, 4)  # pixels over which edges of single frames are compared
CLIP_FRAMES = 17  # three latents decoded at once and another two after them, so that the decoder meets its own memory
FIRST = 3  # latents that are decoded at once; then two at a time, as in sampling
INTERVAL = 4  # frames of a latent but the first
IMAGE_EVERY = 4  # every so many steps with clips, one has images instead, lest the decoder forget them
LOG_VARIANCE = (-12.0, 4.0)


@dataclass(frozen=True)
class AutoencoderTraining:
    """How to train; the first three are the steps of the parts, `crop` (height, width) is what a step sees of a frame."""

    images: int = 2500
    key_frames: int = 0
    clips: int = 900
    crop: tuple[int, int] = (64, 96)
    batch_size: int = 8  # images; of clips, one
    learning_rate: float = 1.5e-3
    key_frame_learning_rate: float = 1e-3
    clip_learning_rate: float = 4e-4
    latent_noise: float = 0.0  # largest deviation of the noise on what is decoded; each image and clip draws its own below it
    seed: int = 0


class AutoencoderTrainer:
    """Trains `autoencoder`, or one with fresh weights, keeping its progress beside `output`; without one it can only measure."""

    def __init__(self, config: AutoencoderConfig, footage: Footage, training: AutoencoderTraining, output: Path | None,
                 autoencoder: VideoAutoencoder | None):  # fmt: skip
        self.footage, self.training, self.output = footage, training, output
        torch.manual_seed(training.seed)
        self.fresh = autoencoder is None
        self.autoencoder = build_autoencoder(config) if autoencoder is None else autoencoder
        self.network = self.autoencoder.autoencoder
        begun = None if self.fresh else tensors_digest(self.network.state_dict().values())
        self.settings = [dataclasses.asdict(config), dataclasses.asdict(training), begun, footage.digest()]

    def train(self) -> None:
        """Take all steps that are left of all parts. Raises `UserError` where a part wants clips and there are none."""
        if self.training.key_frames + self.training.clips and not self.footage.clips:
            raise UserError("--lists: found no clips to learn from, expected some; add them, or give --key-frames 0 --clips 0")
        if self.training.images:
            self.network.requires_grad_(True)
            kernels = [weight for weight in self.network.parameters() if self.fresh and weight.dim() == 5 and weight.shape[2] > 1]
            hooks = [weight.register_hook(_last_moment) for weight in kernels]
            self._learn("images", self.network, self.image_loss, self.training.images, self.training.learning_rate)
            for hook in hooks:
                hook.remove()
            if self.fresh:
                fold_statistics(self.autoencoder, *self.statistics())
        if self.training.key_frames:
            self._learn_key_frames()
        if self.training.clips:
            self.network.requires_grad_(False)
            self.network.decoder.requires_grad_(True)
            self._learn("clips", self.network.decoder, self.clip_loss, self.training.clips, self.training.clip_learning_rate)
        self.network.requires_grad_(False)

    def _learn_key_frames(self) -> None:
        encoder = self.network.encoder
        teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.network.requires_grad_(False)
        encoder.requires_grad_(True)

        def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            video = self._draw_clip_or_images(step, generator)
            with _autocast():
                moments = encoder(video)[0].float()
                with torch.no_grad():
                    expected = teacher(_frame_by_frame(video[:, :, ::INTERVAL]))[0].float()
            expected = expected[:, :, 0].unflatten(0, (len(video), -1)).transpose(1, 2)
            (mean, log_variance), (other, other_variance) = moments.chunk(2, dim=1), expected.chunk(2, dim=1)
            error = F.mse_loss(mean, other)
            spread = F.mse_loss(log_variance.clamp(*LOG_VARIANCE), other_variance.clamp(*LOG_VARIANCE))
            return error + VARIANCES * spread, {"clips' error" if video.shape[2] > 1 else "error": float(error.detach())}

        self._learn("key frames", encoder, loss_of, self.training.key_frames, self.training.key_frame_learning_rate)

    def image_loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw single frames, encode them with noise, decode them, compare."""
        video = self._draw_images(generator)
        with _autocast():
            moments = self.network.encoder(video)[0].float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)
        (decoded,) = self._decode(self._disturbed(latents, generator))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = difference(decoded, video, SCALES) + NEARNESS * divergence
        if self.training.latent_noise:
            channels = mean.transpose(0, 1).flatten(1)
            loss = loss + SPREAD * (channels.mean(1).square() + channels.std(1).log().square()).mean()
        return loss, {"dB": decibels(decoded, video)}

    def clip_loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw a clip, or images now and then; decode it as sampling does, compare."""
        video = self._draw_clip_or_images(step, generator)
        mean, std = self.autoencoder.encode_moments(video)  # (B, T, C, H, W)
        latents = self._disturbed((mean + std * torch.randn(mean.shape, generator=generator)).transpose(1, 2), generator)
        decoded = torch.cat(list(self._decode(latents)), dim=2)
        return difference(decoded, video, SCALES[:1]), {"dB": decibels(decoded, video)} if video.shape[2] > 1 else {}

    @torch.no_grad()
    def statistics(self, most: int = 256) -> tuple[Tensor, Tensor]:
        """Measure mean and standard deviation (C,) of the latents of single frames."""
        chosen = [self.footage.learned[index] for index in np.linspace(0, len(self.footage.learned) - 1, most).round().astype(int)]
        latents = torch.cat([self.autoencoder.encode(to_video(frames[None, len(frames) // 2, None])) for frames in chosen])
        return latents.mean((0, 1, 3, 4)), latents.std((0, 1, 3, 4))

    def measure(self, most: int = 24) -> dict[str, float]:
        """Measure what encoding and decoding keep of held-out clips and images, in decibels (mean over frames of the PSNR)."""
        single, moving = [], []
        for frames in _spread(self.footage.held_out, most):
            single += self._quality(frames[len(frames) // 2][None])
            moving.append(self._quality(_whole(frames))) if len(frames) > 1 else None
        result = {"single frames": float(np.mean(single))}
        if moving:
            by_frame = [level for levels in moving for level in levels]
            result |= {"clips": float(np.mean(by_frame)), "a tenth of the clips' frames below": float(np.percentile(by_frame, 10))}
        return result

    def finish(self) -> None:
        """Write the weights and forget the progress."""
        write_autoencoder(self.output, self.autoencoder, torch.float16)
        shutil.rmtree(self._folder(), ignore_errors=True)

    def _folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.training")

    def _learn(self, part: str, network: nn.Module, loss_of, steps: int, learning_rate: float) -> None:
        course = steps, learning_rate, self.training.seed
        folder = self._folder() / part
        folder.mkdir(parents=True, exist_ok=True)
        learner = Learner(network, matrices(network), *course, folder, self.settings)
        for _ in learner.run(loss_of, part):
            pass
        learner.keep_average()

    def _disturbed(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise to latents (B, ...), of a deviation drawn evenly up to `latent_noise` for each of B."""
        if not self.training.latent_noise:
            return latents
        level = self.training.latent_noise * torch.rand(len(latents), *[1] * (latents.dim() - 1), generator=generator)
        return latents + level * torch.randn(latents.shape, generator=generator)

    def _draw_clip_or_images(self, step: int, generator: torch.Generator) -> Tensor:
        """Draw a clip (1, 3, F, H, W), or every so many steps images (B, 3, 1, H, W)."""
        if step % IMAGE_EVERY == IMAGE_EVERY - 1:
            return self._draw_images(generator)
        return self._draw(self.footage.clips, CLIP_FRAMES, generator)[None]

    def _draw_images(self, generator: torch.Generator) -> Tensor:
        return torch.stack([self._draw(self.footage.learned, 1, generator) for _ in range(self.training.batch_size)])

    def _draw(self, clips: list[Tensor], num_frames: int, generator: torch.Generator) -> Tensor:
        """Cut a piece (3, F, H, W) out of one of the clips, F at most `num_frames` and 8k+1, whose number of latents can be decoded."""
        frames = clips[_number(len(clips), generator)]
        count = min(num_frames, (len(frames) - 1) // 8 * 8 + 1)
        starts = [_number(room + 1, generator) for room in (len(frames) - count, *self._room(frames))]
        height, width = (min(side, own) for side, own in zip(self.training.crop, frames.shape[1:3], strict=True))
        first, top, left = starts
        return to_video(frames[first : first + count, top : top + height, left : left + width])

    def _room(self, frames: Tensor) -> Iterator[int]:
        return (max(own - side, 0) for side, own in zip(self.training.crop, frames.shape[1:3], strict=True))

    def _decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the pixels of latents (B, C, T, H, W) chunk by chunk, with gradients."""
        cache = None
        for chunk in latents.tensor_split(tuple(range(FIRST, latents.shape[2], 2)), dim=2):
            with _autocast():
                pixels, cache = self.network.decoder(chunk, conv_cache=cache)
            yield pixels.float()

    def _quality(self, frames: Tensor) -> list[float]:
        video = to_video(frames)[None]
        decoded = self.autoencoder.decode(self.autoencoder.encode(video)).clamp(-1, 1)
        return [decibels(decoded[:, :, index], video[:, :, index]) for index in range(video.shape[2])]


def _autocast() -> torch.autocast:
    """bfloat16 where the processor has it."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16(torch.device("cpu")))


def difference(decoded: Tensor, video: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Compare pixels, and differences between neighbours along height, width and time, the former two at several scales."""
    total = F.l1_loss(decoded, video)
    if video.shape[2] > 1:
        total = total + EDGES * F.l1_loss(decoded.diff(dim=2), video.diff(dim=2))
    for scale in scales:
        small = [F.avg_pool3d(side, (1, scale, scale)) for side in (decoded, video)]
        total = total + EDGES * sum(F.l1_loss(small[0].diff(dim=along), small[1].diff(dim=along)) for along in (-2, -1))
    return total


def decibels(decoded: Tensor, video: Tensor) -> float:
    """Peak signal-to-noise ratio of values in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(decoded.detach(), video).clamp(min=1e-10)))


def _last_moment(gradient: Tensor) -> Tensor:
    """Leave a kernel's earlier moments alone: single frames cannot tell them apart."""
    gradient = gradient.clone()
    gradient[:, :, :-1] = 0
    return gradient


def _number(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def _spread(items: list, most: int) -> list:
    return [items[index] for index in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def _frame_by_frame(video: Tensor) -> Tensor:
    """Turn videos (B, 3, F, H, W) into single frames (B * F, 3, 1, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)[:, :, None]


def _whole(frames: Tensor) -> Tensor:
    """Shorten a clip to 4k+1 frames."""
    return frames[: (len(frames) - 1) // 4 * 4 + 1]
