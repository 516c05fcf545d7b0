"""The loop: batches in, steps, and in between a line, a validation, a checkpoint."""

import math
import re
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from concat_id.config.schema import Config
from concat_id.data.dataset import Batch
from concat_id.data.sampler import EpochSampler
from concat_id.distributed import memory_told, rank, say, world_size
from concat_id.errors import UserError, printable, warn
from concat_id.training.checkpoint import CheckpointError, SavedState, checkpoint_steps, forget_validation, save_checkpoint
from concat_id.training.engine import Engine, all_reduce
from concat_id.training.objective import Objective
from concat_id.training.optimizer import learning_rate_factor
from concat_id.training.progress import Progress
from concat_id.training.validation import Validation

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LESS_MEMORY = "set checkpoint_activations, a higher ZeRO stage or offload_optimizer, or shorten the clips"
LESS_TO_VALIDATE = "set eval_samples: 0 or only_log_video_latents: true, or shorten the clips"
PATIENCE = 5.0  # seconds in which further signals are the same one: torchrun passes on what its processes have got already


class Trainer:
    """Takes `train_iters` steps from where `saved` left off; SIGTERM or Ctrl-C in any process makes all of them save and stop."""

    def __init__(
        self,
        config: Config,
        run: Path,
        engine: Engine,
        objective: Objective,
        sampler: EpochSampler,
        validation: Validation | None,
        saved: SavedState | None,
    ):
        self.config, self.args, self.run, self.engine = config, config.training, run, engine
        self.objective, self.sampler, self.validation = objective, sampler, validation
        self.done, self.saved_at, self.due = 0, None, False  # whether a validation is due, which a signal puts off
        self.noted, self.stopped_by = 0, 0  # signal that this process got; signal that all have agreed to stop for
        if saved is not None:
            saved.restore(engine)
            self.done = self.saved_at = saved.step
            self.due = bool(validation and self.args.eval_interval and saved.values.get("validation_due"))
        self.progress = Progress(run, self.args, self.done, self.due) if rank() == 0 else None

    def train(self, batches: Iterable[Batch]) -> int:
        """Train to the end; returns 0, or 128 + the number of the signal that stopped it before."""
        if self.done >= self.args.train_iters:
            say(f"note: all {self.args.train_iters} steps are taken already; go on with a larger --train_iters")
        try:
            with self._listening(), memory_told(LESS_MEMORY, lambda: f"step {self.done + 1}: "):
                self._steps(iter(batches))
                if self.saved_at != self.done:
                    self._save(last=True)
                if (without := self.done - self.engine.updates) > 0:
                    say(f"note: {without} of {self.done} steps made no update, since gradients overflowed")
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others of a lost process, which are to tell it first
            remedy = f"continue with --resume from step {self.saved_at}" if self.saved_at else "start again"
            reason = re.sub(r"^\[[^]]*\] *", "", str(error).splitlines()[0])[:80]  # without the place in gloo's source
            raise UserError(f"step {self.done + 1}: lost another process ({reason}); {remedy}") from error
        finally:
            if self.progress:
                self.progress.close()
        return 128 + self.stopped_by if self.stopped_by and (self.due or self.done < self.args.train_iters) else 0

    def _steps(self, batches: Iterator[Batch]) -> None:
        """Step, save, validate, each unless a signal came before; what ends a validation then loses no step."""
        if self.due:
            self._validate()
            if self.progress:
                self.progress.last = self.progress.began = time.monotonic()
        while self.done < self.args.train_iters and not self.stopped_by:
            self._step(batches)
            args, last, began = self.args, self.done == self.args.train_iters, time.monotonic()
            self.due = bool(self.validation and args.eval_interval and (last or self.done % args.eval_interval == 0))
            if not self.stopped_by and (last or (args.save_interval and self.done % args.save_interval == 0)):
                self._save(last)
            if self.due and not self.stopped_by:
                self._validate()
            if self.progress:
                self.progress.last += time.monotonic() - began  # samples/s are those of steps

    def _step(self, batches: Iterator[Batch]) -> None:
        args = self.args
        factor = learning_rate_factor(self.engine.updates, args)  # as released: a step that overflowed does not count
        rate, losses, samples = self.engine.set_learning_rate(factor), [], 0
        accumulation = self.engine.settings.accumulation
        for number in range(accumulation):
            part = number * world_size() + rank()
            batch = next(batches)
            loss = self.objective.training_loss(self.engine, batch, self.done, part, accumulation * world_size())
            self.engine.accumulate(loss)
            losses.append(loss.detach())
            samples += len(batch.captions)
        self.done += 1
        total = sum(loss / accumulation for loss in torch.stack(losses).tolist())  # the one wait for the device
        total, samples = self._meet(total / world_size(), samples)
        self._require_number("loss", total)
        if self.progress:
            values = {"loss": total, "lr": rate, "gradient_norm": self.engine.gradient_norm}
            self.progress.step(self.done, values, int(samples), self.engine.memory_gib())

    def _meet(self, *values: float) -> list[float]:
        """Add up `values` of all processes, and agree whether to stop: once after each step, save and validation."""
        noted = [float(self.noted == number) for number in SIGNALS]
        sums = all_reduce([*values, *noted], self.engine.device)
        self.stopped_by = max((number for number, count in zip(SIGNALS, sums[len(values) :], strict=True) if count), default=0)
        return sums[: len(values)]

    def _validate(self) -> None:
        with memory_told(LESS_TO_VALIDATE, lambda: f"step {self.done}: the validation "):
            if self.args.eval_iters:
                loss = self.validation.loss(self.engine)
                self._require_number("validation loss", loss)
                if self.progress:
                    self.progress.validation(self.done, loss)
            if self.args.eval_samples:
                for name, sheet in self.validation.write_samples(self.engine, self.done).items():
                    self.progress.image(self.done, name, sheet)
        self.due = False
        if rank() == 0 and self.saved_at == self.done:
            forget_validation(self.run / str(self.done))
        self._meet()

    def _require_number(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            earlier = [step for step in checkpoint_steps(self.run) if step < self.done]  # the checkpoint of this step has the same weights
            again = f", with --resume {self.run / str(earlier[-1])}" if earlier else ""
            remedy = f"check clips and weights, or try a smaller --lr{again}"
            raise UserError(f"step {self.done}: the {name} is {value}, expected a number; {remedy}")

    def _save(self, last: bool) -> None:
        """Save; one that fails on the way is worth a warning, the last one the run."""
        began = time.monotonic()
        state = {"sampler": self.sampler.state_dict(), "accumulation": self.engine.settings.accumulation, "validation_due": self.due}
        try:
            save_checkpoint(self.run, self.done, self.engine, state, self.objective.dtype, self.args.keep_checkpoints)
        except CheckpointError as error:
            if last:
                raise
            if rank() == 0:
                warn(f"{error}; training goes on")
        else:
            self.saved_at = self.done
            say(f"saved {printable(self.run / str(self.done))} in {time.monotonic() - began:.1f} s")
        self._meet()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Note signals instead of dying of them; another Ctrl-C later on interrupts at once."""
        first = time.monotonic()

        def note(number: int, _: Any) -> None:
            nonlocal first
            if not self.noted:
                first = time.monotonic()
            elif number == signal.SIGINT and time.monotonic() - first > PATIENCE:
                raise KeyboardInterrupt
            else:
                return
            self.noted = number
            say(f"{signal.Signals(number).name}: finishing what has begun, and saving it")

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
