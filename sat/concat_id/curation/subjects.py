"""References of what people wear and of where they are, for the clips of a training list (the paper's supplement, B.2)."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from concat_id.curation.clip_people import DiscardError
from concat_id.curation.engines import CurationStage
from concat_id.curation.training_lists import entry, joined
from concat_id.data.clips import UnreadableClipError, Window, file_state
from concat_id.data.records import Record
from concat_id.distributed import choose_device
from concat_id.errors import UserError
from concat_id.files.json_files import OBJECT, TEXT, WORDS, recall_json, take, write_json
from concat_id.files.paths import are_whole, folder_written_whole, kind_of, own_name, text_digest
from concat_id.video.writing import write_image

if TYPE_CHECKING:
    from concat_id.models.inpainter import Inpainter
    from concat_id.models.segmenter import Segmenter

CLOTHES, BACKGROUND = "clothes", "background"
RECORD = "subjects.json"
VERSION = 1  # raise it when the same clip would give other images
INSIDE = 0.5  # share of the smaller one from which two masks show the same garment
SMALLEST, LARGEST = 0.01, 0.8  # shares of a frame that clothes must have at least, and people may have at most
MARGIN = 0.04  # of a garment's larger side, black around it
GROWN = 0.015  # of the frame's larger side, by which masks of people are grown
# What a detector of the YOLO family knows (the classes of COCO), without people, and without the fruit that is a colour as well.
OBJECTS = (
    "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant", "stop sign",
    "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
    "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
    "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

Find = Callable[[Image.Image, str], Sequence[Any]]
"""(image, words) -> what is found, the surest first, each with its `mask` (H, W), bool."""
Fill = Callable[[Image.Image, np.ndarray, str, int], Image.Image]
"""(image, mask (H, W), prompt, seed) -> the image with other pixels where the mask is."""


@dataclass(frozen=True)
class SubjectSettings:
    """What is asked for: `size` (height, width) and `skip` of training, words for clothes, a seed of what fills backgrounds."""

    size: tuple[int, int] = (480, 720)
    skip: int = 3
    words: str = "clothes"
    seed: int = 42
    timeout_s: float = 600.0


class ModelFolders(NamedTuple):
    """Folders of Grounding DINO, of SAM 2 and, for backgrounds, of an inpainting pipeline; and the device that they run on."""

    detector: Path
    segmenter: Path
    inpainter: Path | None
    device: str


@cache
def load_tools(models: ModelFolders) -> "tuple[Segmenter, Inpainter | None]":
    """Return what finds and what fills, whose weights are not yet read. Raises `UserError`."""
    from concat_id.models.inpainter import Inpainter  # takes seconds
    from concat_id.models.segmenter import Segmenter

    device = choose_device(models.device)
    return Segmenter(models.detector, models.segmenter, device), None if models.inpainter is None else Inpainter(models.inpainter, device)


class WantedImages(NamedTuple):
    """Images of a kind that the clip at an absolute path is to get; of clothes as many as `people`, of whom backgrounds have 0."""

    path: Path
    kind: str
    people: int


class MadeImages(NamedTuple):
    """The images that were made, people's clothes from left to right, or why there are none."""

    images: tuple[Path, ...]
    reason: str


def cut_out_clothes(frame: Image.Image, people: int, find: Find, words: str) -> list[Image.Image]:
    """Cut what each person wears out of a frame, from left to right, on black.

    Of garments that lie in one another the surest counts. Raises `DiscardError` where they are not as many as people.
    """
    masks: list[np.ndarray] = []
    for mask in (found.mask for found in find(frame, words) if found.mask.mean() >= SMALLEST):
        if all((mask & other).sum() <= INSIDE * min(mask.sum(), other.sum()) for other in masks):
            masks.append(mask)
    if len(masks) != people:
        raise DiscardError(f"not one {words!r} of at least {SMALLEST:.0%} of the frame is found for each person")
    return [_cut_out(frame, mask) for mask in sorted(masks, key=lambda mask: float(np.nonzero(mask)[1].mean()))]


def _cut_out(frame: Image.Image, mask: np.ndarray) -> Image.Image:
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    margin = round(MARGIN * max(right - left, bottom - top))
    seen = Image.fromarray(np.asarray(frame.convert("RGB")) * mask[..., None].astype(np.uint8))
    return seen.crop((left - margin, top - margin, right + margin, bottom + margin))


def clear_of_people(frame: Image.Image, find: Find, fill: Fill, random: np.random.Generator) -> Image.Image:
    """Put something else into a frame where people are: a thing drawn from `OBJECTS`. Raises `DiscardError`."""
    masks = [found.mask for found in find(frame, "person")]
    if not masks:
        raise DiscardError("found nobody to take out of the frame")
    radius = max(round(GROWN * max(frame.size)), 1)
    mask = binary_dilation(np.any(masks, axis=0), iterations=radius)
    if mask.mean() > LARGEST:
        raise DiscardError(f"people cover more than {LARGEST:.0%} of the frame")
    return fill(frame, mask, str(random.choice(OBJECTS)), int(random.integers(2**31)))


class SubjectStage(CurationStage):
    """Makes these images by `SubjectSettings`, each clip's of a kind in a folder of its own."""

    def setup(self) -> None:
        """Read the models' weights. Raises `UserError`."""
        super().setup()
        for tool in filter(None, load_tools(self.models)):
            tool.load()

    def recall(self, wanted: WantedImages) -> MadeImages | None:
        """Return what an earlier run made of the same clip with the same settings, None unless it is all there."""
        folder, fingerprint = self._folder(wanted), self._fingerprint(wanted)
        record = recall_json(folder / RECORD)
        try:
            if take(record, "fingerprint", TEXT, RECORD) != fingerprint:
                return None
            files, reason = take(record, "files", OBJECT, RECORD), take(record, "reason", WORDS, RECORD)
        except UserError:
            return None
        return MadeImages(tuple(folder / name for name in files), reason) if are_whole(folder, files) else None

    def process(self, wanted: WantedImages) -> MadeImages:
        """Make the images, whole or not at all. Raises `UserError` if the clip cannot be read, or the folder is somebody else's."""
        folder = self._folder(wanted)
        if kind_of(folder) != "no such file":
            if kind_of(folder / RECORD) != "a file":
                raise UserError(f"{folder}: found no {RECORD}, expected a folder that add_subjects.py made; choose another --output")
            shutil.rmtree(folder)
        with folder_written_whole(folder) as temporary:
            try:
                images, reason = self._make(wanted), ""
            except DiscardError as error:
                images, reason = [], str(error)
            names = [f"{number}.png" for number in range(len(images))]
            for name, image in zip(names, images, strict=True):
                write_image(temporary / name, image)
            files = {name: (temporary / name).stat().st_size for name in names}
            own = {"fingerprint": self._fingerprint(wanted), "source": str(wanted.path)}
            write_json(temporary / RECORD, own | {"files": files, "reason": reason})
        return MadeImages(tuple(folder / name for name in names), reason)

    def _folder(self, wanted: WantedImages) -> Path:
        people = f"_of_{wanted.people}" if wanted.people else ""
        return self.output / f"{own_name(wanted.path)}-{wanted.kind}{people}"

    def _fingerprint(self, wanted: WantedImages) -> str:
        """Name what the images depend on."""
        (segmenter, inpainter), settings = load_tools(self.models), self.settings
        own = [settings.words, wanted.people] if wanted.kind == CLOTHES else [settings.seed, inpainter.digest]
        clip = [str(wanted.path), file_state(wanted.path)]
        return text_digest(json.dumps([VERSION, wanted.kind, settings.size, settings.skip, segmenter.digest, own, clip]))

    def _make(self, wanted: WantedImages) -> list[Image.Image]:
        segmenter, inpainter = load_tools(self.models)
        if wanted.kind == CLOTHES:
            return cut_out_clothes(self._frame(wanted.path, 0.5), wanted.people, segmenter.find, self.settings.words)
        random = np.random.default_rng([self.settings.seed, int(text_digest(str(wanted.path))[:8], 16)])
        return [clear_of_people(self._frame(wanted.path, 0.0), segmenter.find, inpainter.fill, random)]

    def _frame(self, path: Path, position: float) -> Image.Image:
        """Read a frame as training sees it."""
        try:
            window = Window(1.0, 1, self.settings.skip, self.settings.size, position)
            return Image.fromarray(self._reader.read(path, window).pixels[0].numpy())
        except UnreadableClipError as error:
            raise UserError(f"{path}: cannot be read ({error.reason}); convert it or leave it out") from error


def images_wanted(record: Record, kinds: Sequence[str], most: int) -> list[WantedImages]:
    """Say what an entry is to get so that it has up to `most` references: clothes for all faces, then a background.

    Entries without a reference of their own, of photographs, and with other things than faces get nothing.
    """
    if record.is_image or record.shows_itself or set(record.kinds) != {"face"}:
        return []
    path, wanted, number = Path(os.path.abspath(record.video)), [], record.num_refs
    for kind, people, added in ((CLOTHES, record.num_refs, record.num_refs), (BACKGROUND, 0, 1)):
        if kind in kinds and number + added <= most:
            wanted.append(WantedImages(path, kind, people))
            number += added
    return wanted


def extended(
    records: Sequence[Record], asked: Sequence[Sequence[WantedImages]], found: Mapping[WantedImages, MadeImages | None], folder: Path
) -> tuple[list[dict[str, Any]], Counter]:
    """Make the entries of a list in `folder` with what was found of that asked for each; also count what became of it."""
    entries, counts = [], Counter()
    for record, own in zip(records, asked, strict=True):
        made = {wanted.kind: found[wanted] for wanted in own}
        for kind, one in made.items():
            reason = "the clip cannot be used" if one is None else one.reason
            counts[f"without {kind}: {reason}" if reason else f"with {kind}"] += 1
        entries.append(entry_with(record, [(kind, one.images) for kind, one in made.items() if one], folder))
    return entries, counts


def entry_with(record: Record, subjects: Sequence[tuple[str, Sequence[Path]]], folder: Path) -> dict[str, Any]:
    """Make the entry of a list in `folder` that has images of these kinds behind an entry's faces. Raises `UserError`."""
    kinds, images, masks = list(record.kinds), list(map(_given, record.images)), list(map(_given, record.masks))
    for kind, files in subjects:
        kinds, images = kinds + [kind] * len(files), images + list(files)
    masks += [None] * (len(images) - len(masks)) if masks else []
    made = entry(folder, record.video, record.caption, () if record.shows_itself else images, masks)
    return made | ({"kind": joined(kinds)} if set(kinds) != {"face"} else {})


def _given(alternatives: Sequence[Path]) -> Path | None:
    """Name what a list names: an image, or the folder of several."""
    return None if not alternatives else alternatives[0] if len(alternatives) == 1 else alternatives[0].parent
