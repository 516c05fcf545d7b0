"""The entry script: the whole way from a list of clips to a checkpoint that samples, and mistakes in one line."""

import json

import pytest
import yaml
from conftest import ROOT

from concat_id.command_line import read_command_line
from concat_id.data.dataset import ClipDataset
from concat_id.data.records import read_records
from concat_id.training.validation import Validation


def test_a_run_leaves_what_it_promises(setup, tmp_path):
    args = {"eval_interval": 2, "eval_iters": 2, "eval_samples": 2, "tensorboard": True, "num_workers": 1}
    base = {"args": args | {"latent_cache": str(tmp_path / "c")}}
    codes, said, run = setup.train(tmp_path, "--train_iters", "2", "--bf16", base=base)
    assert codes == [0], said
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(line) for line in lines] == [["gradient_norm", "loss", "lr", "step"]] * 2 + [["step", "validation_loss"]]
    assert sorted(path.suffix for path in (run / "samples" / "000002").iterdir()) == [".mp4", ".mp4", ".png", ".png"]
    assert list((run / "tensorboard").iterdir()) and list((tmp_path / "c").rglob("*.safetensors"))
    text = (run / "training_config.yaml").read_text()
    assert "# versions:" in text and "torch:" in text and "# commit:" in text
    assert yaml.safe_load(text)["args"]["train_iters"] == 2
    words = "step 2/2  loss", "lr 1.00e-03", "gradient", "samples/s", "GiB", "left", "validation loss", "FusedEmaAdam stands for"
    for word in (*words, f"saved {run}"):
        assert word in said


def test_resume_alone_means_the_latest_run():
    assert read_command_line("", ["--base", "a.yaml", "--resume", "--lr", "1"])[1] == {"resume": "latest", "lr": "1"}
    assert read_command_line("", ["--base", "a.yaml", "--resume", "exps/x"])[1] == {"resume": "exps/x"}


MISTAKES = {
    "no list": (["--train_data", "nowhere.json"], "nowhere.json"),
    "no run to continue": (["--resume"], "args.resume: found no run of 'run'"),
    "no such run": (["--resume", "nowhere"], "args.resume: nowhere: no such folder"),
    "no such weights": (["--load", "nowhere"], "nowhere: no such folder, expected a SAT checkpoint"),
    "mode": (["--mode", "inference"], "args.mode: found inference, expected finetune or pretrain"),
    "style": (["--lr_decay_style", "step"], "lr_decay_style: found 'step', expected one of constant, linear, cosine"),
}


@pytest.mark.parametrize("arguments, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_one_line(setup, tmp_path, arguments, message):
    codes, said, _ = setup.train(tmp_path, *arguments)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert codes == [2] and len(errors) == 1 and message in errors[0] and "Traceback" not in said


def test_a_reference_too_many_and_a_missing_clip(setup, tmp_path):
    (entry, *_) = json.loads(setup.list.read_text())
    three = tmp_path / "list.json"
    pictures = "@@".join([str(setup.folder / entry["image_path"])] * 4)
    entry = entry | {"video_path": str(setup.folder / entry["video_path"]), "image_path": pictures}
    three.write_text(json.dumps([entry]))
    codes, said, _ = setup.train(tmp_path, "--train_data", str(three))
    assert codes == [2] and "image_path: found 4 people, expected at most 3" in said
    three.write_text(json.dumps([entry | {"video_path": "gone.mp4"}]))
    codes, said, _ = setup.train(tmp_path, "--train_data", str(three))
    assert codes == [2] and "gone.mp4" in said


class _Objective:
    """Counts what validation asks for."""

    def __init__(self):
        self.asked = []

    def validation_losses(self, network, batch, timesteps, key):
        self.asked.append((batch["indices"], timesteps, key))
        return [float(key)] * len(timesteps)


def test_validation_loss_is_shared_out_and_the_same_for_any_number_of_processes(setup, tmp_path, monkeypatch):
    from contextlib import nullcontext
    from types import SimpleNamespace

    from concat_id.training import validation

    totals, asked = [], []
    monkeypatch.setattr(validation, "all_reduce", lambda values, device: totals.append(values) or values)
    monkeypatch.setattr(validation, "world_size", lambda: 2)
    config = setup.config(tmp_path, eval_iters=3)
    clips = ClipDataset(read_records([setup.list]), config.data, training=False)
    for rank in (0, 1):
        monkeypatch.setattr(validation, "rank", lambda rank=rank: rank)
        objective = _Objective()
        Validation(config, clips, objective, None, tmp_path).loss(SimpleNamespace(evaluating=lambda: nullcontext(None), device="cpu"))
        asked.append(objective.asked)
    assert [[entry[0] for entry in own] for own in asked] == [[[0], [2]], [[1], [0]]]  # the last one only keeps the others company
    assert asked[0][0][1] == [125, 375, 625, 875]
    assert totals == [[8.0, 8], [4.0, 4]]


def test_scripts_stay_recipes():
    assert len((ROOT / "sat" / "train_video.py").read_text().splitlines()) <= 90
