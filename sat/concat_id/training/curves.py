"""Curves and images of a run for TensorBoard, written at once and not, as tensorboardX does, by a thread that a full disk stops."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from concat_id.errors import warn


class Curves:
    """An event file in `folder`; what earlier files say after `step` is dropped. A write that fails ends it with a warning."""

    def __init__(self, folder: Path, step: int = 0):
        self.folder, self._writer = folder, None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        except OSError as error:
            self._give_up(error)
        if step:
            self._add(step + 1, session_log=SessionLog(status=SessionLog.START))

    def values(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve whose value is finite."""
        for name, value in values.items():
            if math.isfinite(value):
                self._add(step, summary=summary.scalar(name, value))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Add an image."""
        self._add(step, summary=summary.image(name, np.asarray(image.convert("RGB")), dataformats="HWC"))

    def close(self) -> None:
        """Finish the file."""
        if self._writer:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)
        self._writer = None

    def _add(self, step: int, **content: Any) -> None:
        if self._writer:
            try:
                self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
                self._writer.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        warn(f"{self.folder}: could not be written ({error.strerror or error}); curves end here, metrics.jsonl and training go on")
