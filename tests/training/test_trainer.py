"""Training in one process: golden losses, exact continuation in bf16 and other stages, and lr = 0."""

import dataclasses
import json
import random
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from in_process import refused
from PIL import Image
from training import alone
from training.alone import same, weights

from concat_id.sampling.pipeline import CogVideoXPipeline
from concat_id.training import checkpoint
from concat_id.training.checkpoint import CheckpointError, find_run, open_checkpoint, random_state


def test_losses_are_golden(setup, tmp_path):
    expected = json.loads(alone.GOLDEN.read_text())["losses"]
    assert alone.train_golden(setup, tmp_path) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stage, bf16", [(0, False), (1, True), (2, True), (3, True)])
def test_continuing_is_exact_in_every_stage(setup, tmp_path, stage, bf16):
    deepspeed = {"zero_optimization": {"stage": stage}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    config = setup.config(tmp_path, deepspeed, train_iters=4, save_interval=2, bf16=bf16, lr_decay_style="cosine", warmup_iters=2)
    whole, parts = alone.train_in_parts(config, tmp_path)
    assert same(weights(parts, "4"), weights(whole, "4")) and same(weights(parts, "4-ema"), weights(whole, "4-ema"))
    assert not same(weights(whole, "4"), weights(whole, "2"))
    assert {tensor.dtype for tensor in weights(whole, "4").values()} == {torch.bfloat16 if bf16 else torch.float32}


def test_continuing_in_another_stage_keeps_all(setup, tmp_path, capsys):
    config = setup.config(tmp_path, train_iters=2)
    alone.make_trainer(config, tmp_path).train(alone.batches(**alone.SMALL))
    other = setup.config(tmp_path, {"zero_optimization": {"stage": 3}}, train_iters=2, gradient_accumulation_steps=2)
    state = tmp_path / "2" / "training" / "state.json"
    text = state.read_text().replace('"updates": 2', '"updates": 1')  # as where float16 left out an update
    state.write_text(text.replace('"processes": 1', '"processes": 2'))
    trainer = alone.make_trainer(other, tmp_path, open_checkpoint(tmp_path))
    engine = trainer.engine
    saved = open_checkpoint(tmp_path)
    for name, master, states in engine.full_states():
        expected = saved.states(name)
        assert torch.equal(master, expected.pop("fp32")) and states.keys() == expected.keys()
        assert all(torch.equal(states[key], expected[key]) for key in states)
    assert engine.updates == 1 and trainer.train(()) == 0
    said, warned = capsys.readouterr()
    assert "note: 1 of 2 steps made no update, since gradients overflowed" in said and "processes before" not in warned


def test_a_loss_scale_goes_on_where_it_is_dynamic_before_and_after(setup, tmp_path, monkeypatch):
    engine = alone.make_trainer(setup.config(tmp_path), tmp_path).engine
    static, scaler = engine.scaler_state(), DynamicLossScaler(2.0**16, 1000, 1, 1, False)  # as fp16: true makes it
    engine.load_scaler_state(vars(scaler))
    assert engine.scaler_state() == static == {"cur_scale": 1.0, "dynamic": False}
    engine.deepspeed.optimizer.loss_scaler = scaler
    engine.load_scaler_state(static)  # of a run in float32 or bfloat16
    assert scaler.cur_scale == 2.0**16
    engine.load_scaler_state(vars(scaler) | {"cur_scale": 1.0, "cur_iter": 9, "scale_window": 7})
    assert (scaler.cur_scale, scaler.cur_iter, scaler.scale_window) == (1, 9, 1000)
    monkeypatch.setattr(engine.deepspeed, "backward", lambda loss: None)
    monkeypatch.setattr(engine.deepspeed, "step", lambda: scaler.update_scale(True))
    refused("args.fp16: found true, but every gradient overflows in float16 at the smallest loss scale; use bf16", engine.accumulate, None)


def test_a_step_whose_gradients_overflow_leaves_the_learning_rate(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)  # emulated on most processors
    scale = {"fp16": {"initial_scale_power": 40, "hysteresis": 1}}
    config = setup.config(tmp_path, scale, train_iters=2, warmup_iters=4, fp16=True)
    trainer = alone.make_trainer(config, tmp_path)
    trainer.train(alone.batches(**alone.SMALL))
    assert capsys.readouterr().out.count("gradient overflow, no update") == 2 and trainer.engine.updates == 0
    trainer = alone.make_trainer(setup.config(tmp_path, train_iters=4, warmup_iters=4), tmp_path, open_checkpoint(tmp_path))
    trainer.train(alone.batches(**alone.SMALL))
    assert [line["lr"] / 1e-3 for line in alone.metrics(tmp_path)] == [0.25, 0.25, 0.25, 0.5] and trainer.engine.updates == 2


def test_a_learning_rate_of_zero_leaves_the_sampled_video_as_it_was(setup, tmp_path):
    def sample(load):
        pipeline = CogVideoXPipeline(setup.config(tmp_path, load=str(load), num_inference_steps=2, sampling_num_frames=1), alone.CPU)
        height, width = pipeline.config.args.sampling_image_size
        refs = pipeline.encode_references([Image.linear_gradient("L").convert("RGB").resize((width, height))])
        return pipeline.decode(pipeline.sample(alone.embed(["a man"]), refs, seed=3))

    config = setup.config(tmp_path, train_iters=2, lr=0, eval_interval=1)
    alone.make_trainer(config, tmp_path / "run").train(alone.batches(**alone.SMALL))
    before = sample(config.args.load)
    assert np.array_equal(before, sample(tmp_path / "run")) and np.array_equal(before, sample(tmp_path / "run" / "2-ema"))
    changed = setup.config(tmp_path, train_iters=2, lr=1e-2, ema_decay=0)
    alone.make_trainer(changed, tmp_path / "changed").train(alone.batches(**alone.SMALL))
    assert not np.array_equal(before, sample(tmp_path / "changed")) and not (tmp_path / "changed" / "2-ema").exists()


def test_the_last_whole_checkpoint_is_taken(setup, tmp_path, capsys):
    config = setup.config(tmp_path, train_iters=6, save_interval=1, keep_checkpoints=3)
    run = tmp_path / "run-20260101-000000-2"
    (run / "9").mkdir(parents=True)  # of a run that went back
    alone.make_trainer(config, run).train(alone.batches(**alone.SMALL))
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["4", "4-ema", "5", "5-ema", "6", "6-ema", "9"]
    assert find_run(tmp_path, "run") == run and open_checkpoint(run).step == 6
    states = run / "6" / "training" / "states.safetensors"
    states.write_bytes(states.read_bytes()[:-8])
    assert open_checkpoint(run).step == 5
    assert "states.safetensors: has" in capsys.readouterr().err
    (run / "5" / "training" / "state.json").unlink()
    assert open_checkpoint(run).step == 4
    shutil.copytree(run / "4", run / "004")
    refused("004: found a checkpoint of another name.*; rename it to 4", open_checkpoint, run / "004")
    refused("4-ema: holds weights only.*--load", open_checkpoint, run / "4-ema")
    state = run / "4" / "training" / "state.json"
    state.write_text(state.read_text().replace('"version": 1', '"version": 2'))
    refused("state.json: found version 2, expected 1", open_checkpoint, run / "4")
    (run / "latest").write_text("3")
    refused("found no finished checkpoint", open_checkpoint, run)
    refused("holds weights only.*--load", open_checkpoint, run / "5")


@pytest.mark.parametrize("interval, validated, saved", [(0, [], ["3"]), (None, [], ["3"]), (2, [2, 3], ["2", "3"])])
def test_intervals_of_zero_are_never_and_others_end_with_the_last_step(setup, tmp_path, interval, validated, saved):
    config, steps = setup.config(tmp_path, train_iters=3, save_interval=interval, eval_interval=interval, eval_iters=1, ema_decay=0), []
    trainer = alone.make_trainer(config, tmp_path / "run")
    trainer.validation = SimpleNamespace(loss=lambda engine: steps.append(trainer.done) or 0.0)
    trainer.train(alone.batches(**alone.SMALL))
    assert steps == validated and sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == saved


def test_what_ends_a_validation_loses_no_step_and_is_made_on_continuing(setup, tmp_path):
    def run(loss):
        saved = open_checkpoint(tmp_path) if (tmp_path / "latest").exists() else None
        config = setup.config(tmp_path, train_iters=3, eval_interval=2, save_interval=2, eval_iters=1)
        return alone.make_trainer(config, tmp_path, saved, lambda _: SimpleNamespace(loss=loss)).train(alone.batches(**alone.SMALL))

    def fail(engine):
        raise MemoryError("of the device")

    for _ in range(2):
        refused("step 2: the validation found too little memory .*eval_samples: 0", run, fail)
        assert (tmp_path / "latest").read_text() == "2"
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "validation_loss": 0.5}\n')  # of one that was killed while it made a video
    assert run(lambda engine: 0.5) == 0
    written = (tmp_path / "latest").stat().st_mtime_ns  # by which a bare --resume chooses among runs
    assert run(fail) == 0 and (tmp_path / "latest").stat().st_mtime_ns == written
    assert [line["step"] for line in alone.metrics(tmp_path) if "validation_loss" in line] == [2, 3]
    (tmp_path / "latest").write_text("2")
    refused("step 3: the validation loss is inf.* --resume .*/2$", run, lambda engine: float("inf"))


def test_a_validation_that_a_signal_puts_off_is_made_on_continuing(setup, tmp_path):
    config = setup.config(tmp_path, train_iters=4, eval_interval=2, eval_iters=1)
    for code, validated in ((143, []), (143, []), (143, [2]), (143, [2]), (143, [2]), (0, [2, 4])):
        saved = open_checkpoint(tmp_path) if (tmp_path / "latest").exists() else None
        trainer = alone.make_trainer(config, tmp_path, saved, lambda objective: SimpleNamespace(loss=lambda engine: 0.0))
        trainer.noted = signal.SIGTERM  # in the first step, or the validation before it
        assert trainer.train(alone.batches(**alone.SMALL)) == code
        assert [line["step"] for line in alone.metrics(tmp_path) if "validation_loss" in line] == validated


@pytest.mark.parametrize("place, done, validated", [("validation", 2, [2]), ("save", 4, [2])])
def test_a_signal_in_a_validation_or_a_save_stops_before_what_comes_next(setup, tmp_path, place, done, validated):
    config = setup.config(tmp_path, train_iters=4, save_interval=4, eval_interval=2, eval_iters=1)
    trainer = alone.make_trainer(config, tmp_path)
    state, interrupt = trainer.sampler.state_dict(), lambda now: now == place and setattr(trainer, "noted", signal.SIGTERM)
    trainer.validation = SimpleNamespace(loss=lambda engine: interrupt("validation") or 0.0)
    trainer.sampler.state_dict = lambda: interrupt("save") or state
    assert (trainer.train(alone.batches(**alone.SMALL)), trainer.done, trainer.saved_at) == (143, done, done)
    assert [line["step"] for line in alone.metrics(tmp_path) if "validation_loss" in line] == validated
    assert open_checkpoint(tmp_path).values["validation_due"] == (place == "save")


def test_the_speed_is_that_of_steps_without_what_is_between_them(setup, tmp_path, monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("concat_id.training.trainer.time", clock)
    monkeypatch.setattr("concat_id.training.progress.time", clock)
    trainer = alone.make_trainer(setup.config(tmp_path, train_iters=4, eval_interval=1, eval_iters=1, log_interval=2), tmp_path)
    loss = trainer.objective.training_loss
    take = lambda seconds: setattr(clock, "now", clock.now + seconds)  # noqa: E731
    trainer.objective.training_loss = lambda *arguments: take(0.5) or loss(*arguments)
    trainer.validation, trainer.due = SimpleNamespace(loss=lambda engine: take(100) or 0.0), True
    trainer.train(alone.batches(**alone.SMALL))
    said = capsys.readouterr().out
    assert said.count("  2.00 samples/s") == 3 and "0 min 02 s left" in said.partition("step 2/4")[0]


def test_a_checkpoint_that_fails_is_told_and_the_last_one_ends_the_run(setup, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise CheckpointError("the disk is full")

    monkeypatch.setattr("concat_id.training.trainer.save_checkpoint", fail)
    trainer = alone.make_trainer(setup.config(tmp_path, train_iters=2, save_interval=1), tmp_path)
    refused("the disk is full", trainer.train, alone.batches(**alone.SMALL))
    assert trainer.done == 2 and capsys.readouterr().err.count("the disk is full; training goes on") == 1


def test_a_run_is_found_by_its_whole_name_and_a_newer_one_without_a_checkpoint_is_told(tmp_path, capsys):
    for name in ("anna-20260101-000000", "anna-20260101-000000-9", "anna-lora-20260102-000000", "anna-2-20260102-000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "latest").write_text("1")
    assert find_run(tmp_path, "anna").name == "anna-20260101-000000-9" and not capsys.readouterr().err
    (tmp_path / "anna-20260101-000000-10").mkdir()
    run = find_run(tmp_path, "anna")
    assert f"anna-20260101-000000-10: the newest run has no checkpoint; continuing {run}\n" in capsys.readouterr().err
    for name in ("ann", "other"):
        refused(f"found no run of '{name}'", find_run, tmp_path, name)


def test_global_generators_come_back(tmp_path):
    before = random_state()
    drawn = torch.rand(1), np.random.random(), random.random()
    checkpoint.load_random_state(before)
    assert drawn == (torch.rand(1), np.random.random(), random.random())


def test_micro_batches_of_every_process_have_parts_of_their_own(setup, tmp_path, monkeypatch):
    trainer, asked = alone.make_trainer(setup.config(tmp_path, gradient_accumulation_steps=2), tmp_path), []
    loss = trainer.objective.training_loss
    monkeypatch.setattr(trainer.objective, "training_loss", lambda *arguments: asked.append(arguments[3:]) or loss(*arguments))
    monkeypatch.setattr("concat_id.training.trainer.world_size", lambda: 2)
    monkeypatch.setattr("concat_id.training.trainer.rank", lambda: 1)
    trainer._step(alone.batches(**alone.SMALL))
    assert asked == [(1, 4), (3, 4)]


def test_more_micro_batches_wait_for_the_device_no_more_often(setup, tmp_path, monkeypatch):
    read, counts = torch.Tensor.item, []
    for accumulation in (1, 4):
        config, found = setup.config(tmp_path, gradient_accumulation_steps=accumulation), []
        trainer = alone.make_trainer(config, tmp_path / str(accumulation))
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "item", lambda tensor, found=found: found.append(tensor) or read(tensor))
            trainer._step(alone.batches(**alone.SMALL))
        counts.append(len(found))
    assert counts[0] == counts[1]
    assert not trainer.engine.deepspeed.tput_timer.config.enabled


def test_not_a_number_is_told(setup, tmp_path):
    config = setup.config(tmp_path, train_iters=2)
    poisoned = (dataclasses.replace(batch, video=batch.video * float("nan")) for batch in alone.batches())
    refused("step 1: the loss is nan", alone.make_trainer(config, tmp_path).train, poisoned)
    trainer = alone.make_trainer(setup.config(tmp_path, train_iters=1), tmp_path)
    trainer.engine.full_states = lambda: iter([("time_embed.0.weight", torch.tensor([1.0, float("nan")]), {})])
    told = "checkpoint 0: found values of time_embed.0.weight that are no numbers, expected finite ones"
    refused(told, trainer._save, last=False)
    assert not (tmp_path / "latest").exists() and not (tmp_path / "0").exists()
