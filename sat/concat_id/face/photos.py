"""Several photos at once: a verdict and a contact sheet for each, and whether they show one person."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from concat_id.errors import UserError, warn
from concat_id.face.detection import UprightPhoto
from concat_id.face.recognition import FALLBACK, FaceRecognizer, load_recognizer, same_person
from concat_id.face.reference import FaceModels, PreparedReference, prepare_found
from concat_id.files.paths import resolve_path, safe_name
from concat_id.video.transforms import fit_and_pad, load_image
from concat_id.video.writing import contact_sheet, write_image

TILE = 448  # pixels of a side on a contact sheet
MARK = "lime"


class Stranger(NamedTuple):
    """A photo that does not show whom the others show: its number, that of the photo most like all others, and their similarity."""

    number: int
    typical: int
    similarity: float


class Comparison(NamedTuple):
    """Who is a stranger among the photos of one person, by the recogniser that is named; photos without a face are no strangers."""

    strangers: list[Stranger]
    recognizer: str
    threshold: float
    is_clear: bool  # whether more than half of the photos show one person

    @property
    def outvoted(self) -> set[int]:
        """Numbers of the photos that are not to be taken, as most of the others show one person."""
        return {stranger.number for stranger in self.strangers} if self.is_clear else set()

    def lines(self, names: Sequence[object]) -> list[str]:
        """Say it of photos with these names, one line for each stranger."""
        return [self._line(stranger, str(names[stranger.number]), str(names[stranger.typical])) for stranger in self.strangers]

    def _line(self, stranger: Stranger, name: str, typical: str) -> str:
        said = f"another person than in {typical}" if self.is_clear else f"and {typical} seem to show different people"
        link, what = (": ", "leave it out") if self.is_clear else (" ", "give photos of one person")
        cosine = f"{self.recognizer} says a cosine of {stranger.similarity:.2f}, expected {self.threshold:g} of one person"
        return f"{name}{link}{said}; {cosine}; {what}"


def compare(faces: Sequence[Image.Image | None], recognizer: FaceRecognizer) -> Comparison:
    """Compare the photos of one person by the face of each as recognisers see it, None where there is none.

    Strangers are less than the threshold like the most typical photo.
    """
    threshold = same_person(recognizer.name, recognizer.threshold).threshold
    numbers = [number for number, face in enumerate(faces) if face]
    strangers = []
    if numbers:
        vectors = recognizer.embed_crops([faces[number] for number in numbers])
        similarities = vectors @ vectors.T
        typical = int(similarities.sum(axis=1).argmax())
        strangers = [Stranger(number, numbers[typical], float(value))
                     for number, value in zip(numbers, similarities[typical], strict=True) if value < threshold]  # fmt: skip
    return Comparison(strangers, recognizer.name, threshold, is_clear=2 * len(strangers) < len(numbers))


class PhotoComparer:
    """Compares several photos of one person; loads the recogniser for the first that are, and says nothing where none is there."""

    def __init__(self, device: torch.device | str = "cpu"):
        self._device = device

    @cached_property
    def _recognizer(self) -> FaceRecognizer | None:
        try:
            return load_recognizer(device=self._device)
        except UserError as error:
            if os.path.isdir(resolve_path(FALLBACK)):
                warn(f"photos of one person are not compared: {error}")
            return None

    def compare(self, references: Sequence[PreparedReference]) -> Comparison | None:
        """Compare the photos of one person; None if there is nothing to compare them with or by."""
        return compare([reference.face for reference in references], self._recognizer) if len(references) > 1 and self._recognizer else None


def sheet_name(number: int, path: str | Path) -> str:
    """What the contact sheet of a photo is called; `number` counts from 1."""
    return f"{number:02d}_{safe_name(Path(path).stem)}.png"


class PhotoChecker:
    """Judges photos for videos of `size` (height, width); draws them into a folder and compares them, if these are given."""

    def __init__(self, size: tuple[int, int], models: FaceModels, recognizer: FaceRecognizer | None, output: Path | None):
        self.size, self.models, self.recognizer, self.output = size, models, recognizer, output
        self.photos: list[dict[str, Any]] = []
        self._faces: dict[str, Image.Image | None] = {}  # of thousands of photos, for which whole references are too large

    def check(self, path: str | Path) -> str:
        """Judge one photo; returns the line that says so. Raises `UserError` if it cannot be read, and remembers that, or drawn."""
        record: dict[str, Any] = {"photo": str(path)}
        self.photos.append(record)
        try:
            found = self.models.detector.search(load_image(path))
        except UserError as error:
            record["error"] = str(error)
            raise
        prepared = prepare_found(found, self.size, self.models.detector, self.models.parser)
        record |= prepared.verdict.record()
        self._faces[str(path)] = prepared.face if self.recognizer else None
        if self.output:
            sheet = sheet_name(len(self.photos), path)
            write_image(self.output / sheet, draw_verdict(found, prepared, f"{Path(path).name}: {prepared.verdict}"))
            record["sheet"] = sheet
        return f"{path}: {prepared.verdict}"

    def result(self) -> tuple[dict[str, Any], list[str]]:
        """What is to be said of all photos, as JSON has it; and a line for each stranger."""
        result: dict[str, Any] = {"photos": self.photos}
        if not self.recognizer:
            return result, []
        names, compared = list(self._faces), compare(list(self._faces.values()), self.recognizer)
        strangers = [{"photo": names[stranger.number], "typical": names[stranger.typical], "similarity": round(stranger.similarity, 3)}
                     for stranger in compared.strangers]  # fmt: skip
        return result | {"recognizer": compared.recognizer, "threshold": compared.threshold, "strangers": strangers}, compared.lines(names)


def draw_verdict(found: UprightPhoto, prepared: PreparedReference, title: str) -> Image.Image:
    """Draw a photo with the face that is used, its crop, and what the model sees of it, under a title."""
    photo = fit_and_pad(found.photo, (TILE, TILE))
    if (face := found.largest) is not None:
        scale = TILE / max(found.photo.size)
        corner = (TILE - np.array(found.photo.size) * scale) / 2
        pen = ImageDraw.Draw(photo)
        pen.rectangle([*(face.box[:2] * scale + corner), *(face.box[2:] * scale + corner)], outline=MARK, width=2)
        for x, y in face.keypoints * scale + corner:
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=MARK)
    tiles = [photo, fit_and_pad(prepared.crop, (TILE, TILE)), fit_and_pad(prepared.image, (TILE, TILE))]
    return contact_sheet([], np.stack([np.asarray(tile) for tile in tiles]), title)
