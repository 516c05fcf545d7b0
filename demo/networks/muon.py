"""Muon (Jordan et al. 2024): momentum made orthogonal, which needs fewer steps than AdamW."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from concat_id.distributed import has_bfloat16

ITERATION = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al., https://kellerjordan.github.io/posts/muon/
ROUNDS = 5
UPDATE = 0.2  # root mean square of an update over the learning rate, as AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (N, R, C) near 1 by a Newton-Schulz iteration; their scales do not matter."""
    first, second, third = ITERATION
    tall = matrices.shape[1] > matrices.shape[2]
    current = matrices.to(torch.bfloat16 if has_bfloat16(matrices.device) else torch.float32)
    current = current.mT if tall else current
    current = current / (current.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = current @ current.mT
        current = first * current + (second * square + third * square @ square) @ current
    return (current.mT if tall else current).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Update weights of two or more dimensions, all but the first taken as one, by their orthogonalised Nesterov momentum."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the parameters that have gradients, those of one shape together, as a GPU waits for many small operations."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in (item for item in group["params"] if item.grad is not None):
                alike[parameter.flatten(1).shape].append(parameter)
            for shape, parameters in alike.items():
                gradients = [parameter.grad for parameter in parameters]
                averages = [self.state[parameter].setdefault("momentum", torch.zeros_like(parameter)) for parameter in parameters]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                matrices = torch.stack([matrix.flatten(1) for matrix in torch._foreach_lerp(gradients, averages, group["momentum"])])
                updates = UPDATE * max(shape) ** 0.5 * orthogonalised(matrices)
                moved = [update.view_as(parameter) for update, parameter in zip(updates, parameters, strict=True)]
                torch._foreach_add_(parameters, moved, alpha=-group["lr"])
