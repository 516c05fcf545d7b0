"""Results of the output folders, of which the page shows the newest."""

import os
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from concat_id.config.presets import TASKS
from concat_id.files.json_files import write_json
from concat_id.studio.choices import default_model, example_prompts, find_models
from concat_id.studio.gallery import MOST, poster, read_result, result_folders
from concat_id.studio.page import Studio
from concat_id.studio.worker import Event
from concat_id.video.writing import write_video

SAMPLER = {"num_inference_steps": 2, "guidance_scale": 5.5, "ref_guidance_scale": [2.0, 3.0]}
SETTINGS = {"size": [96, 144], "latent_frames": 3, "model": {"sampler": SAMPLER}}


def test_a_result_is_shown_whatever_its_age_and_what_is_left_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    output = tmp_path / "output"
    for number in range(MOST + 1):
        (folder := output / f"{number:04d}_speaks").mkdir(parents=True)
        files = ["reference_1.png", "portrait.png"][: 1 if number == 1 else 2]
        for name in files:
            Image.new("RGB", (8, 8)).save(folder / name)
        samples = [{"seed": number, "sampling_s": 1}]
        info = {"prompt": "speaks", "references": [{}], "samples": samples, "settings": SETTINGS, "files": files}
        write_json(folder / "info.json", info)
        os.utime(folder / "info.json", (number, number))
    studio, oldest = Studio(find_models(str(output))), output / "0000_speaks"
    monkeypatch.setattr(studio.worker, "make", lambda *_: [Event("notes", ["<b>"]), Event("made", str(oldest))])
    monkeypatch.setattr(studio, "request", lambda *_: None)
    *_, (status, _, *parts) = studio.make(type("Session", (), {"session_hash": "me"}), "mini", "speaks")
    assert status.endswith("made</span> <br>&lt;b&gt;") and parts[-1] == str(oldest) and parts[0]["visible"]
    choices, (gallery, folders) = studio.choices(), studio.posters()
    assert f", {MOST} of {MOST + 1}" in choices["label"] and f", {MOST} of {MOST + 1}" in gallery["label"]
    assert choices["choices"][0] == (f"output/{MOST:04d}_speaks: speaks (seed {MOST})", str(output / f"{MOST:04d}_speaks"))
    assert gr.Gallery().postprocess(gallery["value"]) and len(folders) == MOST - 1, "without the one that has no picture"
    monkeypatch.setattr("concat_id.studio.page.run_script", lambda *arguments: arguments[-1])
    *_, report = studio.evaluate([choices["choices"][0][1]])
    assert f"<pre>{tmp_path}" in report, "in the folder that goes with the page"
    assert str(oldest) not in folders and studio.again(str(oldest), "mini")[2] == "speaks"


def test_models_of_this_machine_by_task_with_their_prompts(tmp_path):
    models = find_models(str(tmp_path / "out"))
    model = models[default_model(models)]
    assert list(models)[0] == "mini" and default_model(dict.fromkeys(["mini", "cogvideox_5b", "wan_mini"])) == "cogvideox_5b"
    assert tuple(map(model.task, (1, 2))) == TASKS and model.folders == [tmp_path / "out"] * len(TASKS)
    assert all(len(prompt.split()) > 4 and "@@" not in prompt and ".png" not in prompt for prompt in example_prompts(model))


def test_of_several_takes_the_best_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    folder = tmp_path / "output" / "0000_speaks"
    folder.mkdir(parents=True)
    files = ["video.mp4", "video_2.mp4", "sheet.png", "sheet_2.png", "takes.png", "reference_1.png", "reference_1_crop.png"]
    for name in [*files[:-2], "portrait_2.png"]:
        (folder / name).touch()
    (folder / "video_2.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))  # which no frame follows
    samples = [{"seed": 5 + number, "sampling_s": number, "video": files[number], "scores": {"SFace": number / 4, "text": None}}
               for number in (0, 1)]  # fmt: skip
    info = {"prompt": "speaks", "references": [{}], "samples": samples, "settings": SETTINGS, "files": files}
    write_json(folder / "info.json", info | {"best": "video_2.mp4"})
    result = read_result(folder)
    assert (result.take, result.seed, result.poster, poster(folder / "video.mp4")) == (1, 6, None, None)
    assert [result.file(kind) for kind in ("video", "sheet", "takes")] == [folder / files[number] for number in (1, 3, 4)]
    assert result.file("portrait") is None and result.references == [folder / files[5]] and result.crops == [[folder / files[6]]]
    assert {("seed", "6"), ("SFace", "0.250"), ("sampling", "1 s")} < set(result.table()) and len(result.table()) == 7
    (folder / "sheet_2.png").unlink()
    assert result.file("sheet") is None and result_folders([folder.parent] * 2) == [folder]
    write_json(folder / "info.json", info | {"best": None, "samples": [{"seed": 1}, {"seed": 2}]})
    assert read_result(folder).take == 0
    crops = [f"reference_{number}_crop.png" for number in (1, 2, 3)]
    for name in crops:
        (folder / name).touch()
    studio = Studio(find_models())
    samples[0]["seed"] = 2**32 - 1
    for load, model in (("models/mini/transformer", "mini"), ("my/weights", "wan_mini")):
        details = {"load": load, "samples": samples, "references": [{"person": 1}, {"person": 1}, {"person": 2}], "files": crops}
        write_json(folder / "info.json", info | details)
        told, chosen, _, *slots, seed, takes, _, frames, steps, guidance, one, two, _, _ = studio.again(str(folder), "wan_mini")
        foreign = "the model of output/0000_speaks is not offered here; wan_mini takes its place"
        assert (chosen, told) == (model, "" if model == "mini" else foreign)
        assert [[Path(path).name for path in slot or ()] for slot in slots] == [crops[:2], crops[2:], []], "photos of a person in one slot"
        assert seed == studio.another_seed(str(folder), 7) == 0
        assert takes == 2 and [each["value"] for each in (frames, steps, guidance, one, two)] == [3, 2, 5.5, 2.0, 3.0]
    odd = {"latent_frames": 3, "size": [144, 96], "model": {"sampler": SAMPLER | {"num_inference_steps": 200, "guidance_scale": 0.5}}}
    write_json(folder / "info.json", info | {"load": "models/mini/transformer", "settings": odd, "references": []})
    told, *_, steps, guidance, _, _, _, _ = studio.again(str(folder), "mini")
    assert told == "it was 144x96 at 8 frames a second; this page makes 96x144 at 8; what lies beyond a slider is at its end"
    assert (steps["value"], guidance["value"], studio.another_seed(None, 7)) == (100, 1, 7)
    for damaged in ({"samples": []}, {"files": 0}):
        write_json(folder / "info.json", {name: value for name, value in (info | damaged).items() if value != 0})
        assert read_result(folder) is None


def test_a_poster_is_made_once_and_again_where_it_has_gone_or_its_video_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    video = tmp_path / "video.mp4"
    write_video(video, np.zeros((2, 16, 16, 3), np.uint8), 8)
    made = poster(video)
    before = os.stat(made)
    assert (poster(video), os.stat(made)) == (made, before)
    os.remove(made)  # as the page does
    assert poster(video) == made and Image.open(made).size == (16, 16)
    write_video(video, np.full((2, 16, 16, 3), 255, np.uint8), 8)
    assert Image.open(poster(video)).getextrema() == ((255, 255),) * 3
