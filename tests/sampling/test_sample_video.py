"""sat/sample_video.py where things go wrong half-way: what counts as finished, who makes which line, and odd input."""

import json

import numpy as np
import torch
from conftest import ROOT
from entry import PROMPT, only_error, prompt_file, results
from in_process import no_file_larger_than
from PIL import Image

from concat_id.config.loading import load_config
from concat_id.evaluation.layouts import find_samples
from concat_id.evaluation.ranking import TakeJudge
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.models.text_encoder import TextEncoder
from concat_id.sampling import pipeline, run
from concat_id.sampling.jobs import Job
from concat_id.sampling.pipeline import CogVideoXPipeline

PORTRAIT = "--sampling_num_frames", 1


def test_a_folder_half_made_anew_is_not_taken_for_the_earlier_result(sample, tmp_path, photo, monkeypatch):
    """The second run writes its references over the first result, then fails: what is left is neither."""
    first = "--prompt", PROMPT, "--image", photo, *PORTRAIT
    assert sample(*first)[0] == 0
    (info,) = (tmp_path / "out").glob("*/info.json")
    told = info.read_bytes()
    with no_file_larger_than(4096):
        assert "reference_1.png: could not be written" in only_error(*sample(*first, "--overwrite"))
    assert info.read_bytes() == told, "nothing has been replaced"

    def decode(*_):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 9 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(CogVideoXPipeline, "decode", decode)
        line = only_error(*sample(*first, "--overwrite"))
    assert "too little memory" in line and "--memory low" in line
    code, _ = sample(*first)
    assert code == 0 and "finished already" not in sample.printed and str(results(tmp_path)[0]) in sample.printed


def test_what_a_killed_run_left_does_not_stay_beside_the_new_results(sample, tmp_path, photo):
    line = "--prompt", PROMPT, "--image", photo
    assert sample(*line, photo, "--batch_size", 2)[0] == 0
    (folder,) = results(tmp_path)
    (folder / "notes.txt").write_text("the user's own")
    assert {"video_2.mp4", "sheet_2.png", "reference_2_crop.png"} <= {path.name for path in folder.iterdir()}
    (folder / "info.json").unlink()
    assert sample(*line, *PORTRAIT)[0] == 0
    made = {path.name for path in folder.iterdir()}
    assert made == {"portrait.png", "sheet.png", "reference_1.png", "reference_1_crop.png", "info.json", "notes.txt"}
    info = json.loads((folder / "info.json").read_text())
    assert made == {*info["files"], "info.json", "notes.txt"} and [made["seed"] for made in info["samples"]] == [42]


def test_a_run_with_nothing_to_do_loads_nothing(sample, photo, monkeypatch):
    line = "--prompt", PROMPT, "--image", photo, *PORTRAIT
    assert sample(*line)[0] == 0
    monkeypatch.setattr(TextEncoder, "__init__", None)
    monkeypatch.setattr(CogVideoXPipeline, "load", None)
    assert sample(*line) == (0, "") and sample.printed == "1 of 1 are finished already; --overwrite makes them again\n"


def test_more_people_or_rows_than_the_shipped_weights_know_are_told(photo, capsys):
    files = [ROOT / "configs" / name for name in ("mini.yaml", "inference/mini_two_identities.yaml")]
    for number, told in (2, ""), (3, "--prompt: 3 people, but the weights were trained with 2 people"):
        jobs, _ = run.find_jobs(load_config(files, {"prompt": "a man", "image": [str(photo)] * number}))
        assert len(jobs) == 1 and told in (err := capsys.readouterr().err) and bool(told) == bool(err)
    upright = {"prompt": "a man", "image": [str(photo)], "sampling_image_size": [144, 96]}
    run.find_jobs(load_config(files, upright))
    assert "144x96 pixels go beyond the 96x144 that the model is made for; it may look worse" in capsys.readouterr().err


def test_a_run_with_clips_of_another_size_is_told(photo, tmp_path, capsys):
    recorded = tmp_path / "training_config.yaml"
    recorded.write_text((ROOT / "configs/mini.yaml").read_text() + "\ndata: {video_size: [144, 96], fps: 12}\n")
    given = {"prompt": "a man", "image": [str(photo)], "load": str(tmp_path / "5-ema")}
    run.find_jobs(load_config([recorded], given))
    assert not capsys.readouterr().err
    run.find_jobs(load_config([ROOT / "configs/mini.yaml"], given))
    told = "trained on clips of 144x96 at 12 frames a second, but this video is 96x144 at 8; it may look worse"
    assert f"{tmp_path}: {told}" in capsys.readouterr().err


def test_a_stranger_among_photos_is_told_left_out_and_refused_if_strict(sample, tmp_path, photographs):
    one, other = (photographs[name] for name in ("astronaut", "actor"))
    line = "--prompt", "a man", "--image", f"{other}+{one}+{one}", *PORTRAIT
    assert f"{other}: another person than in {one}; SFace says a cosine of" in only_error(*sample(*line, "--strict_photos"))
    code, text = sample(*line)
    assert code == 0 and f"warning: --prompt: {other}: another person" in text and f"person 1, {one} is taken" in text
    assert " seem to show different people; SFace says" in sample(*line[:3], f"{other}+{one}", *PORTRAIT)[1]


def test_of_several_photos_the_best_is_taken_or_each_is_a_reference(sample, tmp_path, photo):
    dark = tmp_path / "dark.png"
    Image.open(photo).convert("RGB").point(lambda value: value // 12).save(dark)
    line = "--prompt", PROMPT, "--image", f"{dark}+{photo}", *PORTRAIT
    code, told = sample(*line)
    assert code == 0 and f"of person 1, {photo} is taken" in told and f"{dark}: poor" in told
    assert sample(*line, "--photos", "all", "--ref_guidance_scale", 2)[0] == 0
    one, both = (json.loads((folder / "info.json").read_text())["references"] for folder in results(tmp_path))
    assert [item["image"] for item in one] == [str(photo)] and [item["image"] for item in both] == [str(dark), str(photo)]
    assert [item["person"] for item in both] == [1, 1]
    samples, problems, _ = find_samples(tmp_path / "out", None)
    assert not problems and [len(each.references) for each in samples] == [1, 1]  # of one person, whom one face is to resemble
    assert "expected a photo that is usable" in only_error(*sample(*line, "--photos", "all", "--seed", 1, "--strict_photos"))
    assert "the model takes at most 3" in only_error(*sample(*line[:3], "+".join([str(photo)] * 4), "--photos", "all", *PORTRAIT))


def test_the_best_of_several_takes_is_marked_and_a_killed_run_goes_on(sample, tmp_path, photo, monkeypatch):
    line = "--prompt", PROMPT, "--image", photo, "--best_of", 3
    decode, decoded = CogVideoXPipeline.decode, []

    def killed_in_the_third(pipeline, latents):
        if len(decoded) == 2:
            raise KeyboardInterrupt
        decoded.append(latents)
        return decode(pipeline, latents)

    monkeypatch.setattr(CogVideoXPipeline, "decode", killed_in_the_third)
    assert sample(*line)[0] == 130
    (folder,) = results(tmp_path)
    first = (folder / "video.mp4").stat().st_mtime_ns
    monkeypatch.setattr(CogVideoXPipeline, "decode", lambda *given: decoded.append(1) or decode(*given))
    monkeypatch.setattr(TakeJudge, "scores", lambda _, video, *__: {"likeness": 0.5 - 0.4 * ("_2" in video.name), "text": None})
    assert sample(*line)[0] == 0 and len(decoded) == 3 and (folder / "video.mp4").stat().st_mtime_ns == first
    assert "video.mp4: the best of 3 takes (seed 42, likeness 0.500; the others 0.500, 0.100)" in sample.printed
    info = json.loads((folder / "info.json").read_text())
    assert info["best"] == "video.mp4" and {path.name for path in folder.iterdir()} == {*info["files"], "info.json"}
    sheets = [np.asarray(Image.open(folder / name)) for name in ("sheet.png", "sheet_3.png", "sheet_2.png")]
    assert (np.asarray(Image.open(folder / "takes.png")) == np.concatenate(sheets)).all()
    moved, judged = tmp_path / "moved.png", []
    moved.write_bytes(photo.read_bytes())
    del info["judge"]
    (folder / "info.json").write_text(json.dumps(info).replace(str(photo), str(tmp_path / "gone.png")))
    monkeypatch.setattr(TakeJudge, "scores", lambda _, video, photos, *__: judged.append(photos) or {"likeness": 0.5})
    assert sample(*line[:3], moved, *line[4:])[0] == 0 and judged[0] == [folder / "reference_1_crop.png"]
    monkeypatch.setattr(TakeJudge, "scores", None)
    assert sample(*line)[0] == 0 and len(decoded) == 3 and "the best of 3" in sample.printed
    Image.new("RGB", (99, 99)).save(moved)
    assert f"{moved}: found no face in the reference" in only_error(*sample(*line[:3], moved, *line[4:])) and len(decoded) == 3
    assert "found 2, expected none beside best_of 3" in only_error(*sample(*line, "--batch_size", 2))
    faceless = (*line[:3], moved, *PORTRAIT)
    assert sample(*faceless, "--batch_size", 3)[0] == 0
    assert "in the reference; use" in only_error(*sample(*faceless, "--best_of", 3, "--overwrite")), "told once"


def test_every_person_may_have_a_strength_of_their_own(sample, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(Job, "__eq__", None)  # no line is compared with all others
    prepare, read = pipeline.prepare_reference, []
    monkeypatch.setattr(pipeline, "prepare_reference", lambda path, *rest: read.append(path) or prepare(path, *rest))
    lines = "--input_file", prompt_file(tmp_path, f"{PROMPT}@@{photo}@@{photo}", f"{PROMPT}@@{photo}"), *PORTRAIT
    line = only_error(*sample(*lines, "--ref_guidance_scale", 2, 1))
    assert ":2: found 1 people, expected 2" in line and len(results(tmp_path)) == 1
    assert sample(*lines, "--ref_guidance_scale", 2, 2)[0] == 1 and len(results(tmp_path)) == 2
    assert sample(*lines, "--ref_guidance_scale", 2)[0] == 0 and "1 of 2 are finished already" in sample.printed
    assert read == [photo] * 3, "once a run"


def test_bfloat16_that_is_emulated_is_told(sample, photo, monkeypatch, tmp_path):
    monkeypatch.setattr("concat_id.distributed.CPU_INFO", tmp_path / "nowhere")
    code, told = sample("--prompt", PROMPT, "--image", photo, *PORTRAIT, "--bf16")
    assert code == 0 and told.count("add --bf16 auto") == 1


def test_processes_that_start_late_still_make_their_own_lines(sample, tmp_path, photo, monkeypatch):
    """What one process has finished before the other looks does not shift who makes what."""
    file = prompt_file(tmp_path, "no separator", *[f"{PROMPT} {index}@@{photo}" for index in range(3)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        told.append(sample("--input_file", file, *PORTRAIT))
        assert [path.name[:4] for path in results(tmp_path)] == (["0001", "0002", "0003"] if rank else ["0001", "0003"])
    assert all((path / "info.json").is_file() for path in results(tmp_path))
    assert [code for code, _ in told] == [1, 0], "the first process alone tells what is wrong with the file"
    assert "prompts.txt:1" in only_error(*told[0]) and "error: " not in told[1][1]


BAD_IMAGES = {
    "/proc/self/mem": "cannot be read",
    "a\0b.png": "a zero byte",
    "": "no reference image",
    "words.jpg": "not an image",
    "@@".join("abcd"): "at most 3",
}


def test_paths_of_every_kind_are_told_and_stop_no_other_line(sample, tmp_path, photo):
    (tmp_path / "words.jpg").write_text("no image")
    lines = [*(f"{PROMPT}@@{path}" for path in BAD_IMAGES), "no separator", f"@@{photo}", f"end@@{photo}@@", f"../good\u2028one@@{photo}"]
    code, text = sample("--input_file", prompt_file(tmp_path, *lines), *PORTRAIT)
    assert code == 1 and "Traceback" not in text
    told = [line for line in text.splitlines() if line.startswith("error: ")]
    for number, words in enumerate([*BAD_IMAGES.values(), "no '@@'", "prompt is empty", "without a name"], 1):
        assert sum(f"prompts.txt:{number}: " in line and words in line for line in told) == 1, (number, words, told)
    assert len(told) == len(lines) - 1
    assert [path.name for path in results(tmp_path)] == ["0008_good_one"]


def test_an_autoencoder_that_gives_no_numbers(sample, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(VideoAutoencoder, "decode", lambda *_, **__: torch.full((1, 3, 1, 64, 96), float("nan")))
    assert "autoencoder gave NaN" in only_error(*sample("--prompt", PROMPT, "--image", photo, *PORTRAIT))
    assert not list((tmp_path / "out").rglob("portrait.png"))


def test_files_that_the_system_cuts_off(sample, tmp_path, photo):
    """A real limit of the system, met while the images are written."""
    with no_file_larger_than(16 * 1024):
        line = only_error(*sample("--prompt", PROMPT, "--image", photo))
    assert "could not be written (File too large)" in line
    assert not [path for path in results(tmp_path)[0].iterdir() if path.name.startswith(".") or path.name == "info.json"]
