"""A photo as the page shows it at once: the crop, what the model sees of it, and the verdict."""

import html
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from concat_id.config.schema import Config
from concat_id.errors import UserError, one_line
from concat_id.face.photos import PhotoComparer
from concat_id.face.reference import PreparedReference, load_face_models, prepare_reference

TILE_HEIGHT = 200  # pixels


class PhotoReader:
    """Prepares photos as sampling does; detectors are loaded once for all of them."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._comparer = PhotoComparer()

    def read(self, path: str, config: Config) -> PreparedReference:
        """Prepare a photo for a model. Raises `UserError` for what is none."""
        faces = config.model.faces
        models = self._models.get(repr(faces)) or self._models.setdefault(repr(faces), load_face_models(faces, "cpu"))
        return prepare_reference(path, config.args.sampling_image_size, models.detector, models.parser)

    def look(self, paths: list[str] | None, config: Config) -> tuple[Image.Image | None, str]:
        """The image and the sentences to show for a person's uploads; the best of several photos is the one that is taken."""
        found, names, told = [], [], []
        for path in paths or ():
            try:
                reference = self.read(path, config)
            except UserError as error:
                told.append(marked("unreadable", sentence(error, path) + ", or remove it"))
                continue
            found.append(reference)
            names.append(Path(path).name)
            notes = "<br>".join(map(html.escape, reference.verdict.notes))
            told.append(marked(reference.verdict.level, ": ".join(filter(None, [sentence(path, path) if len(paths) > 1 else "", notes]))))
        compared = self._comparer.compare(found)
        told += [marked("stranger", sentence(line)) for line in compared.lines(names)] if compared else []
        outvoted = compared.outvoted if compared else set()
        kept = [reference for number, reference in enumerate(found) if number not in outvoted]
        best = max(kept, key=lambda reference: reference.verdict.worth, default=None)
        return side_by_side([best.crop, best.image]) if best else None, "<br>".join(told)


def marked(level: str, told: str = "") -> str:
    """A word in the colour of what it means, and a sentence behind it."""
    return f'<span class="word {level}">{level}</span> {told}'


def side_by_side(images: list[Image.Image]) -> Image.Image:
    """Put images of one height beside one another."""
    tiles = [image.convert("RGB").resize((round(image.width * TILE_HEIGHT / image.height), TILE_HEIGHT)) for image in images]
    row = Image.new("RGB", (sum(tile.width for tile in tiles) + 6 * (len(tiles) - 1), TILE_HEIGHT), "white")
    left = 0
    for tile in tiles:
        row.paste(tile, (left, 0))
        left += tile.width + 6
    return row


def sentence(error: UserError | str, *paths: str | Path) -> str:
    """What an error or a note says, with the names of uploads, and of Python, in place of where the server keeps them."""
    told = str(error)
    for path in (*paths, sys.executable):
        told = told.replace(str(path), Path(path).name)
    return html.escape(one_line(told))
