"""What the demonstration's training does on top of the library's: sizes and order of batches, noise levels, places of clips."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from concat_id.data.dataset import ClipDataset
from concat_id.data.records import Record
from concat_id.data.sampler import EpochSampler
from concat_id.training.objective import Objective

IMAGE_BATCH = 12  # images of 140 tokens each, text and reference included; 4 clips of 17 frames have 356 each
CLIP_REPEATS = 4  # in an epoch, so that half of the batches are clips, which are harder than images
RARE_WORDS = {"hat", "cap", "beanie", "glasses", "sunglasses", "nods", "nodding"}  # in a fourth of the captions
RARE_REPEATS = 3  # in an epoch: references often wear none of these, so that words alone tell of them
LOGIT_MEAN, LOGIT_STD = 0.0, 1.2  # more of the middle noise levels, where it is decided whom a face resembles


def repeated(records: Sequence[Record]) -> list[Record]:
    """Put in clips and what has a rare word in its caption several times; each copy draws its references anew."""
    result = []
    for record in records:
        rare = RARE_WORDS & set(re.findall(r"[\w-]+", record.caption.lower()))
        result += [record] * ((1 if record.is_image else CLIP_REPEATS) * (RARE_REPEATS if rare else 1))
    return result


class StageClips(ClipDataset):
    """Clips with one place each: they have no more frames than are used."""

    windows = 1


class MixedSampler(EpochSampler):
    """Batches of clips, and larger ones of images, whose kinds are negative."""

    def size_of(self, kind: int) -> int:
        """How many records of a kind make a batch."""
        return IMAGE_BATCH if kind < 0 else self.batch_size


class LogitNormalObjective(Objective):
    """The loss at noise levels that are mostly in the middle."""

    def draw_timesteps(self, batch: int, generator: torch.Generator, part: int, parts: int) -> Tensor:
        """Draw timesteps (B,) whose logit log(t / (1 - t)), t in (0, 1), is normal (Esser et al. 2024, section 3.1).

        Slices hold equal shares of the distribution, so that batches drawn together cover it evenly.
        """
        share = (part + torch.rand(batch, generator=generator, dtype=torch.float64)) / parts
        count = self.model.schedule.num_timesteps
        return (count * torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.special.ndtri(share))).long().clamp_(max=count - 1)
