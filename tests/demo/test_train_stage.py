"""demo/train_stage.py: what it does otherwise than sat/train_video.py, and a run of it."""

import json

import pytest
import torch
from conftest import ROOT
from in_process import call_main, load_script
from training.conftest import Setup

from concat_id.data.records import Record
from concat_id.training.objective import generator_of
from networks.stages import LogitNormalObjective, repeated


def test_clips_and_rare_words_come_more_often(tmp_path):
    def times(caption: str, video: str) -> int:
        return len(repeated([Record(tmp_path / video, caption, ((tmp_path / "a.png",),), (), ("face",), "list:1")]))

    assert [times(caption, "a.png") for caption in ("a man in a red Hat.", "a man chats", "a t-shirt and glasses")] == [3, 1, 3]
    assert (times("a man", "a.mp4"), times("a man nods", "a.mp4")) == (4, 12)


@pytest.mark.parametrize("parts", [1, 3])
def test_timesteps_are_logit_normal(tiny_model, tmp_path, parts):
    objective = LogitNormalObjective(Setup(tmp_path, tiny_model).config(tmp_path), None, None, torch.device("cpu"))
    drawn = [objective.draw_timesteps(40_000 // parts, generator_of(parts, part), part, parts) for part in range(parts)]
    assert all(int(low.max()) <= int(high.min()) for low, high in zip(drawn, drawn[1:], strict=False))
    logit = torch.special.logit((torch.cat(drawn) + 0.5) / 1000)
    assert abs(logit.mean()) < 0.03 and abs(logit.std() - 1.2) < 0.03


def test_a_stage_trains_and_goes_on(tiny_model, tmp_path, monkeypatch, capsys):
    setup, script = Setup(tmp_path, tiny_model), load_script(ROOT / "demo" / "train_stage.py")
    entries = json.loads(setup.list.read_text())
    setup.list.write_text(json.dumps(entries[:2] + [entry | {"video_path": entry["image_path"]} for entry in entries[2:]]))
    options = "--base", *setup.bases, "--save", tmp_path / "runs", "--latent_cache", tmp_path / "latents"
    assert call_main(script, (*options, "--train_iters", 2), monkeypatch, capsys).code == 0
    (run,) = (tmp_path / "runs").glob("run-*")
    ended = call_main(script, (*options, "--train_iters", 3, "--resume"), monkeypatch, capsys)
    assert ended.code == 0 and f"continuing {run} after step 2" in ended.out
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
