"""References of what people wear and of where they are, for the clips of a training list (the paper's supplement, B.2)."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from concat_id.curation.clip_people import DiscardError
from concat_id.curation.engines import Resources
from concat_id.curation.preparing import HANGING
from concat_id.curation.training_lists import joined, path_from
from concat_id.data.clips import ClipReader, UnreadableClipError, Window, file_state
from concat_id.data.records import Record
from concat_id.distributed import choose_device
from concat_id.errors import UserError
from concat_id.files.json_files import NUMBER, OBJECT, TEXT, recall_json, take, write_json
from concat_id.files.paths import folder_written_whole, kind_of, safe_name, text_digest
from concat_id.video.writing import write_image

CLOTHES, BACKGROUND = "clothes", "background"
RECORD = "subjects.json"
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
"""(image, words) -> what is found, each with its `mask` (H, W), bool."""
Fill = Callable[[Image.Image, np.ndarray, str, int], Image.Image]
"""(image, mask (H, W), prompt, seed) -> the image with other pixels where the mask is."""


@dataclass(frozen=True)
class SubjectSettings:
    """What is asked for: kinds of references, `size` (height, width) and `skip` of training, words for clothes, a seed."""

    kinds: tuple[str, ...] = (CLOTHES, BACKGROUND)
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
def load_tools(models: ModelFolders) -> tuple[Find, Fill | None, tuple[str, ...]]:
    """Return what finds and what fills, whose weights are read at the first image, and the digests of these. Raises `UserError`."""
    from concat_id.models.inpainter import Inpainter  # takes seconds
    from concat_id.models.segmenter import Segmenter

    device = choose_device(models.device)
    segmenter = Segmenter(models.detector, models.segmenter, device)
    if models.inpainter is None:
        return segmenter.find, None, (segmenter.digest,)
    inpainter = Inpainter(models.inpainter, device)
    return segmenter.find, inpainter.fill, (segmenter.digest, inpainter.digest)


class ListedClip(NamedTuple):
    """A clip of a list, and how many people it shows."""

    path: Path
    people: int


class Subjects(NamedTuple):
    """The images that were made of a clip, people's clothes from left to right, and reasons by kind for what was not."""

    clothes: tuple[Path, ...]
    background: Path | None
    reasons: dict[str, str]


def cut_out_clothes(frame: Image.Image, people: int, find: Find, words: str) -> list[Image.Image]:
    """Cut what each person wears out of a frame, from left to right, on black.

    Raises `DiscardError` where not as many garments as people are found, each of them large enough.
    """
    masks = [found.mask for found in find(frame, words) if found.mask.mean() >= SMALLEST]
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


class SubjectStage:
    """The stage that makes these images under `output`, in a folder for each clip that a later run takes over if nothing has changed."""

    def __init__(self, output: Path, settings: SubjectSettings, models: ModelFolders, gpus: float = 0.0):
        self.output, self.settings, self.models = output, settings, models
        self.resources = Resources(gpus=gpus, seconds=HANGING * settings.timeout_s)

    def setup(self) -> None:
        """Take the models. Raises `UserError`."""
        self.find, self.fill, digests = load_tools(self.models)
        self._identity = [{name: value for name, value in asdict(self.settings).items() if name != "timeout_s"}, digests]
        self._reader = ClipReader(self.settings.timeout_s)

    def process(self, clip: ListedClip) -> Subjects:
        """Make the images of a clip. Raises `UserError` if it cannot be read."""
        path = clip.path.absolute()
        folder = self.output / f"{safe_name(path.stem, 40)}-{text_digest(str(path))[:6]}"
        fingerprint = text_digest(json.dumps([self._identity, str(path), file_state(path), clip.people]))
        if (subjects := recall(folder, fingerprint)) is not None:
            return subjects
        shutil.rmtree(folder, ignore_errors=True)
        with folder_written_whole(folder) as temporary:
            made, reasons = self._make(clip, text_digest(str(path)))
            for name, image in made.items():
                write_image(temporary / name, image)
            names = sorted(name for name in made if name.startswith(CLOTHES))
            write_json(temporary / RECORD, {"fingerprint": fingerprint, "source": str(path), CLOTHES: len(names), "reasons": reasons})
        return recall(folder, fingerprint)

    def close(self) -> None:
        """End the process that reads clips."""
        self._reader.close()

    def _make(self, clip: ListedClip, digest: str) -> tuple[dict[str, Image.Image], dict[str, str]]:
        """Return images by file name, clothes of the middle frame, background of the first; and why others are none: kind -> reason."""
        made, reasons = {}, {}
        if CLOTHES in self.settings.kinds:
            try:
                found = cut_out_clothes(self._frame(clip.path, 0.5), clip.people, self.find, self.settings.words)
                made |= {_name(place): image for place, image in enumerate(found)}
            except DiscardError as reason:
                reasons[CLOTHES] = str(reason)
        if BACKGROUND in self.settings.kinds:
            random = np.random.default_rng([self.settings.seed, int(digest[:8], 16)])
            try:
                made[f"{BACKGROUND}.png"] = clear_of_people(self._frame(clip.path, 0.0), self.find, self.fill, random)
            except DiscardError as reason:
                reasons[BACKGROUND] = str(reason)
        return made, reasons

    def _frame(self, path: Path, position: float) -> Image.Image:
        """Read a frame as training sees it."""
        try:
            window = Window(1.0, 1, self.settings.skip, self.settings.size, position)
            return Image.fromarray(self._reader.read(path, window).pixels[0].numpy())
        except UnreadableClipError as error:
            raise UserError(f"{path}: cannot be read ({error.reason}); convert it or leave it out") from error


def recall(folder: Path, fingerprint: str) -> Subjects | None:
    """Return what was made for `fingerprint`, None unless it is all there."""
    record = recall_json(folder / RECORD)
    try:
        if take(record, "fingerprint", TEXT, RECORD) != fingerprint:
            return None
        clothes = tuple(folder / _name(place) for place in range(int(take(record, CLOTHES, NUMBER, RECORD))))
        reasons = take(record, "reasons", OBJECT, RECORD)
    except UserError:
        return None
    background = folder / f"{BACKGROUND}.png"
    found = kind_of(background) == "a file"
    there = all(kind_of(file) == "a file" for file in clothes)
    return Subjects(clothes, background if found else None, reasons) if there else None


def _name(place: int) -> str:
    return f"{CLOTHES}_{place + 1}.png"


def listed_clips(records: Sequence[Record]) -> list[ListedClip]:
    """Name each video of a list once, with the most people that an entry gives it; images and their own references are left out."""
    people: dict[Path, int] = {}
    for record in records:
        if not record.is_image and not record.shows_itself and set(record.kinds) == {"face"}:
            people[record.video] = max(people.get(record.video, 0), record.num_refs)
    return [ListedClip(*clip) for clip in people.items()]


def add_subjects(
    records: Sequence[Record], found: dict[Path, Subjects], folder: Path, most: int
) -> tuple[list[dict[str, Any]], Counter]:
    """Make the entries of a list in `folder` in which clips have up to `most` references; also count them, and why others are left out.

    Clothes come after the faces, and the background comes last.
    """
    entries, counts = [], Counter()
    for record in records:
        kinds, images, masks = list(record.kinds), list(map(_given, record.images)), list(map(_given, record.masks))
        subjects = found.get(record.video) if not record.is_image and not record.shows_itself else None
        for kind, files in () if subjects is None else ((CLOTHES, subjects.clothes), (BACKGROUND, [*filter(None, [subjects.background])])):
            if kind in subjects.reasons:
                counts[f"without {kind}: {subjects.reasons[kind]}"] += 1
            elif files and len(kinds) + len(files) > most:
                counts[f"without {kind}: {len(kinds) + len(files)} references, expected at most {most}"] += 1
            elif files:
                kinds, images = kinds + [kind] * len(files), images + list(files)
                counts[f"with {kind}"] += 1
        masks += [None] * (len(images) - len(masks)) if masks else []
        entry = {"video_path": path_from(record.video, folder), "caption": record.caption,
                 "image_path": "" if record.shows_itself else joined(path_from(image, folder) for image in images)}  # fmt: skip
        entry |= {"mask_path": joined(path_from(mask, folder) if mask else "" for mask in masks)} if masks else {}
        entries.append(entry | ({"kind": joined(kinds)} if set(kinds) != {"face"} else {}))
    return entries, counts


def _given(alternatives: Sequence[Path]) -> Path | None:
    """Name what a list names: an image, or the folder of several."""
    return None if not alternatives else alternatives[0] if len(alternatives) == 1 else alternatives[0].parent
