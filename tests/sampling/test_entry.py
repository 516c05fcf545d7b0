"""sat/sample_video.py through its own main: what it leaves behind, what it skips, and how it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import insightface
import torch
from conftest import ROOT
from entry import PROMPT, SCRIPT, only_error, prompt_file, results
from in_process import Call
from PIL import Image

from concat_id.models.transformer import DiffusionTransformer
from concat_id.sampling.pipeline import CogVideoXPipeline
from concat_id.weights.loading import load_tensors


def test_one_line_leaves_video_references_sheet_and_info(sample, tmp_path, photo):
    code, text = sample("--prompt", PROMPT, "--image", photo)
    assert code == 0, text
    (folder,) = results(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"video.mp4", "reference_1.png", "reference_1_crop.png", "sheet.png", "info.json"}
    meta = iio.immeta(folder / "video.mp4", plugin="FFMPEG")
    assert (meta["codec"], meta["fps"], tuple(meta["size"])) == ("h264", 8.0, (96, 64))
    assert len(iio.imread(folder / "video.mp4", plugin="FFMPEG")) == 9
    assert Image.open(folder / "reference_1.png").size == (96, 64) and Image.open(folder / "reference_1_crop.png").size == (448, 448)
    info = json.loads((folder / "info.json").read_text())
    assert info["prompt"] == PROMPT and info["settings"]["seed"] == 42 and info["references"][0]["parser"] == "ellipse"
    assert all(digest.startswith("sha256:") for digest in info["settings"]["weights"].values())


def test_the_same_seed_gives_the_same_file_and_samples_have_seeds_of_their_own(sample, tmp_path, photo):
    def made(*options) -> dict[str, bytes]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        code, text = sample("--prompt", PROMPT, "--image", photo, "--sampling_num_frames", 2, *options)
        assert code == 0, text
        return {path.name: path.read_bytes() for path in results(tmp_path)[0].glob("*.mp4")}

    first, two, second = made("--seed", 5), made("--seed", 5, "--batch_size", 2), made("--seed", 6)
    assert two.keys() == {"video.mp4", "video_2.mp4"}
    assert first["video.mp4"] == two["video.mp4"]
    assert second["video.mp4"] == two["video_2.mp4"] != first["video.mp4"]


def test_finished_lines_are_skipped_and_changed_ones_made_anew(sample, tmp_path, photo):
    own = tmp_path / "own.png"
    shutil.copyfile(photo, own)
    file = prompt_file(tmp_path, f"a man@@{own}", f"a woman@@{photo}")
    options = "--input_file", file, "--sampling_num_frames", 1

    def names() -> list[str]:
        return [path.name for path in results(tmp_path)]

    def changed(*more) -> list[int]:
        def times() -> dict[Path, int]:
            return {path: (path / "info.json").stat().st_mtime_ns for path in results(tmp_path)}

        before = times()
        code, text = sample(*options, *more)
        assert code == 0, text
        return [index for index, (path, made) in enumerate(times().items()) if before.get(path) != made]

    assert changed() == [0, 1]
    assert changed() == []
    assert changed("--memory", "high") == [], "where it is computed is no part of the result"
    Image.open(own).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(own)
    assert names() == ["0000_a_man", "0001_a_woman"]
    assert changed() == [1] and names() == ["0000_a_man", "0000_a_man_2", "0001_a_woman"], "what is made stays"
    assert changed("--seed", 1) == [2, 4]
    assert changed("--seed", 1, "--overwrite") == [2, 4]
    (results(tmp_path)[4] / "sheet.png").unlink()
    assert changed("--seed", 1) == [4]
    file.write_text(f"first of all@@{photo}\n\n{file.read_text()}")
    assert [names()[index] for index in changed()] == ["0000_first_of_all"] and len(names()) == 6


def test_faces_that_need_a_word(sample, tmp_path, photo):
    images = {"blank.png": Image.new("RGB", (200, 100), "green"), "clear.png": Image.new("RGBA", (50, 50))}
    images |= {"point.png": Image.new("L", (1, 1))}
    for name, image in images.items():
        image.save(tmp_path / name)
    group = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    file = prompt_file(tmp_path, *(f"{name}@@{tmp_path / name}@@{group}" for name in images))
    code, text = sample("--input_file", file, "--sampling_num_frames", 1)
    assert code == 0
    for name in images:
        assert f"{name}: poor: found no face, the whole image is used; take" in text
    assert text.count("t1.jpg: usable: found 6 faces, the largest is used; cut") == 1, "one line a photo"
    (tmp_path / "out").rename(tmp_path / "earlier")
    file = prompt_file(tmp_path, f"a@@{tmp_path / 'blank.png'}", f"b@@{photo}")
    code, text = sample("--input_file", file, "--sampling_num_frames", 1, "--strict_photos")
    assert "prompts.txt:1: " in (line := only_error(code, text)) and "blank.png: poor: found no face" in line and "--strict_photos" in line
    assert f"\n{photo}: good\n" in text and len(results(tmp_path)) == 1
    verdict = json.loads((results(tmp_path)[0] / "info.json").read_text())["references"][0]["verdict"]
    assert verdict["level"] == "good" and verdict["reasons"] == [] and 80 < verdict["measurements"]["width"] < 100
    assert "cut out with an oval" in text and "nowhere: not there" in text


def test_what_the_text_encoder_does_not_see_is_told(sample, tmp_path, photo):
    lines = "a man smiles and " * 8 + "THE END", "a man 一个男人在雨中笑"
    code, text = sample("--input_file", prompt_file(tmp_path, *(f"{line}@@{photo}" for line in lines)), "--sampling_num_frames", 1)
    assert code == 0 and "longer than 16 tokens" in text and "THE END" in text
    assert "prompts.txt:2: out of the text encoder's vocabulary" in text and "'一个男人在雨中笑'" in text
    assert results(tmp_path)[1].name == "0001_a_man_一个男人在雨中笑"


MISTAKES = [
    ((), "args.input_file: missing"),
    (("--prompt", "words"), "with --image"),
    (("--prompt", " ", "--image", "a.png"), "--prompt: found ' ', expected a text"),
    (("--prompt", "words", "--image", *["a.png"] * 4), "at most 3"),
    (("--input_file", "nowhere.txt"), "no such file, expected a prompt file"),
    (("--input_file", "a.txt", "--prompt", "words", "--image", "a.png"), "found --prompt and --input_file, expected one of them"),
    (("--prompt", PROMPT, "--image", "{photo}", "--device", "abacus"), "cannot be used"),
    (("--prompt", PROMPT, "--image", "{photo}", "--load", "nowhere"), "nowhere: no such folder"),
]


def test_mistakes_are_told_in_one_line(sample, tmp_path, photo):
    for options, words in MISTAKES:
        assert words in only_error(*sample(*(option.format(photo=photo) for option in options)))
    assert results(tmp_path) == []


def test_pickles_that_run_code_are_refused_unless_trusted(sample, tiny_model, tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = load_tensors(tiny_model.parent / "transformer" / "release" / "mp_rank_00_model_states.pt", mmap=False)
    folder = tmp_path / "unsafe"
    folder.mkdir()
    torch.save(content | {"extra": Call(os.mkdir, "was-here")}, folder / "mp_rank_00_model_states.pt")
    options = "--prompt", PROMPT, "--image", photo, "--load", folder, "--sampling_num_frames", 1
    line = only_error(*sample(*options))
    assert "mkdir" in line and "--trust-checkpoint" in line and not (tmp_path / "was-here").exists()
    assert sample(*options, "--trust-checkpoint")[0] == 0
    assert (tmp_path / "was-here").exists()


def test_latents_that_are_no_numbers(sample, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(DiffusionTransformer, "forward", lambda network, latents, *_: latents * float("nan"))
    assert "NaN" in only_error(*sample("--prompt", PROMPT, "--image", photo))
    assert sample.printed == "", "a folder without a video is not told as made"
    assert not list((tmp_path / "out").rglob("info.json"))


def test_a_killed_run_loses_only_the_video_in_progress(sample, tiny_model, tmp_path, photo):
    """SIGKILL after the first line; the next run makes the rest."""
    file = prompt_file(tmp_path, *[f"{PROMPT} {index}@@{photo}" for index in range(2)])
    options = "--input_file", file, "--num_inference_steps", 40
    base = ROOT / "configs" / "debug.yaml", tiny_model, tmp_path / "faces.yaml"
    command = [sys.executable, SCRIPT, "--base", *base, "--output", tmp_path / "out", *options]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not (list((tmp_path / "out").glob("0000_*/info.json")) and len(results(tmp_path)) == 2):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.02)
        process.kill()
    first = (results(tmp_path)[0] / "info.json").stat().st_mtime_ns
    assert not list((tmp_path / "out").glob("0001_*/info.json"))
    (results(tmp_path)[1] / ".x.partial.mp4").write_bytes(b"what a killed encoder leaves")
    assert sample(*options)[0] == 0
    assert not list((tmp_path / "out").rglob("*.partial*"))
    assert (results(tmp_path)[0] / "info.json").stat().st_mtime_ns == first
    assert (results(tmp_path)[1] / "video.mp4").is_file()


def test_ctrl_c_ends_without_a_traceback(sample, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(CogVideoXPipeline, "decode", lambda *_: signal.raise_signal(signal.SIGINT))
    code, text = sample("--prompt", PROMPT, "--image", photo, "--sampling_num_frames", 1)
    assert code == 130 and text.endswith("\ninterrupted\n") and "Traceback" not in text
    assert not list((tmp_path / "out").rglob("info.json"))
