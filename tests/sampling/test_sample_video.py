"""sat/sample_video.py where things go wrong half-way: what counts as finished, who makes which line, and odd input."""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from entry import PROMPT, SCRIPT, only_error, prompt_file, results
from PIL import Image

from concat_id.config.loading import load_config
from concat_id.models.text_encoder import TextEncoder
from concat_id.sampling.pipeline import CogVideoXPipeline
from concat_id.weights.loading import load_tensors

PORTRAIT = "--sampling_num_frames", 1
RELEASED = ROOT.parent / "shared" / "released_configs"


def test_a_folder_half_made_anew_is_not_taken_for_the_earlier_result(sample, tmp_path, photo, monkeypatch):
    """The second run writes its references over the first result, then fails: what is left is neither."""
    first = "--prompt", PROMPT, "--image", photo, *PORTRAIT
    assert sample(*first)[0] == 0

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
    monkeypatch.setattr(TextEncoder, "from_config", None)
    monkeypatch.setattr(CogVideoXPipeline, "load", None)
    assert sample(*line) == (0, "") and sample.printed == "1 of 1 are finished already; --overwrite makes them again\n"


def test_processes_that_start_late_still_make_their_own_lines(sample, tmp_path, photo, monkeypatch):
    """What one process has finished before the other looks does not shift who makes what."""
    file = prompt_file(tmp_path, "no separator", *[f"{PROMPT} {index}@@{photo}" for index in range(3)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        told.append(sample("--input_file", file, *PORTRAIT))
    assert [path.name[:4] for path in results(tmp_path)] == ["0001", "0002", "0003"]
    assert all((path / "info.json").is_file() for path in results(tmp_path))
    assert [code for code, _ in told] == [1, 0], "the first process alone tells what is wrong with the file"
    assert "prompts.txt:1" in only_error(*told[0]) and "error: " not in told[1][1]


BAD_IMAGES = {
    "/proc/self/mem": "cannot be read",
    "x" * 300 + ".png": "a name that is too long",
    "~nobody-of-this-name/a.png": "no user is called 'nobody-of-this-name'",
    "/tmp": "found a folder",
    "a\0b.png": "a zero byte",
    "": "no reference image",
}


def test_paths_of_every_kind_are_told_and_stop_no_other_line(sample, tmp_path, photo):
    lines = [*(f"{PROMPT}@@{path}" for path in BAD_IMAGES), f"trailing@@{photo}@@", f"good\u2028one@@{photo}"]
    code, text = sample("--input_file", prompt_file(tmp_path, *lines), *PORTRAIT)
    assert code == 1 and "Traceback" not in text
    told = [line for line in text.splitlines() if line.startswith("error: ")]
    for number, words in enumerate([*BAD_IMAGES.values(), "without a name"], 1):
        assert sum(f"prompts.txt:{number}: " in line and words in line for line in told) == 1, (number, words, told)
    assert len(told) == len(lines) - 1
    assert [path.name for path in results(tmp_path)] == ["0007_good_one"]


def test_when_every_line_is_bad_the_exit_code_says_so(sample, tmp_path):
    code, text = sample("--input_file", prompt_file(tmp_path, "one", "two@@nowhere.png"))
    assert code == 1 and text.count("error: ") == 2 and results(tmp_path) == []


NO_LINES = [("", "the prompt file is empty"), (None, "no such file, expected a prompt file"), ("folder", "found a folder")]


@pytest.mark.parametrize("content, words", NO_LINES)
def test_prompt_files_that_hold_nothing(sample, tmp_path, content, words):
    file = tmp_path / "prompts.txt"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_text(content)
    assert words in only_error(*sample("--input_file", file))


@pytest.mark.parametrize("options, words", [
    ((), "args.input_file: missing"),
    (("--prompt", "words"), "with --image"),
    (("--prompt", " ", "--image", "a.png"), "--prompt: found ' ', expected a text"),
    (("--prompt", "two\nlines", "--image", "no\nwhere.png"), "no such file"),
    (("--prompt", "words", "--image", *["a.png"] * 4), "at most 3"),
])  # fmt: skip
def test_a_request_that_is_incomplete(sample, options, words):
    assert words in only_error(*sample(*options))


def test_images_of_every_kind_are_taken(sample, tmp_path, photo):
    portrait = Image.open(photo)
    images = {
        "cmyk.jpg": portrait.convert("CMYK"),
        "palette.png": portrait.quantize(16),
        "grey16.png": Image.fromarray(np.asarray(portrait.convert("L")).astype(np.uint16) * 257),
        "clear.png": Image.new("RGBA", (50, 50)),
        "point.png": Image.new("RGB", (1, 1)),
        "strip.png": Image.new("L", (3000, 2)),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    file = prompt_file(tmp_path, *(f"{name}@@{tmp_path / name}" for name in images))
    code, text = sample("--input_file", file, *PORTRAIT)
    assert code == 0, text
    assert [name for name in images if f"{name}: found no face" in text] == ["clear.png", "point.png", "strip.png"]


def test_an_autoencoder_that_gives_no_numbers(sample, tiny_model, tmp_path, photo):
    content = load_tensors(tiny_model.parent / "vae" / "3d-vae.pt", mmap=False)
    content["state_dict"]["decoder.conv_out.conv.bias"].fill_(float("nan"))
    torch.save(content, tmp_path / "vae.pt")
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump({"model": {"autoencoder": {"path": str(tmp_path / "vae.pt")}}}))
    line = only_error(*sample("--base", tmp_path / "vae.yaml", "--prompt", PROMPT, "--image", photo))
    assert "autoencoder gave NaN" in line and not list((tmp_path / "out").rglob("*.mp4"))


def test_files_that_the_system_cuts_off(sample, tmp_path, photo):
    """A real limit of the system, met while the images are written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, limits[1]))
    try:
        line = only_error(*sample("--prompt", PROMPT, "--image", photo))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not be written (File too large)" in line
    assert not [path for path in results(tmp_path)[0].iterdir() if path.name.startswith(".") or path.name == "info.json"]


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released files are not here")
@pytest.mark.parametrize("kind, num_refs", [("single_identity", 1), ("two_identities", 2)])
def test_released_configurations_reach_a_image(tiny_model, tmp_path, kind, num_refs):
    """The released pair of files, with the sizes of its networks and images made small and nothing else changed."""
    config = load_config([RELEASED / "cogvideox_5b.yaml", RELEASED / "inference" / f"inference_{kind}.yaml"])
    tiny = load_config([ROOT / "configs" / "debug.yaml", tiny_model])
    sizes = ("num_layers", "hidden_size", "num_attention_heads", "time_embed_dim", "text_hidden_size", "text_length")
    for name in (*sizes, "latent_height", "latent_width", "num_frames"):
        setattr(config.model.transformer, name, getattr(tiny.model.transformer, name))
    config.model.text_encoder, config.model.autoencoder = tiny.model.text_encoder, tiny.model.autoencoder
    config.model.sampler.num_inference_steps = 2
    config.args.load, config.args.sampling_image_size, config.args.sampling_num_frames = tiny.args.load, (64, 96), 1
    assert config.args.bf16 and config.model.scale_factor == 0.7
    pipeline = CogVideoXPipeline(config, torch.device("cpu"), cache_dir=tmp_path)
    (embedding,) = pipeline.encode_prompts([PROMPT])
    latents = pipeline.sample(embedding, pipeline.encode_references([Image.new("RGB", (96, 64), "red")] * num_refs), seed=0)
    assert pipeline.decode(latents).shape == (3, 1, 64, 96)


def test_help_tells_what_each_memory_mode_costs():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=600, cwd=ROOT)
    told = " ".join(done.stdout.split())
    assert done.returncode == 0 and done.stderr == ""
    for words in ("high = text encoder", "21 GB", "11.5 GB", "low = ", "computed, not measured", "--overwrite", "--sampling_num_frames"):
        assert words in told, words


def test_a_disk_that_is_really_full(sample, tmp_path, photo):
    """A file system of 300 KB, where the system lets a test mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if not mount or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        line = only_error(*sample("--prompt", PROMPT, "--image", photo, "--output", small / "out"))
        assert "No space left on device" in line and "free some space" in line
        assert not list(small.rglob("*.partial*")) and not list(small.rglob("info.json"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
