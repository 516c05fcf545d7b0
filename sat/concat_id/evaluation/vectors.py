"""Vectors of the largest face of many pictures, kept on disk by the pictures' content."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from concat_id.arrays import read_arrays
from concat_id.errors import UserError, warn
from concat_id.evaluation.faces import read_reference
from concat_id.face.detection import FaceDetector
from concat_id.face.recognition import FaceRecognizer
from concat_id.files import file_digest, kind_of, written_whole
from concat_id.formats import is_picture, media_in

SAVE_EVERY = 200


class FaceVectors:
    """Look up or compute face vectors; `identity` names everything they depend on but the picture."""

    def __init__(self, file: Path, identity: str, detector: FaceDetector, recognizer: FaceRecognizer):
        self.file, self.identity, self.detector, self.recognizer = file, identity, detector, recognizer
        self._size = recognizer.model.output_shape[1]
        self._known: dict[str, np.ndarray] = self._read()
        self._unsaved = 0

    def compute(self, paths: Iterable[Path], what: str) -> dict[Path, np.ndarray]:
        """Return the vectors (D,) of pictures that hold a face; the others are counted in a warning. `what` names them in the progress."""
        paths, vectors, without = list(paths), {}, 0
        for path in tqdm(paths, desc=what, unit="picture", dynamic_ncols=True, disable=len(paths) < 5):
            try:
                digest = file_digest(path)
            except (OSError, UserError):
                without += 1
                continue
            if digest not in self._known:
                self._known[digest] = self._compute(path)
                self._unsaved += 1
            if self._unsaved >= SAVE_EVERY:
                self.save()
            if self._known[digest].any():
                vectors[path] = self._known[digest]
            else:
                without += 1
        if without:
            warn(f"{what}: {without} of {len(paths)} pictures cannot be read or show no face and are left out")
        self.save()
        return vectors

    def save(self) -> None:
        """Write what is new."""
        if not self._unsaved:
            return
        with written_whole(self.file) as temporary, open(temporary, "wb") as stream:
            vectors = np.stack(list(self._known.values()))
            np.savez(stream, identity=np.array(self.identity), digests=np.array(list(self._known)), vectors=vectors)
        self._unsaved = 0

    def _compute(self, path: Path) -> np.ndarray:
        """Compute a vector, zeros where no face is found."""
        try:
            return read_reference(path, self.detector, self.recognizer).found.vector
        except UserError:
            return np.zeros(self._size, np.float32)

    def _read(self) -> dict[str, np.ndarray]:
        try:
            identity, digests, vectors = read_arrays(self.file, "identity", "digests", "vectors")
        except UserError:
            return {}
        fits = digests.dtype.kind == "U" and vectors.dtype == np.float32 and np.isfinite(vectors).all()
        if identity.tolist() != self.identity or not fits or vectors.shape != (*digests.shape, self._size):
            return {}
        return dict(zip(digests.tolist(), vectors, strict=True))


def pictures_in(folder: Path, option: str) -> list[Path]:
    """List the pictures of a folder and of the folders in it. Raises `UserError` if there are none."""
    if kind_of(folder) != "a folder":
        raise UserError(f"{option}: {folder}: found {kind_of(folder)}, expected a folder with pictures; check the path")
    pictures = media_in(folder, is_picture, deep=True)
    if not pictures:
        raise UserError(f"{option}: {folder}: found no picture, expected .png, .jpg or the like; check the path")
    return pictures
