"""The training by a clock: its order, what a cut takes, what it writes, and that it needs no more than a bare machine has."""

import itertools
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, assert_close

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.config.loading import load_config
from concat_id.models.backbones import load_transformer
from networks import autoencoder, minutes
from networks.autoencoder import AutoencoderTrainer, cut_pieces, to_video
from networks.building import fold_statistics
from networks.clock import SHARES, Clock
from networks.learner import Descent
from networks.material import Person
from networks.pool import choose_reference

SIZES = {"num_layers": 1, "hidden_size": 64, "num_attention_heads": 1, "time_embed_dim": 32, "in_channels": 4, "out_channels": 4,
         "latent_height": 4, "latent_width": 8, "num_frames": 9}  # fmt: skip
ABSENT = ("anny", "deepspeed", "decord", "imageio", "onnxruntime", "onnx", "insightface", "cv2", "skimage", "accelerate", "datasets",
          "wandb", "webdataset", "tensorboardX", "torchao")  # fmt: skip


class FakeStudio:
    """Everybody at once, alone and with the next one, and grey noise for a face."""

    def __init__(self, plans, workers, first):
        self.plans, self.people = plans, itertools.count(first)

    def arrived(self, wait=0.0):
        number = next(self.people)
        return [self.draw(plan, number) for plan in self.plans]

    def draw(self, plan, number):
        clips = np.random.default_rng(number).integers(256, size=(1, plan.frames, *plan.size, 3), dtype=np.uint8)
        refs = clips[0, :4, None].repeat(plan.people, axis=1)
        traits = np.zeros((4, plan.people, 4), np.float32)
        return Person(number, clips, clips[0, :2], ["a man talks", "a woman nods", "a man"], refs, traits)

    def __enter__(self):
        return self

    def __exit__(self, *_): ...


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begin a run of 80 looks at the clock, or go on with it."""
    settings = yaml.safe_load((ROOT / "demo" / "configs" / "near.yaml").read_text())
    settings["args"] |= {"sampling_image_size": [16, 16], "sampling_num_frames": 3}
    settings["model"]["transformer"] |= SIZES
    settings["model"]["autoencoder"] |= {"block_out_channels": [32, 32, 32], "latent_channels": 4, "path": "unset.pt"}
    settings["model"]["text_encoder"]["path"] = str(ROOT / "models" / "mini" / "t5")
    (tmp_path / "near.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(autoencoder, "PIECE", (9, 8, 8))
    monkeypatch.setattr(minutes, "Studio", FakeStudio)
    monkeypatch.setattr(minutes, "Clock", partial(Clock, now=partial(next, itertools.count())))

    def start():
        config = load_config([str(tmp_path / "near.yaml")])
        return minutes.Minutes(config, tmp_path / "run", 80 / 60, torch.device("cpu"), 1 / 200, workers=1, save_every=0), config

    return start


def test_a_run_that_was_cut_goes_on_to_the_end(begin, tmp_path, monkeypatch):
    taken, descend, cuts = [], Descent.descend, [3]

    def counted(learner, loss, progress, *warm_up):
        if not isinstance(learner, AutoencoderTrainer) and learner.done in cuts:
            raise KeyboardInterrupt
        taken.append(learner.done)
        descend(learner, loss, progress, *warm_up)

    monkeypatch.setattr(Descent, "descend", counted)
    with pytest.raises(KeyboardInterrupt):
        begin()[0].run()
    cut = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert cut["part"] == "stage 1"
    people = len(list((tmp_path / "run" / "latents").glob("*.pt")))
    taken.clear()
    cuts.clear()
    run, config = begin()
    run.run()
    assert taken[0] == cut["learner"]["done"] == 3 and taken.count(0) == 2, "stage I goes on, stages II and III begin"
    end = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert end["part"] == "stage 3" and 80 <= end["spent"] < 100 and people > 0
    assert {part.partition(",")[0] for part in end["tallies"]} == set(SHARES) and any(part.endswith("of two") for part in end["tallies"])
    model = tmp_path / "run" / "model" / "transformer"
    assert (model / "latest").read_text() == "stage3" and len(list(model.glob("stage*/*.pt"))) == 3
    weights = load_transformer(config, model).state_dict()
    assert weights["mixins.final_layer.linear.weight"].abs().max() > 0
    assert {file.stem[4:] for file in (tmp_path / "run" / "samples").iterdir()} == {"", "_two"}
    taken.clear()
    begin()[0].run()
    assert not taken, "its minutes are spent"


def test_a_bare_machine_has_what_the_run_imports():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))
sys.path[:0] = ["demo", "sat"]
import networks.minutes, numpy, concat_id.models.transformer
from concat_id.models.text_encoder import TextEncoder
from networks.material import reference_of
points = numpy.array([[30, 30], [60, 30], [45, 50], [35, 65], [55, 65.0]])
frame, classes = numpy.full((128, 96, 3), 9, "uint8"), numpy.ones((128, 96), "uint8")
assert reference_of(frame, classes, points, (128, 96)).any()
assert TextEncoder("models/mini/t5", 32).tokenize("a man").shape == (1, 32)
if {find_spec("numba") is not None}: import world.dataset, world.render
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_last_stage_takes_the_least_alike_of_those_that_show_the_face_well():
    rng = np.random.default_rng(0)
    traits = np.array([[0.3, 0, 0, 0], [0.0, 0, 0, 0], [0.1, 1, 1, 0], [0.0, 2, 2, 1], [0.4, 3, 3, 0]])
    assert {choose_reference(traits, 0, 3, rng) for _ in range(9)} == {2}, "3 is covered, 4 is turned away, 1 is more alike"
    assert {choose_reference(traits, 0, 2, rng) for _ in range(60)} == {1, 2, 3, 4}
    assert choose_reference(traits[[0, 4]], 0, 3, rng) == 1, "nobody else is there"


def test_parts_share_the_budget_and_what_was_spent_counts():
    now = SimpleNamespace(time=100.0)
    clock = Clock(1000, spent=270.0, now=lambda: now.time)
    assert clock.progress("autoencoder") == pytest.approx(1) and clock.progress("stage 1") == pytest.approx(0)
    now.time += 470
    assert clock.progress("stage 1") == pytest.approx(1) and clock.progress("stage 3") < 0 and sum(SHARES.values()) == pytest.approx(1)


def test_steps_too_small_for_16_bits_add_up():
    linear = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    linear.weight.data.fill_(1.0)
    learner = Descent(linear, [], 1e-4)
    for _ in range(100):
        learner.descend(linear(torch.ones(1, 4, dtype=torch.bfloat16)).sum(), 0.0, warm_up=1)
    assert linear.weight.max() < 0.995 and learner.trained["weight"].dtype == torch.float32


def test_timesteps_of_single_frames_are_spread_over_the_schedule():
    drawn = minutes.logit_normal(torch.linspace(0.001, 0.999, 999, dtype=torch.float64), 1000)
    assert drawn.min() < 30 and drawn.max() > 970 and abs(int(drawn[499]) - 500) < 5


@pytest.fixture
def trainer():
    return AutoencoderTrainer(AutoencoderConfig("", (32, 32, 32), 1, 4), 2, torch.device("cpu"))


def test_training_decodes_as_sampling_does_and_learns(trainer):
    latents = torch.randn(1, 5, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(trainer._decode(latents.transpose(1, 2)), trainer.autoencoder.decode(latents), 0.05)  # bfloat16 against float32
    clip = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (17, 32, 256, 3))
    rng = np.random.default_rng(0)
    batches = {progress: cut_pieces(lambda: clip, 2, progress, rng) for progress in (0.0, 0.5)}
    assert [batch.shape for batch in batches.values()] == [(18, 1, 32, 32, 3), (2, 9, 32, 32, 3)], "as many pixels"
    assert cut_pieces(lambda: clip.repeat(2, 1), 8, 0.9, rng).shape == (2, 9, 64, 64, 3), "and as many of large pieces"
    for batch in batches.values():
        quality = [float(trainer.step(to_video(torch.from_numpy(batch)), 0.0)) for _ in range(20)]
        assert quality[-1] > quality[0] + 1


def test_folding_statistics_changes_latents_and_not_pixels(trainer):
    video = torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, _ = trainer.autoencoder.encode_moments(video)
    decoded = trainer.autoencoder.decode(mean)
    shift, scale = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([2.0, 0.5, 1.0, 3.0])
    fold_statistics(trainer.autoencoder, torch.zeros(4), scale)
    assert_close(trainer.autoencoder.decode(mean / scale[:, None, None]), decoded)
    fold_statistics(trainer.autoencoder, shift, torch.ones(4))
    assert_close(trainer.autoencoder.encode_moments(video)[0], mean / scale[:, None, None] - shift[:, None, None])
