"""AdamW with an average, and the learning-rate schedule."""

import pytest
import torch

from concat_id.training.optimizer import EmaAdamW, learning_rate_factor


def test_updates_are_those_of_adamw_and_averages_follow():
    torch.manual_seed(0)
    start = torch.randn(5)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1}
    own, torchs, average = EmaAdamW([mine], ema_decay=0.5, **settings), torch.optim.AdamW([theirs], **settings), start.clone()
    for step in range(1, 12):
        mine.grad = theirs.grad = torch.randn(5)
        own.step()
        torchs.step()
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * mine.detach()
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(own.state[mine]["ema"], average)


@pytest.mark.parametrize("style, warmup, last, expected", [
    (None, 0, 0.5, [1, 1, 1, 1, 1]),
    ("constant", 2, 0, [0.5, 1, 1, 1, 1]),
    ("linear", 0, 0.2, [1, 0.8, 0.6, 0.4, 0.2]),
    ("cosine", 0, 0.1, [1, 0.868198, 0.55, 0.231802, 0.1]),  # as SwissArmyTransformer's AnnealingLR with decay_ratio 0.1
])  # fmt: skip
def test_learning_rate(style, warmup, last, expected):
    assert [learning_rate_factor(step, 4, style, warmup, last) for step in range(5)] == pytest.approx(expected, abs=1e-6)
