"""A small face recogniser, taught by images of a manifest to tell its people apart, for a second opinion beside the usual one.

Two images of each of some people are taken, of different recordings where there are any; each has to find its partner among all of
them by cosine similarity.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from concat_id.data.manifest import read_manifest
from concat_id.distributed import has_bfloat16
from concat_id.errors import UserError
from concat_id.files.json_files import write_json
from concat_id.files.paths import folder_written_whole
from concat_id.video.transforms import load_image
from networks.building import matrices
from networks.captions import is_held_out
from networks.learner import Learner, tensors_digest
from networks.recognition_network import SIDE, RecognitionNetwork, to_onnx

STORED = 72  # side of images in memory
SHARPNESS = 14.0  # what cosines are multiplied by
ROTATION, SCALE, SHIFT = 0.12, 0.12, 0.08  # radians, logarithm and half sides, by which faces vary
CONTRAST, BRIGHTNESS, TINT, GRAIN = 0.25, 0.15, 0.08, 0.1
BLURRED = 0.5  # share of the steps' images that are made coarser, to one of these sides
COARSE = (14, 20, 28, 36)
SETTLING = 40  # batches by which the norms' statistics are found at the end
MOST_MEASURED = 4000
FALSE_MATCHES = 0.001  # share of pairs of different people that the threshold lets pass, as usual


@dataclass(frozen=True)
class RecognizerTraining:
    """How a recogniser is trained; a batch has two images of each of half as many people."""

    steps: int = 1500
    batch_size: int = 96
    learning_rate: float = 1.5e-3
    seed: int = 0


class RecognizerExample(NamedTuple):
    """An upright face (3, 72, 72), uint8, with whose it is, in which recording, and whether it is kept for measuring."""

    face: Tensor
    person: str
    recording: str
    held_out: bool


class Accuracy(NamedTuple):
    """What a recogniser makes of people held out: mean cosines of two recordings of one person and of two people, share of the
    images whose nearest of other recordings is the same person's, the threshold that 0.1 % of the pairs of two people pass, and the
    share of pairs of one person that pass it.
    """

    same: float
    other: float
    nearest: float
    threshold: float
    matched: float


def read_examples(manifest: Path) -> list[RecognizerExample]:
    """Read the faces of a manifest of sat/prepare_clips.py that have a name. Raises `UserError` unless some people are held out."""
    from tqdm import tqdm

    _, clips = read_manifest(manifest)
    examples = []
    for clip in tqdm(clips, desc="reading", unit="clip"):
        for person in (person for person in clip.people if person.identity):
            held_out = is_held_out(person.identity, clip.split)
            examples += [RecognizerExample(_read(image), person.identity, clip.origin, held_out) for image in person.images]
    learned, held_out = (_by_person(part) for part in _parts(examples))
    if min(_with_pairs(learned), _with_pairs(held_out)) < 2:
        counts = f"{_with_pairs(learned)} people with two images or more to learn from and {_with_pairs(held_out)} to measure on"
        raise UserError(f"{manifest}: found {counts}, expected two of each; give the clips' list `identities` and prepare more of them")
    return examples


class FaceRecognizerTrainer:
    """Trains a recogniser and writes it where `FaceRecognizer.from_folder` reads it."""

    def __init__(self, examples: Sequence[RecognizerExample], training: RecognizerTraining, folder: Path):
        self.training, self.folder = training, folder
        self.learned, self.held_out = _parts(examples)
        self.people = [numbers for numbers in _by_person(self.learned).values() if len(numbers) > 1]
        self.faces = torch.stack([example.face for example in self.learned])
        torch.manual_seed(training.seed)
        self.network = RecognitionNetwork().train().to(memory_format=torch.channels_last)
        work = folder.with_name(f"{folder.name}.training")
        work.mkdir(parents=True, exist_ok=True)
        settings = asdict(training) | {"faces": tensors_digest(self.faces)}
        weights = matrices(self.network)
        self.learner = Learner(self.network, weights, training.steps, training.learning_rate, training.seed, work, settings)

    def train(self) -> None:
        """Take the steps that are left, keep the average of the weights, and find the statistics of its norms."""
        for _ in self.learner.run(self._loss, "face recogniser"):
            pass
        self.learner.keep_average()
        norms = [module for module in self.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
        generator = torch.Generator().manual_seed(self.training.seed + 1)
        with torch.no_grad():
            for _ in range(SETTLING):
                self._vectors(vary(self.faces[self._draw(generator)], generator))
        self.network.eval()

    @torch.no_grad()
    def accuracy(self) -> Accuracy:
        """Measure on the people held out, at most on 4,000 images."""
        step = max(1, -(-len(self.held_out) // MOST_MEASURED))
        chosen = self.held_out[::step]
        faces = torch.stack([item.face for item in chosen]).split(64)
        vectors = torch.cat([self.network(plain(part)) for part in faces])
        return measure(vectors.numpy(), [item.person for item in chosen], [item.recording for item in chosen])

    def finish(self, accuracy: Accuracy) -> None:
        """Write the folder, whole or not at all, and remove what was kept to go on from."""
        facts = {"threshold": f"{accuracy.threshold:.3f}"}
        with folder_written_whole(self.folder) as temporary:
            (temporary / f"{self.folder.name}.onnx").write_bytes(to_onnx(self.network, facts).SerializeToString())
            counts: dict[str, Any] = {"faces": len(self.learned), "people": len(self.people), "held_out": len(self.held_out)}
            write_json(temporary / "training.json", asdict(self.training) | counts | accuracy._asdict())
        for file in self.learner.folder.iterdir():
            file.unlink()
        self.learner.folder.rmdir()

    def _draw(self, generator: torch.Generator) -> list[int]:
        """Draw two images of each of some people, one after the other."""
        chosen = []
        for person in torch.randperm(len(self.people), generator=generator)[: self.training.batch_size // 2].tolist():
            first, *others = (self.people[person][place] for place in torch.randperm(len(self.people[person]), generator=generator))
            away = (other for other in others if self.learned[other].recording != self.learned[first].recording)
            chosen += [first, next(away, others[0])]
        return chosen

    def _vectors(self, faces: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            return self.network(faces.contiguous(memory_format=torch.channels_last))

    def _loss(self, _: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        vectors = self._vectors(vary(self.faces[self._draw(generator)], generator))
        cosines = SHARPNESS * vectors @ vectors.T
        cosines.fill_diagonal_(float("-inf"))
        partners = torch.arange(len(vectors)) ^ 1
        loss = F.cross_entropy(cosines, partners)
        return loss, {"loss": float(loss.detach()), "found": float((cosines.argmax(1) == partners).float().mean())}


def plain(faces: Tensor) -> Tensor:
    """Scale faces (B, 3, 72, 72), uint8, to what the network sees: (B, 3, 56, 56) in [-1, 1]."""
    return F.interpolate(faces.float() / 127.5 - 1, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def vary(faces: Tensor, generator: torch.Generator) -> Tensor:
    """Scale faces as `plain` does, turned, moved, lit, blurred and noised at random."""
    count = len(faces)

    def draw(*size: int) -> Tensor:
        return 2 * torch.rand(*size, generator=generator) - 1

    turned = torch.polar(torch.exp(SCALE * draw(count)), ROTATION * draw(count))  # scale and rotation as a complex number
    matrix = torch.stack([turned.real, -turned.imag, turned.imag, turned.real], dim=1).view(count, 2, 2)
    matrix = torch.cat([matrix, SHIFT * draw(count, 2, 1)], dim=2)
    grid = F.affine_grid(matrix, [count, 3, SIDE, SIDE], align_corners=False)
    varied = F.grid_sample(faces.float() / 127.5 - 1, grid, padding_mode="border", align_corners=False)
    varied = varied * (1 + CONTRAST * draw(count, 1, 1, 1)) + BRIGHTNESS * draw(count, 1, 1, 1) + TINT * draw(count, 3, 1, 1)
    blurred = torch.rand(count, generator=generator) < BLURRED
    side = COARSE[int(torch.randint(len(COARSE), (1,), generator=generator))]
    coarse = F.interpolate(varied, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    coarse = F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    varied = torch.where(blurred.view(-1, 1, 1, 1), coarse, varied)
    return varied + GRAIN * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(varied.shape, generator=generator)


def measure(vectors: np.ndarray, people: Sequence[str], recordings: Sequence[str]) -> Accuracy:
    """Measure vectors (N, D) of length 1; two images of one recording are never compared."""
    cosines = vectors @ vectors.T
    names, places = np.array(people), np.array(recordings)
    same = names[:, None] == names[None]
    apart = places[:, None] != places[None]
    others, own = cosines[~same], cosines[same & apart]
    if not len(own):
        raise UserError("the people held out have one recording each, expected two of some of them; prepare more clips")
    threshold = float(np.quantile(others, 1 - FALSE_MATCHES))
    asked = (same & apart).any(axis=1)  # who has been recorded twice
    nearest = np.where(apart, cosines, -2.0).argmax(axis=1)
    found = float(np.mean(names[nearest][asked] == names[asked]))
    return Accuracy(float(own.mean()), float(others.mean()), found, threshold, float(np.mean(own >= threshold)))


def _read(image: Path) -> Tensor:
    face = load_image(image).resize((STORED, STORED), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(face).copy()).permute(2, 0, 1)


def _parts(examples: Sequence[RecognizerExample]) -> tuple[list[RecognizerExample], list[RecognizerExample]]:
    return [item for item in examples if not item.held_out], [item for item in examples if item.held_out]


def _by_person(examples: Sequence[RecognizerExample]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        numbers.setdefault(example.person, []).append(number)
    return numbers


def _with_pairs(people: dict[str, list[int]]) -> int:
    return sum(len(numbers) > 1 for numbers in people.values())
