"""Training with two processes, killed and continued, equals training that was not; and what signals and half-written files do."""

import json
import re
import shutil
import signal

import pytest
import torch
from in_process import LOCKING, another_process, no_file_larger_than, refused
from training.alone import metrics, same, states, weights

from concat_id.config.yaml_files import RUN_FILE, read_yaml
from concat_id.training import preparation
from concat_id.training.engine import start_processes

FREE = "train_iters", "save_interval", "log_interval", "eval_interval", "keep_checkpoints", "warmup_iters", "num_workers"


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
    """Ten steps of two processes at a stretch."""
    return setup.train(tmp_path_factory.mktemp("whole"), codes=(0, 0))[1]


def test_killed_and_continued_equals_uninterrupted(setup, whole, tmp_path):
    _, run = setup.train(tmp_path, "--train_iters", 1000, codes=(-9, -9), signal=signal.SIGKILL, at_step=6)
    assert (run / "latest").read_text() == "5" and len(metrics(run)) >= 6
    shutil.copytree(run / "5", run / ".10.partial")  # killed while writing
    (run / "7").mkdir()
    said, again = setup.train(tmp_path, "--resume", codes=(0, 0))
    assert again == run and f"continuing {run} after step 5" in said
    assert metrics(run) == metrics(whole)
    assert [line["step"] for line in metrics(run)] == list(range(1, 11))
    assert states(run, 5) and same(states(run, 10), states(whole, 10))
    assert all(same(weights(run, tag), weights(whole, tag)) for tag in ("10", "10-ema"))


def test_a_run_is_one_process_s_at_a_time_and_its_end_is_told(setup, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / whole.name)
    with another_process(LOCKING, run / ".lock") as other:
        said, _ = setup.train(tmp_path, "--resume", run / "10", codes=(2,))
        assert f"{run}: process {other.pid} on " in said and "is writing it" in said
    said, _ = setup.train(tmp_path, "--resume", run / "10", codes=(0, 0))
    assert "note: all 10 steps are taken already; go on with a larger --train_iters" in said
    assert not (run / ".lock").exists() and metrics(run) == metrics(whole)


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation.time, "strftime", lambda form: "20260101-000000")
    config, folders = setup.config(tmp_path), []
    start_processes(torch.device("cpu"))
    for _ in range(3):
        with preparation.opened_run(config) as (run, saved):
            folders.append(run.name)
            assert saved is None and (run / ".lock").is_file()
            (run / "metrics.jsonl").touch()
    assert folders == ["run-20260101-000000", "run-20260101-000000-2", "run-20260101-000000-3"]
    with no_file_larger_than(0):
        refused("could not be written .*; free some space", preparation.opened_run(config).__enter__)
    with pytest.raises(KeyError), preparation.opened_run(config):
        raise KeyError  # before anything is written
    assert not (tmp_path / "run-20260101-000000-4").exists()


def test_what_continuing_changes_is_told_and_recorded(setup, tmp_path, capsys):
    config = setup.config(tmp_path)
    start_processes(torch.device("cpu"))
    preparation.record_configuration(tmp_path, config)
    recorded = read_yaml(tmp_path / RUN_FILE, "it")
    for changes in ({}, {"lr": 0.5, "seed": 3, "load": "x", "resume": "y"}, {}, dict.fromkeys(FREE, 7)):
        preparation.record_configuration(tmp_path, setup.config(tmp_path, **changes), step=4)
    told = capsys.readouterr().out
    assert f"note: args.lr: None in {tmp_path}, now 0.5\n" in told and told.count("note: ") == 2 + 6 and "note: and 2 more" in told
    added = (tmp_path / RUN_FILE).read_text().partition("# continued")[2]
    assert added.count("after step 4\n") == 3 and added.count(", now") == 2 + 7 and "# continued after step 4\n#   as above\n" in added
    assert "args.seed: 42 above, now 3\n" in added and read_yaml(tmp_path / RUN_FILE, "it") == recorded


def test_accumulating_equals_more_processes(setup, whole, tmp_path):
    base = {"deepspeed": {"gradient_accumulation_steps": 2}}
    _, run = setup.train(tmp_path, base=base)
    for mine, theirs in zip(metrics(run), metrics(whole), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    mine, theirs = weights(run, "10"), weights(whole, "10")
    assert max((mine[name] - theirs[name]).abs().max().item() for name in mine) < 1e-3 * 10  # ten steps of Adam at lr 1e-3


def test_another_number_of_processes_goes_on_and_says_what_is_kept(setup, whole, tmp_path):
    shutil.copytree(whole, tmp_path / whole.name)
    said, run = setup.train(tmp_path, "--resume", tmp_path / whole.name, "--train_iters", 11)
    assert "2 processes before, 1 now: weights, optimizer, average and the order of the data are kept" in said
    state = json.loads((run / "11" / "training" / "state.json").read_text())
    assert (state["step"], state["updates"], state["sampler"]["samples"], state["processes"]) == (11, 11, 21, 1)
    assert len(metrics(run)) == 11


def test_zero_3_goes_on_where_tensors_do_not_divide_by_the_processes(setup, tmp_path):
    base = {"deepspeed": {"zero_optimization": {"stage": 3}}}
    _, whole = setup.train(tmp_path / "whole", "--train_iters", 4, "--save_interval", 2, codes=(0, 0, 0), base=base)
    run = shutil.copytree(whole, tmp_path / "parts" / whole.name, ignore=shutil.ignore_patterns("4*"))
    (run / "latest").write_text("2")
    setup.train(tmp_path / "parts", "--resume", "--train_iters", 4, "--save_interval", 2, codes=(0, 0, 0), base=base)
    assert metrics(run) == metrics(whole) and states(run, 4) and same(states(run, 4), states(whole, 4))


@pytest.mark.parametrize("number, codes", [(signal.SIGTERM, (143, 143)), (signal.SIGINT, (130,))])
def test_a_signal_to_one_process_saves_in_all(setup, tmp_path, number, codes):
    endless = "--train_iters", 1000, "--save_interval", 900
    said, run = setup.train(tmp_path, *endless, codes=codes, signal=number, at_step=2, targets=1)
    step = int((run / "latest").read_text())
    assert step == metrics(run)[-1]["step"] and states(run, step)
    assert "finishing what has begun, and saving it" in said


def test_a_lost_process_is_told_and_loses_nothing(setup, whole, tmp_path):
    said, run = setup.train(tmp_path, "--train_iters", 1000, codes=(-9, 2), signal=signal.SIGKILL, at_step=6, targets=1)
    errors = re.findall("error: step .*", said)  # anywhere: the killed process may have left half a line, which ends in any letter
    assert len(errors) == 1, said
    assert "lost another process" in errors[0] and "continue with --resume from step 5" in errors[0] and "Traceback" not in said
    assert states(run, 5) and same(states(run, 5), states(whole, 5))
