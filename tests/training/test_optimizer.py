"""AdamW and Muon with an average, and the course of the learning rate."""

import pytest
import torch

from concat_id.training.muon import Muon
from concat_id.training.optimizer import EmaAdamW, EmaMuon, Piece, hidden_matrices, learning_rate_factor


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


def test_states_can_be_made_before_the_first_step():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = EmaAdamW([parameter], ema_decay=0.9)
    optimizer.prepare([parameter])
    assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq", "ema"}
    assert torch.equal(optimizer.state[parameter]["ema"], torch.ones(3))
    without = EmaAdamW([parameter])
    without.prepare([parameter])
    assert "ema" not in without.state[parameter]


def test_matrices_in_one_flat_parameter_follow_muon_each_and_the_rest_adamw():
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(96, 32)), torch.nn.Parameter(torch.randn(16, 64))]
    thirds = [torch.nn.Parameter(part.detach().clone()) for part in matrices[0].chunk(3)]  # the first is three in one
    single, bias = torch.nn.Parameter(matrices[1].detach().clone()), torch.nn.Parameter(torch.randn(7))
    flat = torch.nn.Parameter(torch.cat([matrix.detach().flatten() for matrix in matrices]))
    other = torch.nn.Parameter(bias.detach().clone())
    optimizer = EmaMuon([flat], [other], momentum=0.9, lr=0.1, weight_decay=0.0, ema_decay=0.5)
    optimizer.pieces = [Piece((96, 32), 0, 3072, 0, False, parts=3), Piece((16, 64), 0, 1024, 3072, False, parts=1)]
    expected, adam, average = Muon([*thirds, single], 0.1, 0.9), torch.optim.AdamW([bias], 0.1, weight_decay=0.0), flat.detach().clone()
    for step in range(1, 4):
        flat.grad, other.grad = torch.randn(4096), torch.randn(7)
        for part, gradient in zip(thirds, flat.grad[:3072].view(96, 32).chunk(3), strict=True):
            part.grad = gradient.clone()
        single.grad, bias.grad = flat.grad[3072:].view(16, 64).clone(), other.grad.clone()
        optimizer.step()
        expected.step()
        adam.step()
        average.lerp_(flat.detach(), 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(flat[:3072].view(96, 32), torch.cat(thirds))
    torch.testing.assert_close(flat[3072:].view(16, 64), single)
    torch.testing.assert_close(optimizer.state[flat]["ema"], average)
    assert torch.equal(other, bias) and optimizer.state[flat]["step"] == 3


def test_muon_is_for_matrices_inside_of_layers():
    shapes = {
        "transformer.layers.0.attention.query_key_value.weight": (192, 64), "transformer.layers.0.attention.dense.bias": (64,),
        "blocks.3.ffn.0.weight": (256, 64), "transformer.layers.1.attention.query_key_value.down.weight": (64, 64),
        "mixins.final_layer.linear.weight": (64, 64),
    }  # fmt: skip
    chosen = hidden_matrices((name, torch.empty(shape)) for name, shape in shapes.items())
    assert list(chosen) == ["transformer.layers.0.attention.query_key_value.weight", "blocks.3.ffn.0.weight"]


@pytest.mark.parametrize("style, warmup, last, expected", [
    (None, 0, 0.5, [1, 1, 1, 1, 1]),
    ("constant", 2, 0, [0.5, 1, 1, 1, 1]),
    ("linear", 0, 0, [1, 0.75, 0.5, 0.25, 0]),
    ("linear", 0, 0.2, [1, 0.8, 0.6, 0.4, 0.2]),
    ("cosine", 0, 0, [1, 0.853553, 0.5, 0.146447, 0]),
    ("cosine", 0, 0.1, [1, 0.868198, 0.55, 0.231802, 0.1]),  # as SwissArmyTransformer's AnnealingLR with decay_ratio 0.1
    ("linear", 2, 0, [0.5, 1, 1, 0.5, 0]),
    ("cosine", 4, 0, [0.25, 0.5, 0.75, 1, 1]),
])  # fmt: skip
def test_learning_rate(style, warmup, last, expected):
    assert [learning_rate_factor(step, 4, style, warmup, last) for step in range(5)] == pytest.approx(expected, abs=1e-6)
