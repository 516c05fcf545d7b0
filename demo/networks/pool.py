"""What the timed training learns from, kept on the device: latents of clips, of single frames and of references, with embedded captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from concat_id.diffusion.loss import add_pixel_noise
from concat_id.files.paths import written_whole
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.weights.loading import load_tensors
from networks.autoencoder import autocast, to_video
from networks.material import Person

BAND = 0.25  # radians: references that are turned by more, or have covered eyes, are less alike than stage III wants
FULL_TURN = 0.4  # radians between two images that count as much as another expression or another light
ENCODED = 32  # people at once
FRAMES = 512  # encoded at once


@dataclass
class Latents:
    """P people: clips (N, T, C, h, w), images (M, 1, C, h, w), references (R, P, C, h, w), captions (N + M, L, D), `Person.traits`."""

    number: int
    clips: Tensor
    images: Tensor
    references: Tensor
    texts: Tensor
    traits: Tensor


class Pool:
    """Latents of people, which grow while they are drawn; `captions` turns sentences into embeddings (N, L, D) on the device."""

    def __init__(self, autoencoder: VideoAutoencoder, captions: Callable[[list[str]], Tensor], device: torch.device, folder: Path):
        self.autoencoder, self.captions, self.device, self.folder = autoencoder, captions, device, folder
        self.dtype = torch.bfloat16 if device.type != "cpu" else torch.float32
        self.people: list[Latents] = []
        self.generator = torch.Generator().manual_seed(0)
        for file in sorted(folder.glob("[0-9]*.pt")):  # of a run that was stopped
            self.people += [Latents(**{name: value if name in ("number", "traits") else value.to(self.device, self.dtype)
                                       for name, value in person.items()}) for person in load_tensors(file)]  # fmt: skip
        self.saved = len(self.people)

    @torch.no_grad()
    def add(self, people: list[Person]) -> None:
        """Encode people, references with the noise that training adds to them."""
        alike = [showing(people, number) for number in (1, 2)]
        for part in (group[start : start + ENCODED] for group in alike for start in range(0, len(group), ENCODED)):
            clips = self.encode(torch.from_numpy(np.concatenate([person.clips for person in part])))
            images = self.encode(torch.from_numpy(np.concatenate([person.images for person in part]))[:, None])
            refs = torch.cat([to_video(torch.from_numpy(person.references)).transpose(1, 2) for person in part])  # (N, P, 3, H, W)
            refs = self.encode(add_pixel_noise(refs, self.generator).flatten(0, 1)[:, :, None])[:, 0].unflatten(0, refs.shape[:2])
            texts = self.captions([caption for person in part for caption in person.captions]).to(self.dtype)
            shared = [tensor.chunk(len(part)) for tensor in (clips, images, refs, texts)]  # everybody has as many
            self.people += [Latents(person.number, *own, torch.from_numpy(person.traits))
                            for person, *own in zip(part, *shared, strict=True)]  # fmt: skip

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Latents (B, T, C, h, w) of uint8 frames (B, F, H, W, 3) or of pixels in [-1, 1] (B, 3, F, H, W): their means."""
        parts = []
        for part in videos.split(FRAMES // videos.shape[1 if videos.dtype == torch.uint8 else 2]):
            video = to_video(part.to(self.device)) if part.dtype == torch.uint8 else part.to(self.device)
            with autocast(self.device):
                moments = self.autoencoder.autoencoder.encoder(video)[0]
            parts.append(moments.float().chunk(2, dim=1)[0].transpose(1, 2).to(self.dtype))
        return torch.cat(parts)

    def save(self) -> None:
        """Write the people that no file has yet."""
        if new := self.people[self.saved :]:
            with written_whole(self.folder / f"{self.saved:06d}.pt") as temporary:
                torch.save([{name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in vars(person).items()}
                            for person in new], temporary)  # fmt: skip
            self.saved = len(self.people)

    def batch(
        self, people: Sequence[Latents], stage: int, moving: bool, count: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw latents (B, T, C, h, w), captions (B, L, D) and references (B, P, C, h, w) for a stage; single frames if not `moving`."""
        latents, texts, refs = [], [], []
        for index in rng.integers(len(people), size=count):
            person = people[index]
            kind = person.clips if moving else person.images
            place = int(rng.integers(len(kind)))
            shot = place if moving else len(person.clips) + place
            own = stage == 1 and moving  # pre-training: an image of the clip itself, for a single image one of another shot
            chosen = [shot if own else choose_reference(traits, shot, stage, rng) for traits in person.traits.numpy().swapaxes(0, 1)]
            latents.append(kind[place])
            texts.append(person.texts[shot])
            refs.append(torch.stack([person.references[number, who] for who, number in enumerate(chosen)]))
        return torch.stack(latents), torch.stack(texts), torch.stack(refs)


def showing(people: list, number: int) -> list:
    """Those, `Person` or `Latents`, that show so many people at once."""
    return [person for person in people if person.references.shape[1] == number]


def choose_reference(traits: np.ndarray, shot: int, stage: int, rng: np.random.Generator) -> int:
    """Choose a reference from another shot; in stage III the one least like the clip among those that show the face well.

    The world's own facts stand in for a recogniser: a face seen from the front with bare eyes is in the band of high similarity, and
    of those the one whose turn, expression and light differ most from the clip's is the least similar.
    """
    others = np.delete(np.arange(len(traits)), shot)
    if stage == 3:
        in_band = others[(np.abs(traits[others, 0]) <= BAND) & (traits[others, 3] == 0)]
        if len(in_band):
            away = np.abs(traits[in_band, 0] - traits[shot, 0]) / FULL_TURN + (traits[in_band, 1:3] != traits[shot, 1:3]).sum(1)
            return int(in_band[away.argmax()])
    return int(rng.choice(others))
