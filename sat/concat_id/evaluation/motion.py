"""How a video moves: amplitude, what motion does not explain, and flicker; without any weights."""

from typing import Any

import cv2
import numpy as np

BLOCK = 8  # pixels of a block whose brightness is followed
MIN_SPREAD = 1.0  # grey levels, of 255


def motion_scores(small: np.ndarray, fps: float) -> dict[str, Any]:
    """Score consecutive small grey frames (K, h, w), uint8; None for all of a video of one frame.

    - `motion_amplitude`: mean length of the optical flow (DIS) over pixels and frames, in percent of the image's diagonal per second.
    - `temporal_consistency`: 1 - e / s, not below 0. e is the mean absolute difference of each frame and the one before it moved along
      the flow, s the mean absolute deviation of a frame's pixels from the frame's mean. 1: motion explains every change.
      None, as flicker is, for frames of one colour (s below 1), which would be the steadiest of all.
    - `flicker`: mean over blocks of 8x8 pixels and inner frames of |b[t] - (b[t-1] + b[t+1]) / 2| in percent of white, b a block's
      brightness: what goes up and down from frame to frame rather than on. None below three frames.
    """
    if len(small) < 2:
        return {"temporal_consistency": None, "motion_amplitude": None, "flicker": None}
    flow_of = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = small.shape[1:]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    lengths, errors = [], []
    for before, after in zip(small[:-1], small[1:], strict=True):
        flow = flow_of.calc(after, before, None)  # where in the frame before a pixel came from
        target = grid + flow
        came = cv2.remap(before, target, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = ((target >= 0) & (target <= [width - 1, height - 1])).all(axis=-1)
        difference = np.abs(came.astype(np.float32) - after)
        errors.append(float(difference[inside].mean()) if inside.any() else float(difference.mean()))
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
    spread = float(np.abs(small - small.mean(axis=(1, 2), keepdims=True)).mean())
    return {
        "temporal_consistency": max(0.0, 1 - float(np.mean(errors)) / spread) if spread >= MIN_SPREAD else None,
        "motion_amplitude": 100 * float(np.mean(lengths)) * fps / float(np.hypot(height, width)),
        "flicker": _flicker(small) if spread >= MIN_SPREAD else None,
    }


def _flicker(small: np.ndarray) -> float | None:
    if len(small) < 3:
        return None
    rows, columns = small.shape[1] // BLOCK, small.shape[2] // BLOCK
    cut = small[:, : rows * BLOCK, : columns * BLOCK].reshape(len(small), rows, BLOCK, columns, BLOCK)
    blocks = cut.mean(axis=(2, 4)) / 255
    return 100 * float(np.abs(blocks[1:-1] - (blocks[:-2] + blocks[2:]) / 2).mean())
