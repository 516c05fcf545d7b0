"""A stage of curation in which all goes wrong that can; further processes import it by this name."""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from concat_id.errors import UserError, warn


@dataclass
class FailingStage:
    """Says that a source is done, notes it in a file of `folder`, and does what some sources are called."""

    folder: Path
    gpus: float = 0.0
    seconds: float = 2.0

    def setup(self):
        if not self.folder.exists():
            raise UserError(f"{self.folder}: no such folder")

    def process(self, source):
        with open(self.folder / "tried", "a") as stream:
            print(source, file=stream)
        if source == "warns":
            warn("pale colours")
        elif source == "bad":
            raise UserError("bad: no number")
        elif source == "full":
            raise UserError("full: no space") from OSError(errno.ENOSPC, "no space")
        elif source == "odd":
            raise KeyError("odd")
        elif source == "killed once" and self.tries(source) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif source == "hangs":
            time.sleep(60)
        return f"{source} is done"

    def close(self):
        pass

    def tries(self, source):
        """How often it was begun."""
        return (self.folder / "tried").read_text().splitlines().count(source)
