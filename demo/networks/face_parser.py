"""A small Segformer that tells the 19 parts of a face, learnt from images with exact masks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from concat_id.errors import UserError
from concat_id.face.parsing import CLASSES
from concat_id.files.json_files import write_json
from concat_id.files.paths import folder_written_whole
from concat_id.video.transforms import load_image
from networks.captions import read_entries
from networks.learner import Learner, tensors_digest

MASKS = "masks"
FACE = tuple(CLASSES.index(name) for name in ("skin", "nose", "left eye", "right eye", "left brow", "right brow", "upper lip", "lower lip"))
SIDE = 2.1  # of a crop, in sides of the face, as faces are cut out for references
ROTATION, SCALE, SHIFT = 12.0, 0.25, 0.1  # degrees, and shares of the side, by which crops vary
BRIGHTNESS, CONTRAST = 0.15, 0.25
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that Segformers see


@dataclass(frozen=True)
class ParserTraining:
    """What a parser is made of and how it is trained; `size` is the side of its images."""

    size: int = 128
    widths: tuple[int, int, int, int] = (32, 64, 96, 160)
    steps: int = 800
    batch_size: int = 16
    learning_rate: float = 3e-3
    seed: int = 0


class ParserExample(NamedTuple):
    """An image (H, W, 3), uint8, with the class of each pixel (H, W), and whether it is kept for measuring."""

    image: np.ndarray
    classes: np.ndarray
    held_out: bool


def read_examples(lists: Sequence[Path]) -> list[ParserExample]:
    """Read the images of one person in lists of demo/render_people.py --masks; those of test people are held out. Raises `UserError`."""
    examples = []
    for file in lists:
        entries = read_entries(file)
        try:
            seen: dict[str, int] = {}
            for entry in entries:
                path = file.parent / entry.get("image_path", entry.get("video_path"))
                name = path.stem if "image_path" in entry else entry["recording"]
                number = seen[name] = seen.get(name, -1) + 1
                if len(entry["identities"]) > 1 or path.suffix != ".png":
                    continue
                with np.load(file.parent / MASKS / f"{name}.npz", allow_pickle=False) as content:
                    classes = content["classes"][number]
                examples.append(ParserExample(np.asarray(load_image(path)), classes, entry["split"] == "test"))
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{file}: found no images with masks ({type(error).__name__}: {error}); make them with "
                            "`python demo/render_people.py --images --masks --stills 1 ...`") from error  # fmt: skip
    examples = [example for example in examples if np.isin(example.classes, FACE).any()]
    if not any(example.held_out for example in examples) or all(example.held_out for example in examples):
        raise UserError(f"{', '.join(map(str, lists))}: found {len(examples)} faces, expected some of test people and of others; "
                        "render more people")  # fmt: skip
    return examples


def crop(example: ParserExample, size: int, random: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cut the face out, (size, size, 3) and (size, size), at a place that varies by `random`."""
    rows, columns = np.nonzero(np.isin(example.classes, FACE))
    centre = np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
    side = SIDE * max(np.ptp(columns) + 1, np.ptp(rows) + 1)
    angle = 0.0
    if random is not None:
        centre = centre + side * random.uniform(-SHIFT, SHIFT, 2)
        side *= np.exp(random.uniform(-SCALE, SCALE))
        angle = np.deg2rad(random.uniform(-ROTATION, ROTATION))
    step = side / size * np.array([np.cos(angle), np.sin(angle)])
    across, down = step, np.array([-step[1], step[0]])
    corner = centre - (across + down) * size / 2
    affine = (across[0], down[0], corner[0], across[1], down[1], corner[1])
    image = Image.fromarray(example.image).transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    classes = Image.fromarray(example.classes.astype(np.uint8)).transform(
        (size, size), Image.Transform.AFFINE, affine, Image.Resampling.NEAREST
    )
    return np.asarray(image), np.asarray(classes)


class FaceParserTrainer:
    """Trains a parser and writes it where `SegformerParser` reads it."""

    def __init__(self, examples: Sequence[ParserExample], training: ParserTraining, folder: Path):
        self.training, self.folder = training, folder
        self.examples = [example for example in examples if not example.held_out]
        self.held_out = [example for example in examples if example.held_out]
        torch.manual_seed(training.seed)
        self.network = new_segformer(training.widths).train()
        work = folder.with_name(f"{folder.name}.training")
        work.mkdir(parents=True, exist_ok=True)
        matrices = [weight for name, weight in self.network.named_parameters() if weight.dim() == 2 and "classifier" not in name]
        settings = asdict(training) | {"examples": tensors_digest(torch.from_numpy(example.image.copy()) for example in self.examples)}
        self.learner = Learner(self.network, matrices, training.steps, training.learning_rate, training.seed, work, settings)

    def train(self) -> None:
        """Take the steps that are left."""
        for _ in self.learner.run(self._loss, "face parser"):
            pass

    @torch.no_grad()
    def accuracy(self) -> dict[str, float]:
        """Intersection over union of each class that the held-out faces show, with the averaged weights."""
        common, either = torch.zeros(len(CLASSES)), torch.zeros(len(CLASSES))
        with self.learner.averaged() as network:
            network.eval()
            for example in self.held_out:
                image, classes = crop(example, self.training.size)
                found, truth = self._logits(to_pixels(image[None])).argmax(1)[0], torch.from_numpy(classes.astype(np.int64))
                for index in range(len(CLASSES)):
                    common[index] += ((found == index) & (truth == index)).sum()
                    either[index] += ((found == index) | (truth == index)).sum()
            network.train()
        return {name: float(common[index] / either[index]) for index, name in enumerate(CLASSES) if either[index]}

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the folder, whole or not at all, and remove what was kept to go on from."""
        self.learner.keep_average()
        with folder_written_whole(self.folder) as temporary:
            write_segformer(temporary, self.network, self.training.size)
            write_json(temporary / "training.json", asdict(self.training) | facts)
        for file in self.learner.folder.iterdir():
            file.unlink()
        self.learner.folder.rmdir()

    def _loss(self, step: int, _: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        random = np.random.default_rng([self.training.seed, step])
        chosen = random.integers(len(self.examples), size=self.training.batch_size)
        images, classes = zip(*(crop(self.examples[index], self.training.size, random) for index in chosen), strict=True)
        pixels = np.stack(images).astype(np.float32)
        grey = pixels.mean(axis=(1, 2, 3), keepdims=True)
        contrast = np.exp(random.uniform(-CONTRAST, CONTRAST, (len(pixels), 1, 1, 1)))
        light = 255 * random.uniform(-BRIGHTNESS, BRIGHTNESS, (len(pixels), 1, 1, 1))
        pixels = ((pixels - grey) * contrast + grey + light).clip(0, 255)
        loss = F.cross_entropy(self._logits(to_pixels(pixels)), torch.from_numpy(np.stack(classes).astype(np.int64)))
        return loss, {"loss": float(loss.detach())}

    def _logits(self, pixels: Tensor) -> Tensor:
        logits = self.network(pixels).logits
        return F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=False)


def to_pixels(images: np.ndarray) -> Tensor:
    """Scale images (B, H, W, 3) in 0-255 as the model wants them, (B, 3, H, W)."""
    scaled = (torch.from_numpy(np.asarray(images, np.float32)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return scaled.permute(0, 3, 1, 2).contiguous()


def new_segformer(widths: Sequence[int]) -> nn.Module:
    """Make a small Segformer with fresh weights for the 19 classes; `widths` are those of its four levels, multiples of 1, 2, 3 and 5."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    names = dict(enumerate(CLASSES))
    return SegformerForSemanticSegmentation(SegformerConfig(
        hidden_sizes=list(widths), depths=[1, 1, 2, 1], num_attention_heads=[1, 2, 3, 5], decoder_hidden_size=widths[2],
        classifier_dropout_prob=0.0, drop_path_rate=0.0, id2label=names, label2id={name: index for index, name in names.items()},
    ))  # fmt: skip


def write_segformer(folder: Path, network: nn.Module, size: int) -> None:
    """Write a parser that sees images of `size` pixels where `SegformerParser` reads it, in bfloat16."""
    network.to(torch.bfloat16).save_pretrained(folder)
    processor = {
        "image_processor_type": "SegformerImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": size, "width": size}, "image_mean": MEAN, "image_std": STD,
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", processor)
