"""A training run from the outside: what the scripts that train have in common, whatever the network and its data are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from concat_id.config.schema import Config
from concat_id.data.dataset import ReplacingDataset
from concat_id.data.sampler import ClipLoader, EpochSampler
from concat_id.distributed import choose_device, memory_told, rank, say, warn_of_emulation, world_size
from concat_id.errors import one_line
from concat_id.training.checkpoint import SavedState
from concat_id.training.engine import Engine, start_processes
from concat_id.training.preparation import opened_run, record_configuration
from concat_id.training.settings import EngineSettings, engine_settings
from concat_id.training.trainer import LESS_MEMORY, Trainer
from concat_id.training.validation import Validation


@dataclass(frozen=True)
class TrainingRun:
    """A run whose `folder` is this training's; `saved` is the checkpoint that it goes on from."""

    config: Config
    settings: EngineSettings
    device: torch.device
    folder: Path
    saved: SavedState | None

    def order(self, dataset: ReplacingDataset) -> ClipLoader:
        """Return the loader of this process's batches, and count the steps."""
        args, seed = self.config.training, self.config.args.seed
        dataset.any_kind = self.settings.micro_batch_size == 1
        order = EpochSampler(dataset.kinds, self.settings.micro_batch_size, rank(), world_size(), seed)
        if self.saved:
            order.load_state_dict(self.saved.values["sampler"])
        taken, seen = self.saved.step if self.saved else 0, order.samples // order.batch_size
        args.count_steps(order.batches_per_epoch, self.settings.accumulation * world_size(), taken, seen)
        return ClipLoader(dataset, order, args.num_workers, args.prefetch_factor)

    def train(self, load: Callable[[], nn.Module], loader: ClipLoader, objective: Any, validation: Validation | None) -> int:
        """Load the network that is trained, record the configuration, and take the steps; returns the exit code."""
        with memory_told(LESS_MEMORY, lambda: "the engine: "):
            engine = Engine(load(), self.settings, self.device)
        trainer = Trainer(self.config, self.folder, engine, objective, loader.sampler, validation, self.saved)
        record_configuration(self.folder, self.config, self.settings.notes, self.saved.step if self.saved else 0)
        return trainer.train(loader)


@contextmanager
def opened_training(config: Config) -> Iterator[TrainingRun]:
    """Join the other processes, and make the run's folder or find the one to continue; it is this training's inside the block."""
    settings, device = engine_settings(config, world_size()), choose_device(config.args.device)
    warn_of_emulation(device, config.args.dtype_name)
    start_processes(device)
    say(*(f"note: {one_line(note)}" for note in settings.notes))
    with opened_run(config) as (folder, saved):
        yield TrainingRun(config, settings, device, folder, saved)
