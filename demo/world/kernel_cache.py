"""Where compiled kernels are kept between runs. Import this before any other module here that compiles."""

import hashlib
import os
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent


def keep_kernels() -> None:
    """Give the kernels of this very source a folder of their own; one that is set already stays.

    numba takes a kernel for unchanged while its own file is, although it may call kernels of other files.
    """
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(FOLDER.glob("*.py")))).hexdigest()[:12]
    parent = FOLDER / "__pycache__"
    if not os.access(parent if parent.exists() else FOLDER, os.W_OK):
        parent = Path(tempfile.mkdtemp(prefix="kernels"))
    os.environ.setdefault("NUMBA_CACHE_DIR", str(parent / f"kernels-{digest}"))
