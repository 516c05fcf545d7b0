"""Several photos at once: a verdict and a contact sheet for each, and whether they show one person."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from concat_id.errors import UserError
from concat_id.face.detection import UprightPhoto
from concat_id.face.recognition import FaceRecognizer, same_person
from concat_id.face.reference import FaceModels, PreparedReference, prepare_found
from concat_id.files.paths import safe_name
from concat_id.video.transforms import fit_and_pad, load_image
from concat_id.video.writing import contact_sheet, write_image

TILE = 448  # pixels of a side on a contact sheet
MARK = "lime"


class Stranger(NamedTuple):
    """A photo that does not show whom the others show: its number, that of the photo most like all others, and their similarity."""

    number: int
    typical: int
    similarity: float


def find_strangers(vectors: np.ndarray, threshold: float) -> list[Stranger]:
    """Name the photos of one person that show another: vectors (N, D) of length 1, less than `threshold` like the most typical one."""
    similarities = vectors @ vectors.T
    typical = int(similarities.sum(axis=1).argmax())
    return [Stranger(number, typical, float(value)) for number, value in enumerate(similarities[typical]) if value < threshold]


class PhotoChecker:
    """Judges photos for videos of `size` (height, width); draws them into a folder and compares them, if these are given."""

    def __init__(self, size: tuple[int, int], models: FaceModels, recognizer: FaceRecognizer | None = None, output: Path | None = None):
        self.size, self.models, self.recognizer, self.output = size, models, recognizer, output
        self.photos: list[dict[str, Any]] = []
        self._vectors: dict[int, np.ndarray] = {}

    def check(self, path: str | Path) -> str:
        """Judge one photo; returns the line that says so. Raises `UserError` if it cannot be read, and remembers that."""
        record: dict[str, Any] = {"photo": str(path)}
        self.photos.append(record)
        try:
            found = self.models.detector.search(load_image(path))
        except UserError as error:
            record["error"] = str(error)
            raise
        prepared = prepare_found(found, self.size, self.models.detector, self.models.parser)
        record |= prepared.verdict.record()
        if self.recognizer and found.largest:
            self._vectors[len(self.photos) - 1] = self.recognizer.embed(found.photo, found.largest)
        if self.output:
            record["sheet"] = f"{len(self.photos):02d}_{safe_name(Path(path).stem)}.png"
            write_image(self.output / record["sheet"], draw_verdict(found, prepared, f"{Path(path).name}: {prepared.verdict}"))
        return f"{path}: {prepared.verdict}"

    def result(self) -> dict[str, Any]:
        """What is to be said of all photos, as JSON has it."""
        result: dict[str, Any] = {"photos": self.photos}
        if self.recognizer:
            threshold = same_person(self.recognizer.name, self.recognizer.threshold).threshold
            names = [self.photos[number]["photo"] for number in self._vectors]
            strangers = find_strangers(np.stack(list(self._vectors.values())), threshold) if names else []
            result |= {"recognizer": self.recognizer.name, "threshold": threshold}
            result["strangers"] = [{"photo": names[stranger.number], "typical": names[stranger.typical],
                                    "similarity": round(stranger.similarity, 3)} for stranger in strangers]  # fmt: skip
        return result


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
