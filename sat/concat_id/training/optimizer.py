"""AdamW that averages what it updates, and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

STATES = ("exp_avg", "exp_avg_sq", "ema")


class EmaAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) whose state holds an exponential moving average of each parameter beside the moments.

    As a state it is cut up, moved and kept by ZeRO like the others. The decay is min(ema_decay, (1 + n) / (10 + n)) at step n, so
    that the average of a short run is not its start; 0 keeps no average.
    """

    def __init__(self, params: Any, ema_decay: float = 0.0, **settings: Any):
        super().__init__(params, **settings)
        self.ema_decay = ema_decay

    def prepare(self, parameters: Iterable[Tensor]) -> None:
        """Make the states of parameters that have none yet, where a checkpoint can be put; averages start at the parameters."""
        for parameter in parameters:
            state = self.state[parameter]
            if state:
                continue
            fused = self.defaults["fused"]
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
            state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
            if self.ema_decay:
                state["ema"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update the parameters that have gradients, then their averages."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"] if parameter.grad is not None]
        self.prepare(parameters)
        loss = super().step(closure)
        for parameter in parameters if self.ema_decay else ():
            state = self.state[parameter]
            count = state["step"].to(parameter.device)
            decay = ((1 + count) / (10 + count)).clamp(max=self.ema_decay)
            state["ema"].lerp_(parameter.detach(), 1 - decay)
        return loss


def learning_rate_factor(step: int, total: int, style: str | None, warmup: int, last: float) -> float:
    """What the learning rate is multiplied with at `step` of `total`, both counted from 0: rising over `warmup`, then by `style`.

    "linear" and "cosine" reach `last` at the end; "constant" or None stay.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    if style == "linear":
        return last + (1 - last) * (1 - done)
    if style == "cosine":
        return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2
    return 1.0
