"""Vectors of the largest face of many images, kept on disk by the images' content."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from concat_id.errors import UserError, warn
from concat_id.evaluation.face_tracks import read_reference
from concat_id.evaluation.measuring import Instruments
from concat_id.files.arrays import read_arrays
from concat_id.files.formats import is_image, media_in
from concat_id.files.paths import file_digest, kind_of, written_whole

SAVE_EVERY = 200


def face_vectors(images: Sequence[Path], what: str, output: Path, instruments: Instruments) -> dict[Path, np.ndarray]:
    """Return the vectors (D,) of images that hold a face; the others are counted in a warning. `what` names them in the progress.

    Vectors are looked up in, and added to, `output`/videos/face_vectors.npz. Raises `UserError` if it cannot be written.
    """
    file = output / "videos" / "face_vectors.npz"
    identity = json.dumps({name: instruments.identity[name] for name in ("version", "detector", "recognizer")}, sort_keys=True)
    known = _read(file, identity, instruments.recognizer.model.output_shape[1])
    vectors, new = {}, 0
    for path in tqdm(images, desc=what, unit="image", dynamic_ncols=True, disable=len(images) < 5):
        try:
            digest = file_digest(path)
        except UserError:
            continue
        if digest not in known:
            known[digest] = _compute(path, instruments)
            new += 1
            if new % SAVE_EVERY == 0:
                _write(file, identity, known)
        if known[digest].any():
            vectors[path] = known[digest]
    if len(vectors) < len(images):
        warn(f"{what}: {len(images) - len(vectors)} of {len(images)} images cannot be read or show no face and are left out")
    if new:
        _write(file, identity, known)
    return vectors


def _compute(path: Path, instruments: Instruments) -> np.ndarray:
    """Compute a vector, zeros where no face is found."""
    try:
        return read_reference(path, instruments.detector, instruments.recognizer).found.vector
    except UserError:
        return np.zeros(instruments.recognizer.model.output_shape[1], np.float32)


def _write(file: Path, identity: str, known: dict[str, np.ndarray]) -> None:
    with written_whole(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, identity=np.array(identity), digests=np.array(list(known)), vectors=np.stack(list(known.values())))


def _read(file: Path, identity: str, size: int) -> dict[str, np.ndarray]:
    """Read vectors (D,) by the images' digests; none from a damaged file or one made by other weights."""
    try:
        made_by, digests, vectors = read_arrays(file, "identity", "digests", "vectors")
    except UserError:
        return {}
    fits = digests.dtype.kind == "U" and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    if made_by.tolist() != identity or not fits or vectors.shape != (*digests.shape, size):
        return {}
    return dict(zip(digests.tolist(), vectors, strict=True))


def images_in(folder: Path, option: str) -> list[Path]:
    """List the images of a folder and of the folders in it. Raises `UserError` if there are none."""
    if kind_of(folder) != "a folder":
        raise UserError(f"{option}: {folder}: found {kind_of(folder)}, expected a folder with images; check the path")
    images = media_in(folder, is_image, deep=True)
    if not images:
        raise UserError(f"{option}: {folder}: found no image, expected .png, .jpg or the like; check the path")
    return images
