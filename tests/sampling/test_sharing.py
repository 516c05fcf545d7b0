"""One video by several processes, as by one; who cannot take part, and one that dies."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, assert_close
from in_process import refused
from tiny_model import write_transformer

from concat_id.config.loading import load_config
from concat_id.sampling.sharing import way_of_sharing

SHORT = {"num_inference_steps": 3, "parallel": "video"}
CACHED = SHORT | {"num_inference_steps": 8, "cache_threshold": 0.5}
UNEVEN = SHORT | {"sampling_num_frames": 2, "sampling_image_size": [48, 32]}  # 18 tokens of frames and one reference
HEADS = 4


@pytest.fixture(scope="module")
def files(tiny_model, tiny_wan, tmp_path_factory) -> dict[str, list[str]]:
    """Both backbones with four heads, and one with three."""
    folder = tmp_path_factory.mktemp("four_heads")
    config = load_config([ROOT / "configs/debug.yaml"]).model.transformer
    write_transformer(folder / "transformer", dataclasses.replace(config, num_attention_heads=HEADS))
    model = {"model": {"transformer": {"num_attention_heads": HEADS}}}
    (folder / "cogvideox.yaml").write_text(yaml.safe_dump(model | {"args": {"load": str(folder / "transformer")}}))
    (folder / "wan.yaml").write_text(yaml.safe_dump(model))
    (folder / "wan3.yaml").write_text(yaml.safe_dump({"model": {"transformer": {"num_attention_heads": 3}}}))
    own = {"cogvideox": ("debug", tiny_model), "wan": ("wan_mini", tiny_wan), "wan3": ("wan_mini", tiny_wan)}
    return {name: [f"{ROOT}/configs/{base}.yaml", str(paths), f"{folder}/{name}.yaml"] for name, (base, paths) in own.items()}


def sampled(folder: Path, cases: dict, processes: int, check: bool = True) -> dict[str, torch.Tensor] | subprocess.CompletedProcess:
    """Latents of the cases, made by so many processes."""
    (folder / "cases.json").write_text(json.dumps(cases))
    script = [str(ROOT / "tests/sampling/share_videos.py"), str(folder / "cases.json"), str(folder / f"{processes}.pt")]
    launch = [str(ROOT / "sat/concat_id/processes.py"), "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'sat'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launch, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    if not check:
        return done
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(folder / f"{processes}.pt")


def test_several_processes_make_the_video_of_one(files, tmp_path):
    names = "cogvideox", "wan"
    shared = {f"{name}, {people} people": [files[name], SHORT, people] for name in names for people in (1, 3)}
    shared |= {f"{name}, uneven": [files[name], UNEVEN, 1] for name in names}
    shared |= {cache: [files[name], CACHED | {"cache": cache}, 1] for name, cache in zip(names, ("first_block", "mag"), strict=True)}
    guided = {"three heads": [files["wan3"], SHORT, 1]}
    guided |= {"SAT's": [files["cogvideox"], SHORT | {"parallel": "guidance"}, 2], "Wan's": [files["wan"], SHORT | {"parallel": "auto"}, 1]}
    expected = sampled(tmp_path, shared | guided, 1)
    assert all(torch.isfinite(latents).all() and latents.std() > 0.1 for latents in expected.values())
    for processes, cases in ((2, shared | guided), (4, shared)):
        for name, latents in sampled(tmp_path, cases, processes).items():
            assert_close(latents, expected[name], 1e-5, f"{processes} processes, {name}")


@pytest.mark.parametrize("processes, overrides, expected", [
    (8, {"parallel": "video"}, "--parallel video: found 8 processes for 2 heads of attention, expected 2; set NPROC_PER_NODE"),
    (3, {"parallel": "guidance"}, "--parallel guidance: found 3 processes for 2 branches of guidance, expected a number that divides them"),
    (2, {"parallel": "guidance", "guidance_scale": 1}, "found 2 processes for 1 branches"),
    (4, {"parallel": "auto"}, "take --parallel video"),
])  # fmt: skip
def test_numbers_that_do_not_fit_are_told_before_weights_are_read(monkeypatch, processes, overrides, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    refused(expected, lambda: way_of_sharing(load_config([ROOT / "configs/debug.yaml"], overrides)))


@pytest.mark.parametrize("processes, overrides, way", [
    (1, {"parallel": "video"}, None), (2, {}, None), (2, {"parallel": "auto"}, "guidance"),
    (2, {"parallel": "auto", "guidance_scale": 1, "network": "diffusers"}, "video"),
    (3, {"parallel": "auto", "ref_guidance_scale": [2]}, "guidance"),
])  # fmt: skip
def test_auto_shares_what_needs_the_least_exchange(monkeypatch, processes, overrides, way):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert way_of_sharing(load_config([ROOT / "configs/debug.yaml"], overrides)) == way


def test_a_process_that_dies_ends_the_others(files, tmp_path):
    start = time.monotonic()
    done = sampled(tmp_path, {"killed": [files["cogvideox"], SHORT, 1]}, 2, check=False)
    assert done.returncode and time.monotonic() - start < 60
    assert "Traceback" not in done.stderr and not (tmp_path / "2.pt").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: process")]  # of the one that is left and of the starter
    assert 1 <= len(lines) <= 2, done.stderr


def test_a_mistake_is_told_once_by_many_processes(tmp_path):
    command = ["bash", "inference_single_identity.sh", "--parallel", "guidance", "--guidance_scale", "1", "--ref_guidance_scale", "1"]
    command += ["--prompt", "a man", "--image", "examples/people/anna.png", "--output", str(tmp_path)]
    environment = os.environ | {"NPROC_PER_NODE": "2", "CONCAT_ID_PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "found 2 processes for 1 branches of guidance" in line
