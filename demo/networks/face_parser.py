"""A small Segformer that parses faces, in the released one's files, and photographs to teach it, of which every pixel's class is known."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from concat_id.face.detection import CROP_SIZE, FaceDetector, alignment, moved, warp
from concat_id.face.parsing import BACKGROUND
from concat_id.face.reference import FaceParser, kept_pixels
from concat_id.video.face_parts import CLASSES
from networks.learner import WARM_UP, Descent
from networks.material import classes_of_crop
from world.dataset import make_person
from world.head import HeadModel
from world.render import ShotRenderer
from world.shots import sample_shot

SIZES = ((96, 144), (96, 144), (192, 288), (320, 320))  # of photographs, drawn by lot: every other one as small as the world's clips
CALM = 0.6  # share of the photographs that are portraits; on the others people turn, speak, and wear hats and glasses
FRAMES = 17  # of a shot that a photograph is taken from
SIDE = 128  # pixels of the square that the network sees
CROPS, LOOSENESS = 3, 0.15  # crops of each photograph, and how far their key points are off, in distances of the eyes
CHANGED = (0.25, 0.15, 0.5)  # shares of the crops before another face, in grey, mirrored
BATCH_SIZE, LEARNING_RATE = 16, 2e-3
MIRRORED = torch.tensor([{"left": index + 1, "right": index - 1}.get(name.split()[0], index) for index, name in enumerate(CLASSES)])
LAYERS = {"depths": [2, 2, 2, 2], "hidden_sizes": [16, 32, 64, 96], "num_attention_heads": [1, 2, 4, 6], "mlp_ratios": [2, 2, 2, 2],
          "decoder_hidden_size": 64, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}  # fmt: skip


class Photograph(NamedTuple):
    """A photograph of a synthetic person, the class of each pixel (H, W), and the key points (5, 2) of the face."""

    image: Image.Image
    classes: np.ndarray
    keypoints: np.ndarray

    def crop(self, size: int) -> tuple[Image.Image, np.ndarray]:
        """Cut the face out as references are, then scale it to `size`; also return its classes (size, size)."""
        matrix = alignment(self.keypoints, CROP_SIZE)
        image = warp(self.image, matrix, CROP_SIZE).resize((size, size), Image.Resampling.BILINEAR)
        return image, classes_of_crop(self.classes, matrix, CROP_SIZE, size)


def take_photographs(numbers: Sequence[int], seed: int, detector: FaceDetector) -> list[Photograph]:
    """Draw a photograph of each of these people of a world, and leave out those on which the detector finds no face."""
    head, taken = HeadModel(), []
    for number in tqdm(numbers, desc="photographs", unit="person"):
        rng = np.random.default_rng([seed, 13, number])
        calm, size = rng.random() < CALM, SIZES[rng.integers(len(SIZES))]
        people = [make_person(head, seed, number)]
        shot = sample_shot(people, rng, 1 if calm else FRAMES, neutral=calm)
        image, classes = ShotRenderer(head, people, shot, size).frame(0 if calm else int(rng.integers(FRAMES)))
        photo, faces, _ = found = detector.search(Image.fromarray(image))
        if faces and found.note is None:
            taken.append(Photograph(photo, classes, detector.keypoints(photo, found.largest)))
    return taken


def train_parser(photographs: Sequence[Photograph], steps: int, seed: int, folder: Path) -> None:
    """Train a new parser on crops of photographs and write it in the released files, in float16."""
    rng, crops = np.random.default_rng(seed), []
    for photo, _ in product(photographs, range(CROPS)):
        eyes = np.linalg.norm(photo.keypoints[1] - photo.keypoints[0])
        crops.append(photo._replace(keypoints=photo.keypoints + rng.normal(0, LOOSENESS * eyes, (5, 2))).crop(SIDE))
    images = torch.from_numpy(np.stack([np.asarray(image) for image, _ in crops]))
    classes = torch.from_numpy(np.stack([classes for _, classes in crops]).astype(np.uint8))
    torch.manual_seed(seed)
    processor = SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    network = SegformerForSemanticSegmentation(SegformerConfig(id2label=dict(enumerate(CLASSES)), **LAYERS)).train()

    descent, generator = Descent(network, [], LEARNING_RATE), torch.Generator().manual_seed(seed)
    for step in (progress := tqdm(range(steps), desc="face parser", unit="step")):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        pixels, truth = vary(images[chosen].float() / 255, classes[chosen].long(), generator)
        logits = F.interpolate(network(((pixels - mean) / std).permute(0, 3, 1, 2)).logits, (SIDE, SIDE), mode="bilinear")
        descent.descend(F.cross_entropy(logits, truth), step / steps, min(WARM_UP, steps / 10))
        progress.set_postfix(right=f"{float((logits.detach().argmax(1) == truth).float().mean()):.3f}", refresh=False)
    network.half().save_pretrained(folder)
    processor.save_pretrained(folder)


def vary(images: Tensor, classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Show some crops (N, H, W, 3), in [0, 1], of a batch before another face, in grey or mirrored, and all of them in other colours."""
    before, grey, mirrored = torch.rand(3, len(images), 1, 1, 1, generator=generator) < torch.tensor(CHANGED).view(3, 1, 1, 1, 1)
    images = torch.where(before & (classes == BACKGROUND)[..., None], images.roll(1, 0), images)
    images = torch.where(grey, images.mean(-1, keepdim=True), images)
    images = torch.where(mirrored, images.flip(2), images)
    classes = torch.where(mirrored[..., 0], MIRRORED[classes.flip(2)], classes)
    gains, lift = (torch.randn((len(images), 1, 1, channels), generator=generator) for channels in (3, 1))
    return (images * (1 + 0.15 * gains) + 0.05 * lift).clip(0, 1), classes


def overlap(parser: FaceParser, photo: Photograph) -> float:
    """Intersection over union of the pixels that the model is to see of a crop, by a parser and by the exact classes."""
    crop, classes = photo.crop(CROP_SIZE)
    labels = parser.parse(crop, moved(photo.keypoints, alignment(photo.keypoints, CROP_SIZE)))
    kept = kept_pixels(labels)[0], kept_pixels(classes)[0]
    return float(np.logical_and(*kept).sum() / np.logical_or(*kept).sum())
