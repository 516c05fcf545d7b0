"""Concat-ID: identity-preserving text-to-video generation by appending reference latents to the video's.

Tensors are named after one legend throughout: B batch, F pixel frames, T latent frames, R reference images,
C channels, H W height and width, L text tokens, S tokens of the whole sequence, D width, N attention heads.
Pixels are in [-1, 1], sizes are (height, width), latents are (B, T, C, H, W).
"""

import os
import sys

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
SCRIPT = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "/")
OURS = SCRIPT.startswith(PROJECT + os.sep)


def is_strange(entry: str) -> bool:
    """Tell whether an entry of sys.path is the working folder and no script's own: sat/, demo/, or where a user's script lies."""
    own = os.path.dirname(entry) == PROJECT or not OURS and os.path.realpath(entry) == os.path.dirname(SCRIPT)
    try:
        return entry == "" or not own and os.path.samefile(entry, ".")
    except OSError:
        return False


# Where a script of this project was started, here and not later: a logging.py of the working folder would be imported for Python's.
if OURS:
    sys.path[:] = [entry for entry in sys.path if not is_strange(entry)]
