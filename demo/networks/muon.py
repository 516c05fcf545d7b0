"""Muon (Jordan et al. 2024): momentum made orthogonal, which needs fewer steps than AdamW."""

from collections.abc import Iterable

import torch
from torch import Tensor

from concat_id.distributed import has_bfloat16

ITERATION = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al., https://kellerjordan.github.io/posts/muon/
ROUNDS = 5
UPDATE = 0.2  # root mean square of an update over the learning rate, as AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix (R, C) near 1 by a Newton-Schulz iteration; its scale does not matter."""
    first, second, third = ITERATION
    current = matrix.to(torch.bfloat16 if has_bfloat16(matrix.device) else torch.float32)
    current = current.T if matrix.shape[0] > matrix.shape[1] else current
    current = current / (current.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = current @ current.T
        current = first * current + (second * square + third * square @ square) @ current
    return (current.T if matrix.shape[0] > matrix.shape[1] else current).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Update weights of two or more dimensions, all but the first taken as one, by their orthogonalised Nesterov momentum."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the parameters that have gradients."""
        for group in self.param_groups:
            for parameter in (item for item in group["params"] if item.grad is not None):
                average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                matrix = parameter.grad.lerp(average, group["momentum"]).flatten(1)
                update = UPDATE * max(matrix.shape) ** 0.5 * orthogonalised(matrix)
                parameter.add_(update.view_as(parameter), alpha=-group["lr"])
