"""AdamW that averages what it updates, and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from concat_id.config.args import TrainingArgs

HELD_STEPS, HELD_AT, WARMUP, LAST = 100, 0.05, 0.01, 0.1  # As released: what SAT's training has where its options are not given.
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


def learning_rate_factor(step: int, args: TrainingArgs) -> float:
    """What the learning rate is multiplied with at `step`, counted from 0.

    As released, by SAT's `AnnealingLR`: it rises over `warmup` of all steps, in finetuning stays at a twentieth for the first 100, and
    then decays by the share that the steps since the rise are of all. With `warmup_iters` it rises over those and decays over the rest,
    to `lr_decay_ratio`, which SAT's linear decay does without.
    """
    total = args.train_iters
    if args.warmup_iters is not None:
        warmup, last = args.warmup_iters, args.lr_decay_ratio or 0.0
        if step < warmup:
            return (step + 1) / warmup
        done = min((step - warmup) / max(total - warmup, 1), 1.0)
    else:
        count, warmup = step + 1, total * (WARMUP if args.warmup is None else args.warmup)
        rise = count / warmup if warmup else 1.0
        if args.mode == "finetune" and count <= HELD_STEPS:
            return min(HELD_AT, rise)
        if count <= warmup:
            return rise
        done = min((count - warmup) / total, 1.0)
        last = LAST if args.lr_decay_ratio is None else args.lr_decay_ratio
        last = 0.0 if args.lr_decay_style == "linear" else last
    if args.lr_decay_style == "linear":
        return last + (1 - last) * (1 - done)
    if args.lr_decay_style == "cosine":
        return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2
    return 1.0
