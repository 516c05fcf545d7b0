"""The entry script: the whole way from a list of clips to a checkpoint that samples, and mistakes in one line."""

import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT
from deepspeed.accelerator import get_accelerator
from entry import only_error
from in_process import call_main, load_script, refused
from training.alone import metrics
from training.conftest import Setup

from concat_id.config.command_line import read_command_line
from concat_id.config.loading import load_config
from concat_id.data.dataset import ClipDataset
from concat_id.data.records import read_records
from concat_id.models.text_encoder import TextEncoder
from concat_id.training import preparation, validation
from concat_id.training.objective import Objective


def test_a_run_leaves_what_it_promises(setup, tmp_path):
    args = {"eval_interval": 2, "eval_iters": 2, "eval_samples": 2, "tensorboard": True, "num_workers": 1}
    base = {"args": args | {"latent_cache": str(tmp_path / "c")}}
    said, run = setup.train(tmp_path, "--train_iters", 2, base=base)
    assert [sorted(line) for line in metrics(run)] == [["gradient_norm", "loss", "lr", "step"]] * 2 + [["step", "validation_loss"]]
    assert sorted(path.suffix for path in (run / "samples" / "000002").iterdir()) == [".mp4", ".mp4", ".png", ".png"]
    assert list((run / "tensorboard").iterdir()) and list((tmp_path / "c").rglob("*.safetensors"))
    text = (run / "training_config.yaml").read_text()
    assert "# versions:" in text and "torch:" in text and "# commit:" in text
    assert yaml.safe_load(text)["args"]["train_iters"] == 2
    words = "step 2/2  loss", "lr 1.00e-03", "gradient", "samples/s", "GiB", "left", "validation loss", "FusedEmaAdam stands for"
    for word in (*words, f"saved {run}"):
        assert word in said


def test_resume_alone_means_the_latest_run():
    assert read_command_line("", True, ["--base", "a.yaml", "--resume", "--lr", "1"])[1] == {"resume": "latest", "lr": "1"}
    assert read_command_line("", True, ["--base", "a.yaml", "--resume", "exps/x"])[1] == {"resume": "exps/x"}


MISTAKES = {
    "no list": (["--train_data", "nowhere.json"], "nowhere.json"),
    "no run to continue": (["--resume"], "args.resume: found no run of 'run'"),
    "no such run": (["--resume", "nowhere"], "args.resume: nowhere: found no such file"),
    "no such weights": (["--load", "nowhere"], "nowhere: no such folder, expected a SAT checkpoint"),
    "mode": (["--mode", "inference"], "args.mode: found none or inference, expected finetune or pretrain"),
}
if not get_accelerator().is_fp16_supported():  # as on most processors
    MISTAKES["float16"] = ["--fp16"], "args.fp16: found true, but DeepSpeed has no float16 on a cpu; set bf16"


@pytest.mark.parametrize("arguments, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_one_line(setup, tmp_path, arguments, message):
    setup.refused(message, tmp_path, *arguments)


def changed_list(setup, folder, count=1, people=2):
    """A list of the first entries, absolute, the last of them with so many `people`."""
    entries = json.loads(setup.list.read_text())[:count]
    for entry in entries:
        entry |= {key: str(setup.folder / entry[key]) for key in ("video_path", "image_path")}
    entries[-1]["image_path"] = "@@".join([entries[-1]["image_path"]] * people)
    (folder / "list.json").write_text(json.dumps(entries, indent=1))
    return folder / "list.json"


def test_wrong_entries_are_told_before_anything_is_loaded(setup, tmp_path):
    clips = changed_list(setup, tmp_path, people=4)
    setup.refused("list.json:2: image_path: found 4 references, expected at most 3", tmp_path, "--train_data", clips)
    assert not list(tmp_path.glob("run-*"))


def test_clips_with_unequal_numbers_of_people_train_together(setup, tmp_path):
    clips = changed_list(setup, tmp_path, count=3)
    base = {"deepspeed": {"train_micro_batch_size_per_gpu": 2}, "args": {"epochs": 1}}  # a batch of two clips, and one of the third
    _, run = setup.train(tmp_path, "--train_data", clips, base=base)
    assert len(metrics(run)) == 2
    assert yaml.safe_load((run / "training_config.yaml").read_text())["args"]["train_iters"] == 2


def test_weights_and_biases_offline_stays_in_the_runs_folder(setup, tmp_path):
    places = {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    _, run = setup.train(tmp_path, "--train_iters", 2, "--wandb", environment=places | {"WANDB_MODE": "offline", "TMPDIR": str(tmp_path)})
    assert [path.suffix for path in run.glob("wandb/offline-run-*/*.wandb")] == [".wandb"]
    assert "train/loss" in next(run.glob("wandb/offline-run-*/*.wandb")).read_bytes().decode("latin-1")


def test_weights_and_biases_without_a_key_is_told_in_one_line(setup, tmp_path):
    own = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online", "WANDB_API_KEY": ""}
    setup.refused("args.wandb: found true, but it cannot start", tmp_path, "--wandb", environment=own | nowhere)


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
    """Numbers of eight steps that nothing disturbed."""
    return metrics(setup.train(tmp_path_factory.mktemp("whole"), "--train_iters", 8, "--save_interval", 100)[1])


def test_a_killed_reader_of_clips_loses_nothing(setup, whole, tmp_path):
    steps = "--train_iters", 8, "--num_workers", 1, "--save_interval", 100
    said, run = setup.train(tmp_path, *steps, signal=signal.SIGKILL, at_step=2, reader=True)
    assert "starting it again" in said and "Traceback" not in said and metrics(run) == whole, said


def test_a_full_disk_leaves_the_last_checkpoint_and_training_goes_on_from_it(setup, whole, tmp_path):
    _, run = setup.train(tmp_path, "--train_iters", 2)
    full = "--resume", "--train_iters", 4, "--save_interval", 1
    said, _ = setup.train(tmp_path, *full, codes=(2,), file_limit=2**20)
    assert "warning: checkpoint 3: " in said and "training goes on" in said
    assert "checkpoint 4: " in only_error(2, said) and "free some space" in only_error(2, said)
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["2", "2-ema"] and (run / "latest").read_text() == "2"
    said, _ = setup.train(tmp_path, *full)
    assert "after step 2" in said and metrics(run) == whole[:4], said


def test_epochs_are_those_of_the_data_however_many_steps_they_take(setup, tmp_path):
    _, run = setup.train(tmp_path, "--epochs", 1)
    steps = len(metrics(run))
    said, _ = setup.train(tmp_path, "--resume", "--epochs", 3, "--gradient_accumulation_steps", 2)
    assert f"after step {steps}" in said and len(metrics(run)) == steps + steps, said  # two more epochs of half as many steps
    said, _ = setup.train(tmp_path, "--resume", "--epochs", 4, "--batch_size", 4)
    assert len(metrics(run)) == steps + steps + 2, said  # one more of two batches


def test_validation_loss_is_shared_out_and_the_same_for_any_number_of_processes(setup, tmp_path, monkeypatch):
    totals, asked, engine = [], [], SimpleNamespace(evaluating=lambda: nullcontext(None), device="cpu")

    class Objective:
        num_timesteps = 1000

        def validation_losses(self, network, batch, timesteps, key):
            asked[-1].append((batch.indices, timesteps, key))
            return [float(key)] * len(timesteps)

    monkeypatch.setattr(validation, "all_reduce", lambda values, device: totals.append(values) or values)
    monkeypatch.setattr(validation, "world_size", lambda: 2)
    config = setup.config(tmp_path, eval_iters=3)
    clips = ClipDataset(read_records([setup.list]), config.data, training=False)
    for rank in (0, 1):
        monkeypatch.setattr(validation, "rank", lambda rank=rank: rank)
        asked.append([])
        validation.Validation(config, clips, Objective(), None, tmp_path).loss(engine)
    assert [[entry[0] for entry in own] for own in asked] == [[[0], [2]], [[1], [0]]]  # the last one only keeps the others company
    assert asked[0][0][1] == [125, 375, 625, 875]
    assert totals == [[8.0, 8], [4.0, 4]]


def test_a_script_of_ones_own_brings_its_objective(tiny_model, tmp_path, monkeypatch, capsys):
    setup, script, drawn = Setup(tmp_path, tiny_model), load_script(ROOT / "sat" / "train_video.py"), []

    class LateObjective(Objective):
        def draw_timesteps(self, batch, generator, part, parts):
            drawn.append(batch)
            return torch.full((batch,), 900)

    main = script.main
    script.main = lambda: main(lambda: LateObjective, "own")
    options = "--base", *setup.bases, "--save", tmp_path / "runs", "--train_iters", 1, "--device", "cpu"
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert call_main(script, options, monkeypatch, capsys).code == 0 and drawn
    assert os.environ["DS_ACCELERATOR"] == "cpu"  # DeepSpeed's device is the run's


def test_captions_that_are_not_kept_end_a_run(tiny_model, tmp_path, monkeypatch, capsys):
    """Else the text encoder would come back onto the GPU in the middle of it."""
    config, device = load_config([ROOT / "configs" / "debug.yaml", tiny_model], {"save": str(tmp_path)}), torch.device("cpu")
    monkeypatch.setattr(preparation.dist, "barrier", lambda: None)
    records = [SimpleNamespace(caption="a"), SimpleNamespace(caption="b")]
    for shown in (True, False):  # the second time there is nothing to embed
        assert preparation.embed_captions(config, records[:1], device)(["a"]).shape[0] == 1
        assert ("1/1" in capsys.readouterr().err) == shown
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".prompt_embeddings").touch()
    full = load_config([ROOT / "configs" / "debug.yaml", tiny_model], {"save": str(tmp_path / "full")})
    with monkeypatch.context() as patch:
        run, embedded = TextEncoder.run, []
        patch.setattr(TextEncoder, "run", lambda encoder, network, prompt: embedded.append(prompt) or run(encoder, network, prompt))
        refused("lacks the embeddings of 2 of 2 captions", preparation.embed_captions, full, records, device)
        assert embedded == ["a"], "there is no room for the others either"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    refused("lacks the embeddings of 1 of 2 captions; give a --save", preparation.embed_captions, config, records, device)
