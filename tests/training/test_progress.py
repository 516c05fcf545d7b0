"""What a run tells: numbers, curves and lines, and what becomes of them when the disk is full."""

import json
import sys
from types import SimpleNamespace

import pytest
from in_process import no_file_larger_than
from PIL import Image
from tensorboardX.proto import event_pb2

from concat_id.training.progress import Progress

ARGS = SimpleNamespace(train_iters=100, log_interval=1, tensorboard=True, wandb=False)


def events(run) -> list:
    """All events of a run's TensorBoard files, in order."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at + 12 <= len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            found.append(event_pb2.Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_curves_and_images_reach_tensorboard_and_continue(tmp_path, capsys):
    first = Progress(tmp_path, ARGS)
    for step in (1, 2, 3):
        first.step(step, {"loss": 1 / step, "lr": 0.1, "gradient_norm": 1.0}, 2, 1.5)
    first.validation(3, 0.25)
    first.image(3, "samples/0", Image.new("RGB", (8, 6), "red"))
    first.close()
    values = {(event.step, value.tag): value for event in events(tmp_path) for value in event.summary.value}
    assert values[2, "train/loss"].simple_value == pytest.approx(0.5) and values[1, "train/memory_gib"].simple_value == 1.5
    assert values[3, "validation/loss"].simple_value == pytest.approx(0.25) and values[3, "samples/0"].image.width == 8
    assert "step 2/100  loss 0.5000  lr 1.00e-01" in capsys.readouterr().out
    Progress(tmp_path, ARGS, step=2).close()  # goes back
    assert [event.step for event in events(tmp_path) if event.session_log.status == event_pb2.SessionLog.START] == [3]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert (tmp_path / "latest").read_text() == "2"  # a run killed now goes on from there


def test_lines_and_curves_have_the_mean_loss_since_the_line_before(tmp_path, capsys):
    progress = Progress(tmp_path, SimpleNamespace(train_iters=8, log_interval=3, tensorboard=True, wandb=False), step=4)
    for step in range(5, 9):
        progress.step(step, {"loss": float(2**step), "lr": 0.1, "gradient_norm": 1.0}, 1, 1.0)
    progress.close()
    means = [32, 64, (128 + 256) / 2]
    assert [float(line.split()[3]) for line in capsys.readouterr().out.splitlines()] == means
    assert [value.simple_value for event in events(tmp_path) for value in event.summary.value if value.tag == "train/loss"] == means
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [32, 64, 128, 256]


def test_weights_and_biases_take_points_of_steps_gone_back_to(tmp_path, monkeypatch):
    """Its own steps only go forward: it drops a point of an earlier one."""
    logged, axes = [], {}
    own = SimpleNamespace(log=logged.append, define_metric=lambda name, step_metric: axes.update({name: step_metric}), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: own, Image=lambda image: image))
    progress = Progress(tmp_path, SimpleNamespace(**vars(ARGS) | {"wandb": True, "wandb_project_name": "p"}), step=2)
    progress.validation(2, 0.25)
    progress.image(2, "samples/0", Image.new("RGB", (8, 6)))
    progress.step(3, {"loss": 1.0, "lr": 0.1, "gradient_norm": 1.0}, 1, 1.0)
    progress.close()
    assert [values["step"] for values in logged] == [2, 2, 3] and axes == {"*": "step"} and logged[2]["train/loss"] == 1


def test_a_disk_that_is_full_for_a_while_ends_nothing(tmp_path, capsys):
    progress, values = Progress(tmp_path, ARGS), {"loss": 1.0, "lr": 0.1, "gradient_norm": 1.0}
    progress.step(1, values, 1, 1.0)
    with no_file_larger_than(1000):
        for step in range(2, 40):
            progress.step(step, values, 1, 1.0)
    for step in range(40, 43):
        progress.step(step, values, 1, 1.0)
    progress.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and "curves end here" in "".join(warnings) and "metrics.jsonl: could not be written" in "".join(warnings)
    again = Progress(tmp_path, ARGS, step=42)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    again.close()
    assert steps[:3] == [1, 2, 3] and steps[-3:] == [40, 41, 42] and steps == sorted(steps) and len(steps) < 42


def test_the_log_is_json_whatever_the_numbers(tmp_path, caplog):
    progress = Progress(tmp_path, ARGS)
    progress.step(1, {"loss": 1.0, "lr": 1.0, "gradient_norm": float("inf")}, 1, 0.0)
    progress.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["gradient_norm"] is None
    assert not caplog.text  # tensorboardX's words on numbers that are none
