"""Training Wan through the entry script: ten steps, resume bit for bit, the learning rate's course, and what the objective draws."""

import shutil

import pytest
import torch
from conftest import ROOT
from training.alone import batch_of, metrics, same, states, weights

from concat_id.config.loading import load_config
from concat_id.diffusion.flow import FlowSchedule
from concat_id.models.backbones import load_transformer
from concat_id.sampling.pipeline import make_pipeline
from concat_id.training.objective import Objective

CPU = torch.device("cpu")
OWN = {
    "args": {"lr_decay_style": "linear", "warmup_iters": 1000, "warmup_part": 0.2},
    "deepspeed": {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.01}}},
}


@pytest.fixture(scope="module")
def wan(setup, tiny_wan):
    """The setup of these tests with the small Wan in place of the small CogVideoX."""
    bases = setup.bases
    setup.bases = [str(ROOT / "configs" / "wan_mini.yaml"), str(tiny_wan), bases[-1]]
    setup.weights = tiny_wan.parent / "Concat-ID-Wan"
    yield setup
    setup.bases = bases


@pytest.fixture(scope="module")
def whole(wan, tmp_path_factory):
    """Ten steps at a stretch, with a validation and a sampled video at the end."""
    folder = tmp_path_factory.mktemp("whole")
    args = OWN["args"] | {"eval_iters": 1, "eval_samples": 1, "eval_interval": 10}
    return wan.train(folder, base=OWN | {"args": args})[1]


def test_ten_steps_leave_checkpoints_losses_and_a_video(whole):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == [*range(1, 11), 10] and "validation_loss" in lines[-1]
    rates = [line["lr"] for line in lines[:10]]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, *(1e-3 * (8 - done) / 8 for done in range(1, 8))])  # 2 of 10 steps rise
    assert sorted(path.suffix for path in (whole / "samples" / "000010").iterdir()) == [".mp4", ".png"]
    newest, averages = (weights(whole, tag) for tag in ("10", "10-ema"))
    assert newest.keys() == averages.keys() and not same(newest, averages)


def test_continued_equals_uninterrupted(wan, whole, tmp_path):
    run = tmp_path / whole.name
    shutil.copytree(whole, run)
    for tag in ("10", "10-ema"):
        shutil.rmtree(run / tag)
    (run / "latest").write_text("5")
    assert "after step 5" in wan.train(tmp_path, "--resume", run, base=OWN)[0]
    assert metrics(run)[:10] == metrics(whole)[:10]
    assert states(run, 10) and same(states(run, 10), states(whole, 10))
    assert all(same(weights(run, tag), weights(whole, tag)) for tag in ("10", "10-ema"))


def test_a_checkpoint_samples(wan, whole, tmp_path):
    config = load_config(wan.bases, {"load": str(whole), "mode": "inference", "sampling_num_frames": 1, "num_inference_steps": 2})
    pipeline = make_pipeline(config, CPU, tmp_path)
    (text,) = pipeline.encode_prompts(["a man"])
    trained = pipeline.sample(text, torch.zeros(1, 1, 16, 4, 6), seed=0)
    config.args.load = str(wan.weights / "first_stage.pt")
    start = make_pipeline(config, CPU, tmp_path).sample(text, torch.zeros(1, 1, 16, 4, 6), seed=0)
    assert torch.isfinite(trained).all() and (trained - start).abs().max() > 1e-4


def test_the_second_stage_starts_from_the_first(wan, tmp_path):
    base = OWN | {"model": {"transformer": {"ref_modulation": True, "checkpoint_activations": True}}}
    said, run = wan.train(tmp_path, "--train_iters", 2, "--save_interval", 2, base=base)
    assert "they start as copies of the video's" in said
    assert any(name.endswith("scale_shift_table_ref") for name in weights(run, "2")) and len(metrics(run)) == 2


def test_mistakes_are_told_in_one_line(wan, tmp_path):
    wan.refused("nowhere.pt", tmp_path, "--load", "nowhere.pt")
    wan.refused("set ref_modulation (--use_adaln)", tmp_path, "--load", wan.weights / "second_stage_adaln.pt")
    wan.refused("--warmup_part: found 2.0, expected 0 to 1", tmp_path, "--warmup_part", 2)


class Encoder:
    """Shrinks frames; its posterior is so wide that a sample of it would show."""

    def encode_moments(self, video):
        mean = video[:, :1, ::4, ::8, ::8].transpose(1, 2).repeat(1, 1, 16, 1, 1)
        return mean, torch.full_like(mean, 1e6)

    def encode(self, video, sample=False, generator=None):
        assert not sample
        return self.encode_moments(video)[0]


def test_the_objective_uses_means_drops_references_one_by_one_and_keeps_the_text(wan, tmp_path):
    objective, calls = Objective(wan.config(tmp_path), Encoder(), lambda prompts: torch.ones(len(prompts), 16, 32), CPU), []
    batch = batch_of(torch.randn(3, 3, 5, 64, 64).tanh(), torch.ones(3, 1, 3, 64, 64))

    def network(noised, timestep, text, refs):
        calls.append((noised, timestep.view(-1, 1, 1, 1, 1) / 1000, text, refs))
        return torch.zeros_like(noised)

    for step in range(100):
        objective.training_loss(network, batch, step, part=1, parts=2)
    noised, sigmas, texts, refs = (torch.stack(values) for values in zip(*calls, strict=True))
    dropped = (refs == 0).flatten(2).all(dim=2).float()
    assert 0.03 < dropped.mean() < 0.2 and (dropped.sum(dim=1) < 3).all() and (texts == 1).all()
    assert sigmas.min() > FlowSchedule().sigmas[499] and sigmas.max() <= 1  # the upper half of the levels
    noise = (noised - (1 - sigmas) * objective.encode_video(batch)) / sigmas
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    objective.training_loss(network, batch, 0, part=1, parts=2)
    assert torch.equal(calls[-1][0], calls[0][0])


def test_training_does_not_hold_on_to_the_file(wan, tmp_path):
    file = shutil.copy(wan.weights / "first_stage.pt", tmp_path / "weights.pt")
    network = load_transformer(wan.config(tmp_path), file, train=True)
    before = [parameter.clone() for parameter in network.parameters()]
    with open(file, "r+b") as content:
        content.write(b"\0" * file.stat().st_size)
    assert all(torch.equal(one, two) for one, two in zip(before, network.parameters(), strict=True))
