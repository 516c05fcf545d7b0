"""A user's own metrics: `--metric FILE.py`, a Python file with a function `measure`. docs/evaluation.md shows one."""

import re
import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from concat_id.errors import UserError, reason_of, shortened
from concat_id.evaluation.face_tracks import FoundFace, Reference, Track
from concat_id.evaluation.metrics import CSV_HEAD, CSV_TAIL, METRICS, Metric
from concat_id.files.json_files import LARGEST
from concat_id.files.paths import read_text, resolve_path, text_digest
from concat_id.video.transforms import load_image

COLUMN = re.compile(r"\w[\w ]{0,59}")  # what a column may be called
BETTER = {"↑": "more", "↓": "less"}  # before a description
GROUP = "Your metrics"  # their heading on the page


@dataclass(frozen=True)
class MetricInput:
    """What `measure` is given of one video: F sampled frames of H x W pixels and R references. Later versions may add fields.

    - `path`: the video; `prompt`: what it should show, "" if that is not known
    - `frames`: (F, H, W, 3), uint8, RGB, read-only; `indices`: (F,), their numbers in the video of `fps` frames per second
    - `references`: R, in the order of the prompt's people from left to right; `.path` of the image, `.found` its largest face
    - `faces`: for each of the F frames all faces found, largest first, each with `.face.box` (x0, y0, x1, y1) and `.face.keypoints`
      (5, 2) in pixels of the frame (eyes, nose, corners of the mouth), `.face.score` in [0, 1], `.crop`, an upright PIL image of
      112 x 112 pixels, and `.vector` (D,), float32, of length 1, by which the recogniser tells people apart
    - `people`: for each of the R references the faces that are taken for that person, `.faces`, by position 0 to F-1 among the frames
    """

    path: Path
    prompt: str
    frames: np.ndarray
    indices: Sequence[int]
    fps: float
    references: Sequence[Reference]
    faces: Sequence[Sequence[FoundFace]]
    people: Sequence[Track]

    @property
    def reference_images(self) -> list[np.ndarray]:
        """Read the R reference images, (height, width, 3), uint8, RGB, each of its own size."""
        return [np.asarray(load_image(reference.path)) for reference in self.references]


class UserMetric:
    """A file's function `measure(video: MetricInput) -> dict[str, float | None]` and its descriptions of the columns, if it has any."""

    def __init__(self, path: str | Path):
        """Run the file. Raises `UserError` if it is absent, no Python, fails, lacks `measure` or takes a built-in column's name."""
        self.file = resolve_path(path)
        source = read_text(self.file, "a Python file", "check the path of --metric")
        self.digest = text_digest(source)
        module = sys.modules[f"metric_{self.digest}"] = ModuleType(f"metric_{self.digest}")
        module.__file__ = str(self.file)
        try:
            exec(compile(source, self.file, "exec"), vars(module))
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        self._measure = getattr(module, "measure", None)
        if not callable(self._measure):
            raise UserError(f"{self.file}: found no function measure, expected def measure(video) that returns numbers by name; add it")
        texts = getattr(module, "DESCRIPTIONS", {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise UserError(f"{self.file}: DESCRIPTIONS: found {shortened(repr(texts))}, expected a dict of texts by column; mend it")
        for name in texts:
            self._check_column(name, ())
        self.columns = {name: Metric(name, BETTER.get(text[:1], ""), text.lstrip("↑↓ "), group=GROUP) for name, text in texts.items()}

    def scores(self, video: MetricInput, taken: Collection[str]) -> dict[str, float | None]:
        """Measure a video; `taken` are other metrics' columns. Raises `UserError` if `measure` fails or returns anything else."""
        try:
            measured = self._measure(video)
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        if not isinstance(measured, dict):
            raise UserError(f"{self.file}: measure returned {type(measured).__name__}, expected a dict of numbers by name; mend it")
        for name in measured:
            self._check_column(name, taken)
        return {name: self._number(name, value) for name, value in measured.items()}

    def _failure(self, error: BaseException) -> UserError:
        lines = [place.lineno for place in traceback.extract_tb(error.__traceback__) if place.filename == str(self.file)]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(self.file) else lines[-1] if lines else None
        place = f"{self.file}: line {line}" if line else self.file
        return UserError(f"{place}: found {type(error).__name__} ({reason_of(error)}), expected a metric that runs; mend it")

    def _check_column(self, name: object, taken: Collection[str]) -> None:
        if not isinstance(name, str) or not COLUMN.fullmatch(name):
            raise UserError(f"{self.file}: found a column called {shortened(repr(name))}, expected letters, digits, spaces; rename it")
        if name in METRICS or name in CSV_HEAD + CSV_TAIL:
            raise UserError(f"{self.file}: found the column {name}, expected a name that is not built in; rename it")
        if name in taken:
            raise UserError(f"{self.file}: found the column {name}, which another --metric has as well; rename one")

    def _number(self, name: str, value: object) -> float | None:
        with suppress(TypeError, ValueError, OverflowError):
            if value is None or not isinstance(value, str) and abs(float(value)) < LARGEST:
                return None if value is None else float(value)
        raise UserError(f"{self.file}: {name}: found {shortened(repr(value))}, expected a finite number below 1e100 or None; mend it")
