"""Results of the output folders, of which the page shows the newest."""

import os

import gradio as gr
from PIL import Image

from concat_id.files.json_files import write_json
from concat_id.studio.choices import find_models
from concat_id.studio.gallery import MOST, poster
from concat_id.studio.page import Studio
from concat_id.studio.worker import Event

SETTINGS = {"size": [96, 144], "model": {"sampler": {"num_inference_steps": 2}}}


def test_a_result_is_shown_whatever_its_age_and_what_is_left_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    output = tmp_path / "output"
    for number in range(MOST + 1):
        (folder := output / f"{number:04d}_speaks").mkdir(parents=True)
        files = ["reference_1.png", "portrait.png"][: 1 if number == 1 else 2]
        for name in files:
            Image.new("RGB", (8, 8)).save(folder / name)
        samples = [{"seed": number, "sampling_s": 1}]
        write_json(folder / "info.json", {"prompt": "speaks", "samples": samples, "settings": SETTINGS, "files": files})
        os.utime(folder / "info.json", (number, number))
    studio, oldest = Studio(find_models(str(output))), output / "0000_speaks"
    monkeypatch.setattr(studio.worker, "make", lambda *_: [Event("made", str(oldest))])
    monkeypatch.setattr(studio, "request", lambda *_: None)
    *_, (status, _, *parts) = studio.make(type("Session", (), {"session_hash": "me"}), "mini", "speaks")
    assert "made" in status and parts[-1] == str(oldest) and parts[0]["visible"]
    choices, (gallery, folders) = studio.choices(), studio.posters()
    assert f", {MOST} of {MOST + 1}" in choices["label"] and f", {MOST} of {MOST + 1}" in gallery["label"]
    assert choices["choices"][0] == (f"output/{MOST:04d}_speaks: speaks (seed {MOST})", str(output / f"{MOST:04d}_speaks"))
    assert gr.Gallery().postprocess(gallery["value"]) and len(folders) == MOST - 1, "without the one that has no picture"
    assert str(oldest) not in folders and studio.again(str(oldest))[0] == "speaks"


def test_a_damaged_video_has_no_poster(tmp_path):
    (tmp_path / "video.mp4").touch()
    assert poster(tmp_path / "video.mp4", 0) is None
