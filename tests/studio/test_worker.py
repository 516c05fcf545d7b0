"""The process that makes the page's videos, and how the form is read."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from in_process import refused

from concat_id.studio.choices import find_models
from concat_id.studio.page import Studio
from concat_id.studio.worker import VideoRequest, Worker

PHOTO = str(ROOT / "examples" / "people" / "ben.png")
PORTRAIT = {"sampling_num_frames": "1", "num_inference_steps": "2"}


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def last(worker: Worker, output, prompt: str = "a man in a green shirt", photo: str = PHOTO, **settings):
    request = VideoRequest("mini", "single_identity", prompt, ([photo],), PORTRAIT | {"output_dir": str(output)} | settings)
    return [event for event in worker.make(request, "me") if event][-1]


def test_what_fails_is_told_and_the_process_lives_on(worker, tmp_path):
    paper = tmp_path / "a  paper.pdf"
    paper.write_bytes(b"%PDF-1.7")
    failed = last(worker, tmp_path / "out", photo=str(paper))
    assert failed.kind == "failed" and str(paper) in failed.value, "for the page to put its name there"
    process = worker._process.pid
    (tmp_path / "file").write_text("no folder")
    failed = last(worker, tmp_path / "file")
    assert failed.kind == "failed" and str(tmp_path / "file") in failed.value
    settings = PORTRAIT | {"output_dir": str(tmp_path / "out")}
    request = VideoRequest("mini", "two_identities", "a man smiles \N{GRINNING FACE}", ([PHOTO],) * 3, settings)
    told = {event.kind: event.value for event in worker.make(request) if event}
    assert "made" in told and worker._process.pid == process
    assert [note.partition(",")[0] for note in told["notes"]] == ["3 people", "out of the text encoder's vocabulary"]
    assert not worker.stop("me")
    worker._process.kill()  # as the system does
    worker._process.join(5)
    assert last(worker, tmp_path / "out", seed="1").kind == "made"
    worker.close()
    assert worker._process.exitcode == 0  # a killed one leaves semaphores, of which Python warns


def test_another_checkpoint_in_the_same_place_is_read(worker, tmp_path):
    weights = shutil.copytree(ROOT / "models" / "mini" / "transformer", tmp_path / "weights")
    first = last(worker, tmp_path / "out", load=str(weights))
    states = torch.load(weights / "stage3" / "mp_rank_00_model_states.pt", weights_only=True)
    for tensor in states["module"].values():
        tensor *= 0.9
    (weights / "later").mkdir()
    torch.save(states, weights / "later" / "mp_rank_00_model_states.pt")
    (weights / "latest").write_text("later")
    second = last(worker, tmp_path / "out", load=str(weights))
    assert first.kind == second.kind == "made", (first, second)
    before, after = (Path(event.value, "portrait.png").read_bytes() for event in (first, second))
    assert before != after


def test_a_stopped_video_says_so_at_once_and_the_next_is_made(worker, tmp_path):
    def ask(owner: str, steps: str):
        settings = PORTRAIT | {"output_dir": str(tmp_path / owner), "num_inference_steps": steps}
        return worker.make(VideoRequest("mini", "single_identity", "a man in a green shirt", ([PHOTO],), settings), owner)

    first, second, third, fourth = ask("me", "100"), ask("you", "2"), ask("me", "2"), ask("a closed page", "2")
    while (event := next(first)) is None or event.kind != "step":
        pass
    time.sleep(1)  # more steps are on their way
    assert [next(each) for each in (second, third, fourth)] == [("waiting", 1), ("waiting", 2), ("waiting", 3)]
    fourth.close()
    assert worker.stop("me") and not worker.stop("nobody")
    assert [list(first), list(third)] == [[("stopped", None)]] * 2
    assert [event for event in second if event][-1].kind == "made" and not list(tmp_path.glob("me/*/video*"))
    assert not worker.stop("me")


def test_the_form_is_read_or_refused_in_a_sentence(tmp_path, monkeypatch):
    studio = Studio(find_models(str(tmp_path)))
    values = 7, 2, 3, 10, 6.0
    request = studio.request("mini", "a man", ([PHOTO], [PHOTO]), (2.0, 1.0), *values)
    assert request.task == "two_identities" and request.settings["best_of"] == "2"
    assert request.config().model.sampler.ref_guidance_scale == (2.0, 1.0)
    asked, session = [], type("Session", (), {"session_hash": "me"})
    monkeypatch.setattr(studio.worker, "make", lambda request, owner: asked.append(request) or [])
    list(studio.make(session, "mini", "a man", [PHOTO], None, [PHOTO], 2.0, 3.0, 1.5, *values))
    assert asked[0].photos == ([PHOTO], [PHOTO]) and asked[0].settings["ref_guidance_scale"] == [2.0, 1.5], "by slot"
    one = ([PHOTO],)
    for words, prompt, photos in (("no photo yet", "a man", ()), ("no prompt yet", " ", one), ("10,000 characters", "x" * 10000, one)):
        refused(words, studio.request, "mini", prompt, photos, (1.0,) * 3, *values)
    for found, seed in (("-1", -1), ("4294967296", 2**32), ("1.5", 1.5), ("nothing", None)):
        words = f"Seed: found {found}, expected a whole number from 0 to 4294967295"
        refused(words, studio.request, "mini", "a man", one, (1.0,), seed, *values[1:])
