"""The frame of a script that trains; libraries are imported when the command line and the files are right."""

import os
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from concat_id.errors import UserError
from concat_id.startup import guard_output, prepare_process


def run_training(train: Callable[[Any], int], description: str, kinds: Collection[str], base: str | None = None) -> int:
    """Read the command line and call `train` with its configuration, whose `model.kind` is one of `kinds`; returns the exit code.

    `base` is the file of a script for one system, where the command line names none.

    What all processes find wrong, the first one tells, after which torchrun ends the others.
    """
    try:
        prepare_process()
        from concat_id.config.command_line import read_command_line

        bases, overrides = read_command_line(description, training=True, base=base)

        from concat_id.config.loading import load_config

        config = load_config(bases, overrides, kinds=kinds)
        from concat_id.distributed import choose_device

        if sys.stdout:
            guard_output(sys.stdout, lost=True)  # Ctrl-C ends `tee` as well, before the checkpoint is saved
        os.environ["DS_ACCELERATOR"] = choose_device(config.args.device).type  # DeepSpeed's own choice need not be that one
        return train(config)
    except UserError:
        time.sleep(3 if os.environ.get("RANK", "0") != "0" else 0)
        raise
