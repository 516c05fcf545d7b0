"""A network in training: two optimizers, a learning rate that rises and falls, a progress bar, and a file to go on from."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from concat_id.errors import UserError
from concat_id.files.paths import remove_partial_files, written_whole
from concat_id.weights.loading import load_tensors
from networks.muon import Muon

STATE = "state.pt"
SAVE_SECONDS = 60.0
WARM_UP = 30  # steps, or a tenth of a short run
LAST_RATE = 0.03  # of the learning rate at the end
AVERAGE = 0.99  # decay of the average of the weights


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of shapes and numbers, in hexadecimal: what a run was begun with."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if tensor.dim() else str(tensor.item()).encode())
    return digest.hexdigest()


class Learner:
    """Trains what is trainable of `network` for `steps`: `matrices` by Muon, the rest by AdamW.

    With `folder`, a killed run goes on from the last of the states written there, if `settings` are still the same.
    """

    def __init__(self, network: nn.Module, matrices: list[nn.Parameter], steps: int, learning_rate: float, seed: int,
                 folder: Path | None = None, settings: Any = None):  # fmt: skip
        self.network, self.steps, self.learning_rate, self.done = network, steps, learning_rate, 0
        self.trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        own = {id(weight) for weight in matrices}
        by_adam = [weight for weight in self.trained.values() if id(weight) not in own]
        self.optimizers = [Muon(matrices, learning_rate)] if matrices else []
        self.optimizers += [torch.optim.AdamW(by_adam, learning_rate, betas=(0.9, 0.98), weight_decay=0.0)] if by_adam else []
        self.average = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self.generator = torch.Generator().manual_seed(seed)
        self.folder, self.digest = folder, hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()
        if folder is not None:
            remove_partial_files(folder)
            if (folder / STATE).is_file():
                self._resume(folder / STATE)

    def run(self, loss_of: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]], title: str) -> Iterator[int]:
        """Take the steps that are left, each with `loss_of(step, generator)`, the loss and what to show; yields the steps done."""
        from tqdm import tqdm

        saved, shown = time.monotonic(), {}
        with tqdm(total=self.steps, initial=self.done, desc=title, unit="step", smoothing=0.05) as bar:
            while self.done < self.steps:
                loss, values = loss_of(self.done, self.generator)
                self._descend(loss)
                for name, value in values.items():
                    shown[name] = value if name not in shown else 0.95 * shown[name] + 0.05 * value
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
                bar.update()
                if self.folder is not None and (time.monotonic() - saved > SAVE_SECONDS or self.done == self.steps):
                    self.save()
                    saved = time.monotonic()
                yield self.done

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Yield the network with the average of its last weights in place of the newest."""
        newest = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self._set_weights(self.average)
        try:
            yield self.network
        finally:
            self._set_weights(newest)

    def keep_average(self) -> None:
        """Put the average in the place of the newest weights for good."""
        self._set_weights(self.average)

    def save(self) -> None:
        """Write everything that the next step depends on."""
        state = {
            "digest": self.digest,
            "done": self.done,
            "weights": {name: weight.detach() for name, weight in self.trained.items()},
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
        }
        with written_whole(self.folder / STATE) as temporary:
            torch.save(state, temporary)

    def _descend(self, loss: Tensor) -> None:
        factor = min(1.0, (self.done + 1) / min(WARM_UP, self.steps / 10)) * max(LAST_RATE, 1 - self.done / self.steps)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * factor
        loss.backward()
        if not torch.isfinite(nn.utils.clip_grad_norm_(self.trained.values(), 1.0)):
            raise UserError(f"step {self.done + 1}: the gradient is not finite; choose a lower --learning-rate and start anew")
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += 1
        with torch.no_grad():
            decay = min(AVERAGE, self.done / (self.done + 10))
            for name, weight in self.trained.items():
                self.average[name].lerp_(weight, 1 - decay)

    def _resume(self, path: Path) -> None:
        state = load_tensors(path, mmap=False)
        if not isinstance(state, dict) or state.get("digest") != self.digest:
            raise UserError(f"{path}: found a run with other settings or data, expected the same; remove {path.parent} to start anew")
        self._set_weights(state["weights"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.done = state["done"]

    @torch.no_grad()
    def _set_weights(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.trained.items():
            weight.copy_(values[name])
