"""What a run tells: a line on the screen, exact numbers in metrics.jsonl, curves for TensorBoard and, if asked, Weights & Biases."""

import json
import math
import time
from pathlib import Path
from typing import Any

from PIL import Image

from concat_id.config.args import TrainingArgs
from concat_id.errors import UserError, warn
from concat_id.files.paths import write_text
from concat_id.training.checkpoint import metric_lines_until
from concat_id.training.curves import Curves

METRICS = "metrics.jsonl"


class Progress:
    """The first process's reporter; `step` is where the run starts, and what was written for later steps is dropped.

    So are that step's validations in metrics.jsonl, if one is `due`; `latest` names it from now on.
    """

    def __init__(self, run: Path, args: TrainingArgs, step: int = 0, due: bool = False):
        self.run, self.args = run, args
        self.samples, self.losses = 0, []  # since the last line
        self.wandb = _wandb(run, args) if args.wandb else None  # first, as it may be refused
        self.began, self.first_step, self.last = time.monotonic(), step, time.monotonic()
        latest = run / "latest"
        if step and (not latest.is_file() or latest.read_text(errors="replace").strip() != str(step)):
            write_text(latest, str(step))  # with the metrics, else a run that ends before it saves would go on from a later one
        write_text(run / METRICS, "".join(f"{line}\n" for line in metric_lines_until(run / METRICS, step, due)))
        self.file = open(run / METRICS, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        self.torn = False  # whether the last line is incomplete
        self.curves = Curves(run / "tensorboard", step) if args.tensorboard else None

    def step(self, step: int, values: dict[str, float], samples: int, memory_gib: float) -> None:
        """Record the numbers of one step of so many samples; every `log_interval` steps and at the first and last one, print a line.

        The line and the curves have the mean loss since the line before; all else is the step's.
        """
        self._write(step, values)
        self.samples += samples
        self.losses.append(values["loss"])
        if step % self.args.log_interval and step not in (self.first_step + 1, self.args.train_iters):
            return
        now, then = time.monotonic(), self.last
        rate = self.samples / max(now - then, 1e-9)
        loss = sum(self.losses) / len(self.losses)
        self.last, self.samples, self.losses = now, 0, []
        curves = values | {"loss": loss, "samples_per_s": rate, "memory_gib": memory_gib}
        self._show(step, {f"train/{name}": value for name, value in curves.items()})
        gradient = "overflow, no update" if values["gradient_norm"] == math.inf else f"{values['gradient_norm']:.3f}"
        left = (self.args.train_iters - step) / max((step - self.first_step) / max(now - self.began, 1e-9), 1e-9)
        print(
            f"step {step}/{self.args.train_iters}  loss {loss:.4f}  lr {values['lr']:.2e}  gradient {gradient}"
            f"  {rate:.2f} samples/s  {memory_gib:.1f} GiB  {_duration(left)} left",
            flush=True,
        )

    def validation(self, step: int, loss: float) -> None:
        """Record a validation loss."""
        self._write(step, {"validation_loss": loss})
        self._show(step, {"validation/loss": loss})
        print(f"step {step}/{self.args.train_iters}  validation loss {loss:.4f}", flush=True)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Show a contact sheet of a sampled video."""
        if self.curves:
            self.curves.image(step, name, image)
        if self.wandb:
            import wandb

            self.wandb.log({"step": step, name: wandb.Image(image)})

    def close(self) -> None:
        """Finish the files."""
        self.file.close()
        if self.curves:
            self.curves.close()
        if self.wandb:
            self.wandb.finish()

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Append a line; a full disk must not end the run, and is told once."""
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON knows no others
        line = b"\n" * self.torn + json.dumps({"step": step, **numbers}).encode() + b"\n"
        try:
            reason = None if self.file.write(line) == len(line) else "no space left"
        except OSError as error:
            reason = error.strerror
        if reason and not self.torn:
            warn(f"{self.run / METRICS}: could not be written ({reason}); training goes on")
        self.torn = bool(reason)

    def _show(self, step: int, values: dict[str, float]) -> None:
        if self.curves:
            self.curves.values(step, values)
        if self.wandb:
            self.wandb.log({"step": step, **values})


def _wandb(run: Path, args: TrainingArgs) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("args.wandb: found true, but wandb is not installed; install it or set wandb: false") from error
    try:
        reporter = wandb.init(project=args.wandb_project_name, name=run.name, dir=str(run), resume="allow", id=run.name)
        reporter.define_metric("*", step_metric="step")  # its own steps never go back, as a run that goes on from a checkpoint does
        return reporter
    except wandb.Error as error:
        remedy = "run `wandb login`, or set WANDB_MODE=offline to keep everything in the run's folder, or wandb: false"
        raise UserError(f"args.wandb: found true, but it cannot start ({' '.join(str(error).split())[:160]}); {remedy}") from error


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
