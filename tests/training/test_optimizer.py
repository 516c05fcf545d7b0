"""AdamW with an average, and the learning-rate schedule."""

import argparse

import pytest
import torch
from sat.arguments import add_training_args
from sat.training.deepspeed_training import get_learning_rate_scheduler

from concat_id.config.args import TrainingArgs
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
    ("cosine", 0, 0.1, [1, 0.868198, 0.55, 0.231802, 0.1]),
])  # fmt: skip
def test_learning_rate_with_steps_of_warming_up(style, warmup, last, expected):
    args = TrainingArgs(train_iters=4, lr_decay_style=style, warmup_iters=warmup, lr_decay_ratio=last)
    assert [learning_rate_factor(step, args) for step in range(5)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
@pytest.mark.parametrize("given", [
    {}, {"lr_decay_style": "cosine"}, {"lr_decay_style": "cosine", "lr_decay_ratio": 0.3, "warmup": 0.4}, {"lr_decay_style": "constant"},
    {"lr_decay_style": "exponential"}, {"warmup": 0.3}, {"warmup": 0.9},
])  # fmt: skip
def test_the_learning_rate_of_released_files_is_sats(mode, given):
    released = add_training_args(argparse.ArgumentParser()).parse_args([])
    vars(released).update(given, mode=mode, train_iters=400, lr=1.0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule, ours = get_learning_rate_scheduler(optimizer, 0, released), TrainingArgs(mode=mode, train_iters=400, **given)
    for step in range(400):
        assert learning_rate_factor(step, ours) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        schedule.step()
