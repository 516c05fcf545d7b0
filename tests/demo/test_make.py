"""demo/make.sh: its options, and the commands that it starts, in order."""

import os
import subprocess

import pytest
from conftest import ROOT
from in_process import write_program

STUB = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
for word in "$@"; do
    case "$1 $option" in
        *"render_people.py --output") mkdir -p "$word"; echo '"split": "train"' | tee "$word/clips.json" >"$word/stills.json" ;;
        "-m --target") mkdir -p "$word" ;;
    esac
    option="$word"
done
"""


@pytest.fixture
def make(tmp_path):
    """Start the script with a stand-in for Python; returns (exit code, standard error, the calls of Python)."""
    python, calls = write_program(tmp_path / "python", STUB), tmp_path / "calls"

    def start(*options: object) -> tuple[int, str, list[str]]:
        calls.write_text("")
        command = ["bash", ROOT / "demo" / "make.sh", "--data", tmp_path / "data", *map(str, options)]
        environment = os.environ | {"CONCAT_ID_PYTHON": str(python), "CALLS": str(calls)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.returncode, done.stderr, calls.read_text().splitlines()

    return start


def test_a_gpu_needs_no_set_up(make, tmp_path):
    code, errors, calls = make("--gpu-minutes", 9, "--scale", "1/200")
    assert code == 0, errors
    assert calls[-1] == f"demo/gpu_run.py --output {tmp_path}/data --minutes 9 --scale 1/200" and len(calls) <= 2


def test_evaluation_measures_videos_of_people_who_are_all_for_the_test(make, tmp_path):
    code, errors, calls = make("--evaluate", "--people", 4)
    assert code == 0, errors
    scripts = [call.split()[0] for call in calls if call.startswith(("demo", "sat"))]
    assert scripts == 2 * ["demo/render_people.py", "demo/render_people.py", "sat/prepare_clips.py", "sat/make_pairs.py",
                           "sat/sample_video.py", "sat/evaluate_identity.py"]  # fmt: skip
    assert "--people 6 " in calls[0] and all("--near" in call for call in calls[:2]) and "--test_people 4" in calls[3]
    assert "--size 128 192" in calls[6] and "test_prompts_2.txt" in calls[10]
    assert "test" in (tmp_path / "data" / "test" / "2" / "images" / "stills.json").read_text()
    assert f"{tmp_path}/data/model/vae/3d-vae.pt" in (tmp_path / "data" / "weights.yaml").read_text()


def test_mistakes_are_told_in_a_line(make):
    for options, text in (([], "neither --gpu-minutes nor --evaluate"), (["--evaluate", "--people", "1"], "--people: found 1"),
                          (["--poeple", "3"], "unknown option"), (["--scale"], "--scale: found nothing")):  # fmt: skip
        code, errors, calls = make(*options)
        assert code == 2 and text in errors and len(errors.splitlines()) == 1 and not calls
    assert "--evaluate" in subprocess.run(["bash", ROOT / "demo" / "make.sh", "--help"], capture_output=True, text=True).stdout
