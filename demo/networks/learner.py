"""A network in training: two optimizers, a learning rate that rises and falls, an average of the weights, and a state to go on from."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from concat_id.errors import UserError
from networks.muon import Muon

WARM_UP = 30  # steps
LAST_RATE = 0.03  # of the learning rate at the end
AVERAGE = 0.99  # decay of the average of the weights
CHECKED = 20  # steps between two looks at the gradients' norm on a GPU


class Descent:
    """Steps of what is trainable of `network`: `matrices` by Muon, the rest by AdamW, and a running average of the weights.

    A network in 16 bits has its weights in float32 here, which are what is updated and averaged.
    """

    def __init__(self, network: nn.Module, matrices: list[nn.Parameter], learning_rate: float, average: float = AVERAGE):
        self.network, self.learning_rate, self.decay, self.done = network, learning_rate, average, 0
        self.weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        own = {id(weight) for weight in matrices}
        in_16_bits = any(weight.dtype != torch.float32 for weight in self.weights.values())
        self.trained = self.weights
        if in_16_bits:
            self.trained = {name: nn.Parameter(weight.detach().float()) for name, weight in self.weights.items()}
        by_muon, by_adam = ([self.trained[name] for name, weight in self.weights.items() if (id(weight) in own) is chosen]
                            for chosen in (True, False))  # fmt: skip
        self.optimizers = [Muon(by_muon, learning_rate)] if by_muon else []
        self.optimizers += [torch.optim.AdamW(by_adam, learning_rate, betas=(0.9, 0.98), weight_decay=0.0)] if by_adam else []
        self.average = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self.norm = torch.zeros(())

    def descend(self, loss: Tensor, progress: float, warm_up: float = WARM_UP) -> None:
        """Take one step at the learning rate of `progress` in [0, 1). Raises `UserError` where a gradient is not finite.

        That is looked for on a CPU at once, and elsewhere now and then, so that the device need not be waited for.
        """
        factor = min(1.0, (self.done + 1) / warm_up) * max(LAST_RATE, 1 - progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * factor
        for weight in self.weights.values():
            weight.grad = None
        loss.backward()
        for name, weight in self.weights.items():
            if weight is not self.trained[name]:
                self.trained[name].grad = weight.grad.float()
        self.norm = nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        if self.norm.device.type == "cpu" or self.done % CHECKED == 0:
            self._check()
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += 1
        with torch.no_grad():
            self._show(self.trained)
            share = 1 - min(self.decay, self.done / (self.done + 10))
            torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), share)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, but for random numbers."""
        self._check()
        return {
            "done": self.done,
            "weights": {name: weight.detach() for name, weight in self.trained.items()},
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def go_on(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._set_weights(state["weights"])
        self.average = {name: value.to(self.trained[name].device) for name, value in state["average"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = state["done"]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Yield the network with the average of its last weights in place of the newest."""
        newest = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self._set_weights(self.average)
        try:
            yield self.network
        finally:
            self._set_weights(newest)

    def _check(self) -> None:
        if not torch.isfinite(self.norm):
            raise UserError(f"step {self.done + 1}: the gradient is not finite; choose a lower learning rate and start anew")

    def keep_average(self) -> None:
        """Put the average in the place of the newest weights for good."""
        self._set_weights(self.average)

    def _show(self, weights: dict[str, Tensor]) -> None:
        """Give a network in 16 bits the weights that it has not got itself."""
        if self.trained is not self.weights:
            torch._foreach_copy_(list(self.weights.values()), [weights[name] for name in self.weights])

    @torch.no_grad()
    def _set_weights(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.trained.items():
            weight.copy_(values[name])
        self._show(self.trained)
