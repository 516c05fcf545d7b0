"""What the doctor says of damaged weights, memory, time and this machine, and how its command ends."""

import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from odd_input import is_told
from tiny_faces import write_arcface

from concat_id import distributed
from concat_id.config import loading
from concat_id.config.loading import load_config
from concat_id.config.presets import files_of
from concat_id.doctor import costs, machine, software, trial
from concat_id.doctor.findings import GIB, NOTE, OK, PROBLEM, Finding, Findings
from concat_id.doctor.machine import Capacity
from concat_id.doctor.training import examine_lists, examine_training
from concat_id.doctor.weight_files import Part, examine, examine_downloads, examine_faces, examine_model, parts_of
from concat_id.errors import UserError
from concat_id.training.memory_plan import measure_sizes, plan
from concat_id.weights.loading import write_sat_checkpoint

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 123\n"
H100 = Capacity(80 * GIB, 128 * GIB)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with small files in the layout of CogVideoX-5B's, all of them whole; the face models are elsewhere."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "models"
    for name in ("single-identity", "two-identities", "vae", "t5-v1_1-xxl", "antelopev2"):
        (root / name).mkdir(parents=True)
    write_sat_checkpoint(root / "single-identity", "1000", {"a": torch.zeros(500)})
    write_sat_checkpoint(root / "two-identities", "1000", {"a": torch.zeros(500)})
    torch.save({"state_dict": {"a": torch.zeros(500)}}, root / "vae" / "3d-vae.pt")
    t5 = root / "t5-v1_1-xxl"
    for name in ("config.json", "spiece.model"):
        (t5 / name).write_text("{}")
    for name in SHARDS:
        safetensors.torch.save_file({name: torch.zeros(500)}, t5 / name)
    (t5 / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: name for name in SHARDS}}))
    (root / "antelopev2" / "det.onnx").write_bytes((ROOT / "models" / "face_detector" / "det.onnx").read_bytes())
    return root


@pytest.mark.parametrize("name", ["consisid", "consistentid"])
def test_a_variant_alone_is_whole(tmp_path, name):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "model.fp16.safetensors")
    part = next(part for part in parts_of(load_config(files_of(name))) if part.what == "text_encoder")
    assert [finding.mark for finding in examine(Part(part.what, str(tmp_path), part.files))] == [OK]


def test_buffalo_holds_a_detector_and_a_recogniser(tmp_path):
    config, folder = load_config(files_of("consistentid")), write_arcface(tmp_path / "buffalo")
    config.model.faces.detector = config.model.faces.recognizer = str(folder)
    for expected in ([PROBLEM, OK], [OK, OK]):
        assert [finding.mark for part in parts_of(config) if part.path == str(folder) for finding in examine(part)] == expected
        shutil.copy(ROOT / "models" / "face_detector" / "det.onnx", folder)
    cut(folder / "det.onnx")
    assert all("found no whole ONNX model" in line for part in parts_of(config) if part.path == str(folder) for line in told(examine(part)))


def test_what_low_rank_weights_alone_need_is_no_problem(monkeypatch):
    monkeypatch.setattr(software, "_installed", lambda name: "" if name == "peft" else "1")
    assert "note for neighbours: lacks peft" in " ".join(told(software.look_at_packages(("", "neighbours"))))


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def told(findings) -> list[str]:
    return [f"{each.mark} {each.what}: {each.found} -> {each.advice}" for each in findings]


def test_whole_weights_are_whole(models):
    findings = examine_model("cogvideox_5b", True)
    assert {finding.mark for finding in findings} == {OK} and len(findings) == 4
    assert "models/t5-v1_1-xxl: whole, 3 files of" in told(findings)[1]
    assert told(examine_model("cogvideox_5b", False))[0].startswith("ok cogvideox_5b: whole")
    assert told(examine_faces(load_config(files_of("mini"))))[0].startswith("ok detector: models/antelopev2: whole")
    config = load_config(files_of("cogvideox_5b"))
    assert told(examine_faces(config))[-1].partition(" -> ")[2].startswith("hf download jonathandinu/face-parsing --include"), "it alone"
    config.model.faces.parser = "./models/mini/gone"
    assert told(examine_faces(config))[-1].endswith("an oval around the head takes its place -> git checkout models/mini")


def test_without_onnx_the_other_parts_are_told(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "without the package onnx" in " ".join(told(examine_faces(load_config(files_of("mini")))))


def test_each_damage_is_one_line(models):
    checkpoint = models / "single-identity" / "1000" / "mp_rank_00_model_states.pt"
    for path in (checkpoint, models / "t5-v1_1-xxl" / SHARDS[0], models / "antelopev2" / "det.onnx"):
        cut(path)
    (models / "t5-v1_1-xxl" / SHARDS[2]).unlink()
    (models / "vae" / "3d-vae.pt").write_bytes(POINTER)
    (models / "two-identities" / "latest").unlink()
    (models / "vae" / "3d-vae.pt.incomplete").touch()
    lines = told([*examine_model("cogvideox_5b", True), *examine_faces(load_config(files_of("mini"))), *examine_downloads()])
    expected = {
        "mp_rank_00_model_states.pt: found a truncated": "download it again", SHARDS[0] + ": found a truncated": "download it again",
        f"names 3 files, of which {SHARDS[2]} are missing": "download", "3d-vae.pt: found a git-lfs pointer": "git lfs pull",
        "expected a file 'latest'": "download", "det.onnx: found no whole ONNX model": "download it again",
        "models/vae: 1 unfinished": "remove",
    }  # fmt: skip
    for text, advice in expected.items():
        (line,) = [line for line in lines if text in line]
        assert advice in line.rpartition(" -> ")[2] and "\n" not in line
    assert sum(line.startswith("problem") for line in lines) == len(expected) - 1
    assert "modelscope download" in next(line for line in lines if "to mend" in line)


def record(folder, file, etag: str) -> None:
    """Write what Hugging Face's downloads to a folder leave in it."""
    path = folder / ".cache" / "huggingface" / "download" / f"{file.relative_to(folder)}.metadata"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{'0' * 40}\n{etag}\n1764225000.5\n")


def flip(path) -> None:
    """Change the last tensor byte, which no header tells of."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_digests_that_downloads_left_tell_damage_that_headers_do_not(models):
    """Of the three shards one is recorded by its SHA-256, one by git's name, and one is a link into the hub's cache."""
    t5 = models / "t5-v1_1-xxl"
    first, second, third = (t5 / name for name in SHARDS)

    def line(digests: bool) -> str:
        return "\n".join(told(each for each in examine_model("cogvideox_5b", True, digests) if each.what == "text encoder"))

    assert line(False).partition(" -> ")[0].endswith(", digest unknown") and line(True) == line(False)
    record(models, first, hashlib.sha256(first.read_bytes()).hexdigest())
    record(t5, second, git_name(second.read_bytes()))
    assert "digest known for 2 of 3 files" in line(False) and "equal to what was downloaded for 2 of 3 files" in line(True)
    blob = models / "hub" / "blobs" / hashlib.sha256(third.read_bytes()).hexdigest()
    blob.parent.mkdir(parents=True)
    third.rename(blob)
    third.symlink_to(blob)
    assert ", digest known -> " in line(False) and ", equal to what was downloaded -> " in line(True)
    for file in (first, second, blob):
        flip(file)
        assert line(False).startswith("ok ")
        (only,) = line(True).splitlines()
        assert only.startswith("problem ") and "damaged: found digest " in only and only.endswith(f"remove {file} and fetch it again")
        flip(file)
    flip(first)
    advice = examine_model("cogvideox_5b", True, True)[-1]
    assert "modelscope download" in advice.advice
    record(models, first, "a0-3")  # an etag of another kind, as other servers have
    assert "for 2 of 3 files" in line(True)


def test_committed_files_and_pointers_are_held_against_git(tmp_path):
    git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    whole, large = tmp_path / "[a].pt", tmp_path / "b.pt"
    torch.save({"a": torch.zeros(500)}, whole)
    large.write_bytes(POINTER.replace(b"sha256:12", f"sha256:{hashlib.sha256(whole.read_bytes()).hexdigest()}".encode()))
    git(["git", "init"])
    git(["git", "add", "."])
    large.write_bytes(whole.read_bytes())  # as git lfs pull does
    part = Part("both", str(tmp_path), lambda folder: sorted(folder.glob("*.pt")))
    assert told(examine(part, True))[0].endswith("equal to what was downloaded -> ")
    flip(whole)
    flip(large)
    assert [finding.mark for finding in examine(part, True)] == [PROBLEM, PROBLEM] and examine(part)[0].mark == OK


def test_what_is_absent_is_a_problem_only_where_it_is_asked_for(models):
    (models / "vae" / "3d-vae.pt").unlink()
    assert "problem autoencoder: models/vae/3d-vae.pt: not here" in "\n".join(told(examine_model("cogvideox_5b", True)))
    assert {finding.mark for finding in examine_model("cogvideox_5b", False)} == {NOTE}
    for name, advice in (("wan_1_3b", "inference_wan.py --download"), ("cogvideox_2b", "--load FOLDER")):
        findings = [*examine_model(name, True), *examine_model(name, False)]
        assert [finding.mark for finding in findings if advice in finding.advice] == [PROBLEM, NOTE]


def test_fix_moves_a_folder_out_of_itself_and_overwrites_nothing(models):
    config = load_config(files_of("mini"))
    outer, inner = models / "antelopev2", models / "antelopev2" / "antelopev2"
    inner.mkdir()
    (outer / "det.onnx").rename(inner / "det.onnx")
    assert "problem detector: models/antelopev2: its files lie too deep" in told(examine_faces(config))[0]
    assert [finding.mark for finding in trial.repair([config])] == [OK]
    assert (outer / "det.onnx").exists() and not inner.exists() and next(examine_faces(config)).mark == OK
    assert list(trial.repair([config])) == []


def test_memory_and_time_are_those_measured_on_an_h100(monkeypatch):
    config = load_config(files_of("cogvideox_5b"))
    needed = [mode.numbers["bytes"] / GIB for mode in costs.memory_modes(config, H100)]
    high, high_tiled, balanced, tiled, low, streamed, quantized, smallest = needed
    assert (balanced, tiled) == pytest.approx((25.8, 15.6), rel=0.02) and low < 8 < balanced < high and tiled < high_tiled < high
    assert smallest <= low <= streamed < quantized < 12 < tiled
    for size, flags in ((80, ""), (24, "--memory balanced --tiled_decoding"), (12, "--memory low")):
        assert costs.best_mode("5b", config, Capacity(size * GIB, 64 * GIB), True).advice == flags  # an exact one, where one fits
    assert costs.best_mode("5b", config, Capacity(13 * GIB, 18 * GIB), True).advice.startswith("--quantize int8 --memory balanced")
    assert costs.best_mode("5b", config, Capacity(2 * GIB, 64 * GIB), True).mark == PROBLEM
    assert [finding.mark for finding in costs.memory_modes(config, Capacity(24 * GIB, 64 * GIB))] == [NOTE] * 3 + [OK] * 5
    monkeypatch.setattr(costs, "probe", lambda *_: costs.Speed(779e12, 426e12, 2.9e12))
    low, high = costs.time_of_video("5b", config, torch.device("cuda")).numbers["seconds"]
    assert low < 82.1 < 50 * 1.8 < high < 1.4 * low


def test_probe_and_spans():
    speed = costs.probe(torch.device("cpu"), torch.float32, 64, 2, 300)
    assert min(speed.products, speed.attention, speed.bandwidth) > 1e7
    assert [costs.span(*each) for each in ((0.02, 0.03), (1.2, 1.9), (60, 90), (200, 300))] == [
        "20 to 30 ms", "1.2 to 1.9 s", "60 to 90 s", "3.3 to 5.0 min"]  # fmt: skip


def test_training_is_planned_and_its_lists_are_read(tmp_path):
    lines = told(examine_training("mini", H100, measure_sizes, plan))
    assert lines[0].startswith("ok lists: 10 entries, all opened; 0 problems")
    assert [line[:8] for line in lines[1:]] == ["ok 1 GPU", "ok 4 GPU", "ok 8 GPU"]
    advised = told(examine_training("mini", Capacity(GIB // 8, GIB), measure_sizes, plan))[-1]
    assert advised.startswith("note 8 GPUs") and advised.endswith("python sat/doctor.py --training --model mini --zero 3 --offload")
    (lists := tmp_path / "my list.json").write_text("[1]")
    (own := tmp_path / "own.yaml").write_text(f"args: {{train_data: {str(lists)!r}}}")
    for paths, options, given in (([own], {}, ""), ([], {"train_data": [str(lists)], "valid_data": []}, f"'{lists}' ")):
        config = load_config([*files_of("mini", training=True), *paths], options)
        line = told(examine_lists(config, ["my run.yaml"]))[-1]
        assert line.endswith(f"python sat/check_dataset.py {given}--base 'my run.yaml'")


def test_the_command_plans_training_and_checks_its_lists(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = partial(call, "doctor", "--training", "--model", "mini")
    code, out, err = command("--gpus", 1, 2, "--zero", 1, 3, "--tflops", 2)
    rows = [line.split() for line in out.splitlines() if line.strip() and line.split()[0].isdigit()]
    assert (code, err) == (0, "") and [row[:2] for row in rows] == [["1", "1"], ["2", "1"], ["1", "3"], ["2", "3"]]
    assert "s at 2 TFLOP/s" in out and "ok       lists  10 entries" in out
    told = json.loads(command("--gpus", 2, "--json", "--offload").done)
    (only,) = told["plans"]
    assert only["offload"] and only["peak"] == only["states"] + max(only[name] for name in ("encoding", "network", "update"))
    assert [finding["mark"] for finding in told["lists"]] == [OK]
    (tmp_path / "list.json").write_text('[{"video_path": "gone.mp4", "caption": "a", "image_path": ""}]')
    ended = command("--train_data", tmp_path / "list.json")
    assert ended.code == 1 and "gone.mp4" in ended.out and "GPUs  ZeRO" in ended.out
    assert is_told(ended := call("doctor", "--training", "--base", ROOT / "configs" / "consistentid.yaml"), 2) and "train it" in ended.err
    for options, words in {("--gpus", 0): "--gpus: found '0', expected a whole number from 1", ("--gups", 1): "nearest is --gpus"}.items():
        assert is_told(ended := command(*options), 2) and words in ended.err
    assert "is an option of sat/doctor.py --training" in call("doctor", "--gpus", 2).err


def test_versions_are_held_against_the_pins(monkeypatch):
    pins = dict(found.groups()[:2] for found in map(software.PIN.match, (ROOT / "requirements.txt").read_text().splitlines()) if found)
    monkeypatch.setattr(software, "version", lambda name: {"torch": f"{pins['torch']}+cpu", "numpy": "1.0"}.get(name, ""))
    lines = "\n".join(told(software.look_at_packages()))
    assert f"numpy 1.0 ({pins['numpy']})" in lines and "torch 2" not in lines and "problem missing: lacks triton" in lines
    for processor, reader in (("x86_64", {"decord"}), ("aarch64", {"decord2"})):
        monkeypatch.setattr("platform.machine", lambda processor=processor: processor)
        words = {word.strip(",") for line in told(software.look_at_packages()) for word in line.split()}
        assert words & {"decord", "decord2"} == reader


def test_machine_names_features_and_limits(tmp_path, monkeypatch):
    (tmp_path / "cpu").write_text("model name : Some CPU\nflags : avx2\n")
    (tmp_path / "limit").write_text(f"{GIB}\n")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpu")
    monkeypatch.setattr(machine, "MEMORY_LIMITS", (tmp_path / "limit",))
    lines = told(machine.look_around())
    assert lines[0].startswith("note processor: Some CPU") and "--bf16 auto" in lines[0] and "problem memory: 1.0 GiB" in lines[1]


def test_gpus_are_asked_of_torch(monkeypatch):
    properties = [SimpleNamespace(name="H100", total_memory=size * GIB) for size in (80, 40)]
    stub = SimpleNamespace(device_count=lambda: 2, get_device_properties=properties.__getitem__, mem_get_info=lambda _: (39 * GIB, 0))
    monkeypatch.setattr(torch, "get_device_module", lambda _: stub)
    monkeypatch.setattr(machine, "_listed", lambda: ["H100, 81559 MiB, 570.1"])
    device = iter(["cuda", "cpu"])
    monkeypatch.setattr(distributed, "choose_device", lambda _: torch.device(next(device)))
    capacity, findings = machine.look_for_gpus()
    assert capacity.gpu == 40 * GIB and [finding.mark for finding in findings] == [NOTE, OK]
    assert "driver 570.1" in findings[0].found and "nvidia-smi" in findings[0].advice
    assert "does not see it" in told(machine.look_for_gpus()[1])[0]


def test_old_gpus_are_planned_as_they_compute(call, models, monkeypatch):
    monkeypatch.setattr(trial, "make_tiny_video", lambda: Finding(OK, "mini", "made"))
    monkeypatch.setattr(costs, "probe", lambda *_: costs.Speed(1e12, 1e12, 1e12))

    def refuse(name):
        if name == "auto":
            raise UserError("device: 'cuda' cannot be used (no kernel image); add --device cpu")
        return torch.device("cpu")

    for module in (distributed, loading):
        monkeypatch.setattr(module, "choose_device", refuse)
    ended = call("doctor", "--model", "mini")
    assert ended.code == 1 and "cannot be used" in ended.out and "add --device cpu" in ended.out and "ok       mini  made" in ended.out
    turing = SimpleNamespace(name="RTX 2080 Ti", total_memory=11 * GIB)
    stub = SimpleNamespace(device_count=lambda: 1, get_device_properties=lambda _: turing, mem_get_info=lambda _: (10 * GIB, 0))
    stub.is_bf16_supported = lambda **_: False
    monkeypatch.setattr(torch, "get_device_module", lambda _: stub)
    monkeypatch.setattr(distributed, "choose_device", lambda _: torch.device("cuda"))
    ended = call("doctor", "--model", "cogvideox_5b")
    assert "no bfloat16: --bf16 false --fp16 true" in ended.out and "in attention, float16)" in ended.out


@pytest.mark.parametrize("no_colour, coloured", [("", True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(monkeypatch, capsys, no_colour, coloured):
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    report = Findings()
    report.add("Things", [Finding(PROBLEM, "one", "broken", "mend it")])
    assert report.finish("mini") == 1
    assert ("\033[" in capsys.readouterr().out) == coloured


def test_command_tells_in_plain_lines_and_in_json(call, models, monkeypatch):
    monkeypatch.setattr(trial, "make_tiny_video", lambda: Finding(OK, "mini", "made"))
    monkeypatch.setattr(costs, "probe", lambda *_: costs.Speed(1e12, 1e12, 1e12))
    found = call("doctor").done
    assert "\033" not in found and "mini can run here" in found and "  ok       cogvideox_5b" in found
    cut(models / "vae" / "3d-vae.pt")
    assert call("doctor").code == 0
    ended = call("doctor", "--model", "cogvideox_5b", "--json")
    assert ended.code == 1
    content = json.loads(ended.out)
    problems = [each["what"] for section in content["sections"] for each in section["findings"] if each["mark"] == PROBLEM]
    assert not content["can_run"] and problems == ["autoencoder"]
    assert "equal to what was downloaded" in call("doctor", "--digests").out
    assert "expected one of mini" in call("doctor", "--model", "5b").err
    monkeypatch.setattr(software, "version", lambda name: "")
    assert "  problem  for neighbours" in call("doctor", "--model", "consisid").out and "  note     for neighbours" in call("doctor").out


def test_tiny_video_is_made_by_the_real_script_if_the_weights_are_whole(models, monkeypatch):
    assert trial.make_tiny_video().mark == OK
    monkeypatch.setattr(trial, "PERSON", "gone.png")
    finding = trial.make_tiny_video()
    assert finding.mark == PROBLEM and "gone.png" in finding.found
    (models / "mini" / "vae").mkdir(parents=True)
    (models / "mini" / "vae" / "3d-vae.pt").write_bytes(POINTER)
    assert trial.make_tiny_video().mark == NOTE
