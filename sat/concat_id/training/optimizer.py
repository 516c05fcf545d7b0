"""AdamW and Muon that average what they update, and the course of the learning rate."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from concat_id.low_rank import DOWN, UP
from concat_id.training.muon import muon_update

HIDDEN = re.compile(r"(^|\.)(layers|blocks)\.\d+\.")  # where the matrices are that Muon is for: not embeddings, nor the last layer
FUSED = "query_key_value.weight"  # three matrices in one
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
        self._average(parameters)
        return loss

    def _average(self, parameters: list[Tensor]) -> None:
        for parameter in parameters if self.ema_decay else ():
            state = self.state[parameter]
            count = state["step"].to(parameter.device)
            decay = ((1 + count) / (10 + count)).clamp(max=self.ema_decay)
            state["ema"].lerp_(parameter.detach(), 1 - decay)


@dataclass(frozen=True)
class Piece:
    """What this process updates of a hidden matrix of `shape`, as ZeRO cuts up the matrices laid end to end.

    `first` and `count` say which of the matrix's numbers, `offset` where they are in the process's flat parameter. `cut`: other
    processes have the rest. `parts`: so many matrices are stacked in it.
    """

    shape: tuple[int, int]
    first: int
    count: int
    offset: int
    cut: bool
    parts: int


class EmaMuon(EmaAdamW):
    """Muon (Jordan et al. 2024) for the hidden matrices, `EmaAdamW` for all else; updates of both are of the same size.

    For ZeRO 1 and 2, which make one flat parameter of the matrices and give each process a part of it: `pieces` must be set to what is
    in it, those first that a cut goes through, because all processes put them together. A matrix's momentum is in
    "exp_avg"; its "exp_avg_sq" stays zero.
    """

    def __init__(self, matrices: list[Tensor], others: list[Tensor], momentum: float = 0.95, **settings: Any):
        groups = [{"params": matrices, "momentum": momentum}, *([{"params": others}] if others else [])]
        super().__init__(groups, **settings)
        self.pieces: list[Piece] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update the parameters that have gradients, then their averages; ZeRO calls it for one group after the other."""
        matrices = [(group, flat) for group in self.param_groups if "momentum" in group for flat in group["params"]]
        gradients = [flat.grad for _, flat in matrices]
        for _, flat in matrices:
            flat.grad = None  # AdamW passes over what has none
        loss = super().step(closure)
        for (group, flat), gradient in zip(matrices, gradients, strict=True):
            self._update(group, flat, gradient.to(flat))
            flat.grad = gradient
        return loss

    def _update(self, group: dict[str, Any], flat: Tensor, gradient: Tensor) -> None:
        self.prepare([flat])
        state, rate, momentum = self.state[flat], group["lr"], group["momentum"]
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - momentum)
        flat.mul_(1 - rate * group["weight_decay"])
        for piece in self.pieces:
            own = slice(piece.offset, piece.offset + piece.count)
            matrix = _whole(piece, gradient[own].lerp(state["exp_avg"][own], momentum))  # Nesterov's
            if piece.count:
                update = muon_update(matrix, piece.parts).flatten()[piece.first : piece.first + piece.count]
                flat[own].add_(update, alpha=-rate)
        self._average([flat])


def _whole(piece: Piece, own: Tensor) -> Tensor:
    """Put a matrix together; all processes must call it for one that is cut."""
    if not piece.cut:
        return own.view(piece.shape) if piece.count else own
    whole = own.new_zeros(math.prod(piece.shape))
    whole[piece.first : piece.first + piece.count] = own
    dist.all_reduce(whole)
    return whole.view(piece.shape)


def hidden_matrices(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Choose the matrices inside a network's layers, which Muon is made for; factors of low rank are AdamW's."""
    return {name: weight for name, weight in named if weight.dim() == 2 and HIDDEN.search(name) and not name.endswith((DOWN, UP))}


def learning_rate_factor(step: int, total: int, style: str | None = None, warmup: int = 0, last: float = 0.0) -> float:
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
