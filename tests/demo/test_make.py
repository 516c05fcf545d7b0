"""demo/make.sh: its options, and the commands that it starts, in order, for every part that is missing."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from in_process import write_program

STUB = """#!/usr/bin/env bash
[ "$1" != -c ] || { echo 2; exit; }
echo "$*" >>"$CALLS"
runs="$(sed -n 's/.*--save \\([^ ]*\\).*/\\1/p' <<<"$*")"
[ -z "$runs" ] || { mkdir -p "$runs/run/4-ema"; echo 4 >"$runs/run/latest"; }
out="$(sed -n 's/.*make_pairs.py.*--output \\([^ ]*\\).*/\\1/p' <<<"$*")"
[ -z "$out" ] || { mkdir -p "$out/test_clips_1"; touch "$out/test_prompts_1.txt"; }
out="$(sed -n 's/.*train_text_encoder.py --output \\([^ ]*\\).*/\\1/p' <<<"$*")"
[ -z "$out" ] || mkdir -p "$out"
out="$(sed -n 's/.*sample_video.py.*--output \\([^ ]*\\).*/\\1/p' <<<"$*")"
[ -z "$out" ] || mkdir -p "$out"
"""


@pytest.fixture
def train(tmp_path):
    """Start the script with a stand-in for Python; returns (exit code, standard error, the calls of Python)."""
    python, calls = write_program(tmp_path / "python", STUB), tmp_path / "calls"

    def start(*options: object) -> tuple[int, str, list[str]]:
        calls.write_text("")
        command = ["bash", ROOT / "demo" / "make.sh", "--data", tmp_path / "data", *map(str, options)]
        environment = os.environ | {"CONCAT_ID_PYTHON": str(python), "CALLS": str(calls)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.returncode, done.stderr, calls.read_text().splitlines()

    return start


@pytest.fixture
def model(tmp_path):
    """A folder like models/mini."""
    folder = tmp_path / "model"
    for file in ("transformer/latest", "t5/config.json"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()
    return folder


def test_every_part_is_started_once_and_what_is_trained_is_not_trained_again(train, tmp_path):
    code, errors, calls = train("--steps", 4, "--processes", 3)
    assert code == 0, errors
    scripts = [next(Path(word).name for word in call.split() if word.endswith(".py")) for call in calls]
    data = ["render_people.py"] * 2 + ["prepare_clips.py", "make_pairs.py", "train_text_encoder.py"]
    trained = ["train_stage.py"] * 3 + ["sample_video.py"] * 3
    assert scripts == [*data, *trained, "evaluate_identity.py"]
    stages = calls[5:8]
    assert all(f"demo/configs/stage{number}.yaml" in call and "--train_iters 4" in call for number, call in enumerate(stages, 1))
    assert "--load" not in stages[0] and f"--load {tmp_path}/data/exps/stage1/run" in stages[1]
    assert f"--load {tmp_path}/data/exps/stage3/run/4-ema" in calls[10] and "--nproc_per_node 3" in calls[10]
    assert f"samples/1/stage3 {tmp_path}/data/lists/test_clips_1 --calibration" in calls[-1] and calls[-1].endswith("/data/report/1")
    _, _, again = train("--until", "train")
    assert not any("train_stage.py" in call or "train_text" in call for call in again) and len(again) == 4


def test_another_start_in_the_same_folder_is_refused(train, tmp_path, model):
    train("--until", "train")
    for options in (["--from", model], ["--from", model, "--first", 2]):
        code, errors, calls = train("--until", "train", *options)
        assert code == 2 and f"{tmp_path}/data/exps: was begun with --from '' --first 1" in errors.splitlines()[-1]
        assert not any("train_stage.py" in call for call in calls)
    code, errors, _ = train("--until", "train")
    assert code == 0 and f"stage 3 is trained; move {tmp_path}/data/exps/stage3 away" in errors


def test_a_stage_that_was_stopped_goes_on(train, tmp_path):
    train("--until", "train")
    (tmp_path / "data" / "exps" / "stage2" / "done").unlink()
    stages = [call for call in train("--until", "train")[2] if "train_stage.py" in call]
    assert len(stages) == 1 and f"--resume {tmp_path}/data/exps/stage2/run" in stages[0] and "--load" not in stages[0]


def test_training_may_start_from_a_model(train, tmp_path, model):
    code, errors, calls = train("--from", model, "--until", "train", "--steps", "30,20,10")
    assert code == 0, errors
    stages = [call for call in calls if "train_stage.py" in call]
    assert f"--load {model}/transformer" in stages[0] and f"--load {tmp_path}/data/exps/stage1/run" in stages[1]
    assert [call.split("--train_iters ")[1].split()[0] for call in stages] == ["30", "20", "10"]
    assert not any("train_text" in call for call in calls) and f"{model}/t5" in (tmp_path / "data" / "encoders.yaml").read_text()


def test_a_model_may_take_the_place_of_a_stage(train, tmp_path, model):
    code, errors, calls = train("--from", model, "--first", 3)
    assert code == 0, errors
    (stage,) = [call for call in calls if "train_stage.py" in call]
    assert "demo/configs/stage3.yaml" in stage and f"--load {model}/transformer" in stage
    before, after = [call for call in calls if "sample_video.py" in call]
    assert f"--load {model}/transformer" in before and "samples/1/stage2" in before
    assert f"--load {tmp_path}/data/exps/stage3/run/4-ema" in after and "samples/1/stage3" in after


def test_mistakes_are_told_in_a_line(train):
    for options, text in (
        (["--until", "lunch"], "expected one of render"),
        (["--people", "0"], "--people: found 0"),
        (["--steps", "9,8"], "--steps: found 9,8"),
        (["--poeple", "3"], "unknown option"),
        (["--first", "2"], "--first 2: found no --from"),
        (["--from", "configs"], "--from: configs has no transformer/latest"),
    ):
        code, errors, calls = train(*options)
        assert code == 2 and text in errors and len(errors.splitlines()) == 1 and not calls
    assert "--until PART" in subprocess.run(["bash", ROOT / "demo" / "make.sh", "--help"], capture_output=True, text=True).stdout
