"""inference_wan.py: tiny random weights in Wan's own formats through the real entry, its options, and mistakes in one line."""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from conftest import ROOT
from entry import only_error, prompt_file, results
from in_process import call_main, load_script, refused, write_program

from concat_id import bootstrap
from concat_id.config import presets
from concat_id.config.loading import load_config
from concat_id.config.wan_command_line import read_wan_command_line
from concat_id.sampling import downloads

SCRIPT = ROOT / "inference_wan.py"
PROMPT = "a man in a red hat smiles"


@pytest.fixture
def infer(tiny_wan, faces, tmp_path, monkeypatch, capsys):
    """Call the script's main on the tiny weights; returns (exit code, standard error)."""
    script = load_script(SCRIPT)

    def call(*options, config=(tiny_wan, faces)) -> tuple[int, str]:
        monkeypatch.setenv(bootstrap.ENTERED, "1")
        model = ["--model", "wan_mini", "--config", *config] if config else []
        ended = call_main(script, [*model, "--output_dir", tmp_path / "out", *options], monkeypatch, capsys)
        call.printed = ended.out
        return ended.code, ended.err

    return call


def info_of(folder) -> dict:
    return json.loads((folder / "info.json").read_text())


def test_a_photo_and_a_prompt_become_what_the_other_launchers_write(infer, tmp_path, photo):
    request = "--image_path", photo, "--prompt", PROMPT, "--height", 48, "--width", 64, "--num_frames", 5, "--num_inference_steps", 3
    code, text = infer(*request, "--cfg_scale", 2, "--seed", 9, "--negative_prompt", "rain", "--use_tiled")
    assert code == 0, text
    (folder,) = results(tmp_path)
    files = {"video.mp4", "sheet.png", "reference_1.png", "reference_1_crop.png", "info.json"}
    assert {path.name for path in folder.iterdir()} == files and "photos, but" not in text
    info = info_of(folder)
    settings, model = info["settings"], info["settings"]["model"]
    assert (settings["size"], settings["latent_frames"], settings["fps"], settings["seed"]) == ([48, 64], 2, 16, 9)
    assert (model["sampler"]["num_inference_steps"], model["sampler"]["guidance_scale"]) == (3, 2.0)
    assert (model["negative_prompt"], model["kind"], model["transformer"]["ref_modulation"]) == ("rain", "wan", False)
    assert infer(*request, "--cfg_scale", 2, "--seed", 9, "--negative_prompt", "rain")[0] == 0 and "finished already" in infer.printed
    assert infer(*request, "--seed", 10)[0] == 0
    assert [info_of(made)["settings"]["seed"] for made in results(tmp_path)] == [9, 10], "both are kept"


def test_the_second_stage_a_prompt_file_and_a_person_too_many(infer, tmp_path, photo, tiny_wan):
    file = prompt_file(tmp_path, f"{PROMPT}@@{photo}@@{photo}", "no separator", f"a wall@@{tmp_path / 'gone.png'}")
    load = tiny_wan.parent / "Concat-ID-Wan" / "second_stage_adaln.pt"
    code, text = infer("--input_file", file, "--use_adaln", "--load", load, "--num_frames", 1, "--sampler", "unipc", "--memory", "low")
    assert code == 1 and text.count("error: ") == 2 and "gone.png': found no such file" in text and "prompts.txt:2" in text
    assert "2 people, but the weights were trained with one person" in text
    (folder,) = results(tmp_path)
    assert (folder / "portrait.png").is_file() and (folder / "reference_2.png").is_file()
    assert info_of(folder)["settings"]["model"]["transformer"]["ref_modulation"] is True


def test_the_demonstration_weights_of_the_repository(infer, tmp_path, photo):
    short = "--num_frames", 1, "--num_inference_steps", 2
    code, text = infer("--model", "wan_mini", "--image_path", photo, "--prompt", PROMPT, *short, config=())
    assert code == 0 and "its videos are noise" in text, text
    assert (results(tmp_path)[0] / "portrait.png").is_file()


MISTAKES = [
    (["--image_path", "gone.png", "--prompt", "p"], "reference image 'gone.png': found no such file"),
    (["--prompt", "p"], "--prompt: found it without --image_path"),
    (["--height", "50"], "--height and --width: found (50, 96), expected [height, width] divisible by 16"),
    (["--num_frames", "80"], "--num_frames: found 80, expected 4 n + 1; the nearest is 81"),
    (["--cfg_scale", "-1"], "--cfg_scale: found -1.0, expected 0 to 1000"),
    (["--load", "nowhere.pt"], "lacks nowhere.pt in"),
    (["--config", "own.yaml"], "own.yaml: found no such file"),
]


def test_mistakes_are_told_in_one_line(infer, tmp_path):
    for options, message in MISTAKES:
        assert message in only_error(*infer(*options)) and results(tmp_path) == []


def test_without_weights_nothing_is_fetched_and_one_line_names_files_and_command(infer, photo, monkeypatch):
    monkeypatch.setattr(downloads, "import_module", lambda library: pytest.fail("a download was tried"))
    monkeypatch.setattr(presets, "resolve_path", lambda path: ROOT / "no such folder" / path)
    line = only_error(*infer("--image_path", photo, "--prompt", PROMPT, config=()))
    for name in ("Concat-ID-Wan/first_stage.pt", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl"):
        assert f"{name}" in line
    assert "python inference_wan.py --download" in line and "--model wan_mini" in line
    assert "second_stage_adaln.pt" in only_error(*infer("--use_adaln", config=()))
    assert "first_stage.pt" not in only_error(*infer("--quantize", "gguf:a.gguf", config=()))


def test_download_fetches_what_is_named_and_tells_what_failed(infer, monkeypatch, capsys):
    names, files = set(), []

    def fetch(name, local_dir, allow_patterns):
        names.add(name)
        files.extend(f"{local_dir}/{pattern}" for pattern in allow_patterns)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    downloads.download("huggingface")
    assert names == {"Wan-AI/Wan2.1-T2V-1.3B", "yongzhong/Concat-ID-Wan", "jonathandinu/face-parsing"}
    config = load_config(read_wan_command_line("", ["--use_adaln"]).bases)
    for path in (config.args.load, config.model.text_encoder.path, config.model.autoencoder.path, f"{config.model.faces.detector}/a.onnx"):
        assert any(fnmatch(str(ROOT / path), file) for file in files), path
    capsys.readouterr()

    def refuse(*_, **__):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    line = only_error(*infer("--download", config=()))
    assert "Wan-AI/Wan2.1-T2V-1.3B: cannot be fetched (no network and more); check the network" in line
    code, said = infer("--download", "--load", "nowhere.pt")
    assert code == 2 and "--download: wan_mini is made on this machine, nothing of it is fetched" in said and "no network" not in said
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "modelscope", None)
    refused("modelscope is not installed", downloads.download, "modelscope")


def test_options_mean_keys_of_the_configuration():
    request = read_wan_command_line("", ["--image_path", "a.png @@b.png", "--image-path", "c.png", "--prompt", "p", "--width", "640"])
    assert request.overrides == {"image": ["a.png", "b.png", "c.png"], "prompt": "p", "sampling_image_size": [480, 640]}
    assert [name.rpartition("/")[2] for name in request.bases] == ["wan_1_3b.yaml", "wan_single_identity.yaml"]
    config = load_config(request.bases, request.overrides, request.options)
    assert (config.args.sampling_num_frames, config.args.sampling_fps, config.args.seed, config.args.bf16) == (21, 16, 0, True)
    assert (config.model.sampler.name, config.model.sampler.guidance_scale, config.model.schedule.shift) == ("euler", 5.0, 5.0)
    assert config.model.negative_prompt == "..." and request.download is None
    assert read_wan_command_line("", ["--download"]).download == "huggingface"


def test_a_negative_seed_is_drawn_and_told(capsys):
    seeds = [read_wan_command_line("", ["--seed", "-1"]).overrides["seed"] for _ in range(3)]
    assert len(set(seeds)) == 3 and min(seeds) >= 0 and read_wan_command_line("", ["--seed", "0"]).overrides["seed"] == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [f"warning: --seed -1: {seed} was drawn; give it to make the same again" for seed in seeds]


STAND_IN = '#!/bin/bash\nprintf \'%s\\n\' "$CONCAT_ID_ENTERED" "$@" >"$CALLS"\n'


def start(*command, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONCAT_ID", "PYTHON"))} | variables
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_help_reads_well_and_names_the_originals_options(infer):
    assert infer("--help", config=()) == (0, "")
    told = " ".join(infer.printed.split())
    names = "image_path prompt output_dir height width num_frames negative_prompt seed num_inference_steps cfg_scale use_tiled use_adaln"
    for words in (*(f"--{name}" for name in names.split()), "--input_file", "--memory", "14.5 GB", "nothing is fetched without it"):
        assert words in told, words


def test_another_interpreter_takes_over(tmp_path):
    python, calls = write_program(tmp_path / "my python", STAND_IN), tmp_path / "calls"
    done = start(SCRIPT, "--prompt", "two words", CONCAT_ID_PYTHON=str(python), CALLS=str(calls))
    assert done.returncode == 0, done.stderr
    assert calls.read_text().splitlines() == ["1", str(SCRIPT), "--prompt", "two words"]
    done = start(SCRIPT, CONCAT_ID_PYTHON=str(tmp_path / "nowhere"))
    assert done.returncode == 2 and "no such program" in done.stderr and done.stderr.count("\n") == 1


def test_an_interpreter_with_the_libraries_stays_and_a_bare_one_asks_for_the_environment(monkeypatch):
    asked = []

    def answer(command, env, **_):
        asked.append(env.get("CONCAT_ID_PYTHON"))
        return subprocess.CompletedProcess(command, 0, stdout=sys.executable)

    monkeypatch.delenv("CONCAT_ID_PYTHON", raising=False)
    monkeypatch.delenv(bootstrap.ENTERED, raising=False)
    monkeypatch.setattr(bootstrap.subprocess, "run", answer)
    bootstrap.enter_environment()
    monkeypatch.setattr(bootstrap, "LIBRARIES", ("no_such_library",))
    bootstrap.enter_environment()
    assert asked == [sys.executable, None]


@pytest.fixture
def bare_project(tmp_path):
    """A copy whose .venv is set up, but for its interpreter, a stand-in that writes down how it was called."""
    root = tmp_path / "my project"
    read = "__init__", "bootstrap", "errors", "startup", "files/__init__", "files/paths", "files/locks"
    modules = (f"sat/concat_id/{name}.py" for name in read)
    for name in ("scripts/setup.sh", "requirements.txt", "inference_wan.py", *modules):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in ("face_detector", "face_recognizer"):
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "README.md").touch()
    write_program(root / ".venv" / "bin" / "python", STAND_IN)
    checksum = subprocess.run(["cksum"], input=(root / "requirements.txt").read_bytes(), capture_output=True, check=True).stdout
    (root / ".venv" / ".installed-base").write_bytes(checksum)
    return root


def test_a_bare_python_goes_on_in_the_projects_environment(bare_project, tmp_path):
    script, calls = bare_project / "inference_wan.py", tmp_path / "calls"
    done = start("-S", script, "--seed", "3", CALLS=str(calls))  # -S: no installed libraries
    assert (done.returncode, done.stderr) == (0, "")
    assert calls.read_text().splitlines() == ["1", str(script), "--seed", "3"]
    calls.unlink()
    (bare_project / ".venv" / ".installed-base").unlink()
    (bare_project / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    done = start("-S", script, CALLS=str(calls))
    assert done.returncode == 2 and "installing" in done.stderr and "Traceback" not in done.stderr
    assert not calls.exists()


def test_any_other_script_goes_on_there_too_or_says_what_lacks(bare_project, tmp_path):
    script, calls = bare_project / "sat" / "script.py", tmp_path / "calls"
    script.write_text("from concat_id.startup import run\nrun(lambda: __import__('torch'))\n")
    done = start("-S", script, "two words", CALLS=str(calls))
    assert (done.returncode, done.stderr) == (0, "")
    assert calls.read_text().splitlines() == ["", str(script), "two words"]
    (bare_project / ".venv" / ".incomplete").touch()  # while a part is added
    assert start("-S", script, CALLS=str(calls)).returncode == 0
    (bare_project / ".venv" / ".installed-base").unlink()
    for variables in ({"CONCAT_ID_PYTHON": sys.executable}, {}):
        done = start("-S", script, CALLS=str(calls), **variables)
        assert done.returncode == 2 and "torch: not installed" in done.stderr and done.stderr.count("\n") == 1, done.stderr
