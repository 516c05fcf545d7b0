"""The door for arrays on disk: an .npz that `numpy.savez` wrote, and nothing that takes more memory than the file has bytes."""

import io
import zipfile
from pathlib import Path

import numpy as np

from concat_id.errors import UserError, reason_of
from concat_id.files.paths import require_file

LARGEST = 2**31  # bytes of a file that is read whole
REMEDY = "make it again"


def read_arrays(file: Path, *names: str, remedy: str = REMEDY) -> tuple[np.ndarray, ...]:
    """Read arrays by name. Raises `UserError` for a file that is damaged, holds objects or is compressed: `numpy.savez` does not."""
    require_file(file, "arrays (.npz)", remedy)
    try:
        with zipfile.ZipFile(file) as archive:
            return tuple(_read(archive, f"{name}.npy") for name in names)
    except Exception as error:  # damaged archives and headers: each its own class
        raise UserError(f"{file}: found no arrays {', '.join(names)} ({reason_of(error)}), expected an .npz; {remedy}") from error


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > LARGEST:
        raise ValueError(f"{name} is compressed or too large")
    content = archive.read(entry)
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is of another version")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
    # The header may promise more than there is, which numpy would allocate.
    if dtype.hasobject or min(shape, default=0) < 0 or np.prod(shape, dtype=object) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{name} is not what its header says")
    flat = np.frombuffer(content, dtype, offset=stream.tell())
    if dtype.kind == "U":
        flat.tolist()  # raises for numbers that are no characters
    return flat.reshape(shape, order="F" if by_column else "C")
