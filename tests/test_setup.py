"""scripts/setup.sh with a stand-in for Python: when it installs, what it installs, and what it does when that goes wrong."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest
from conftest import ROOT
from in_process import write_program

from concat_id.bootstrap import OLDEST_TORCH, parts_for
from concat_id.doctor.software import PIN

STAND_IN = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$*" in
    *ensurepip*) exit "${NO_VENV:-0}" ;;
    *'print("python'*) echo python3.11-venv ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"-m pip install"*) echo "pip says hello"; cat "${!#}" >>"$CALLS"; sleep "${PIP_SECONDS:-0}"; exit "${PIP_EXIT:-0}" ;;
    *"convert_weights.py face-models"*) mkdir -p "$4"/face_{detector,recognizer} && touch "$4"/face_{detector,recognizer}/README.md ;;
esac
"""
REQUIREMENTS = "torch==1  # why\ninsightface==2  # alone: why\nwandb==3  # training\nanny==5  # people\nray==6  # ray\n"
REQUIREMENTS += "timm==6  # neighbours: why\nfacexlib==7  # neighbours, alone: why\n"


class Tree:
    """A copy of the project's set-up in a folder with a space, and a PATH whose Python is the stand-in."""

    def __init__(self, folder):
        """Lay the files out under `folder`."""
        self.root, self.calls_file = folder / "my tree", folder / "calls"
        for name in ("scripts", "tests", "sat"):
            (self.root / name).mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup.sh", self.root / "scripts")
        (self.root / "requirements.txt").write_text(REQUIREMENTS)
        (self.root / "tests" / "requirements.txt").write_text("pytest==4\n")
        self.python = write_program(folder / "bin" / "python3.11", STAND_IN)
        self.elsewhere = folder

    def start(self, *parts, **variables):
        """Start the set-up from another folder."""
        environment = {k: v for k, v in os.environ.items() if k != "CONCAT_ID_PYTHON"}
        environment |= {"PATH": f"{self.python.parent}:{os.environ['PATH']}", "CALLS": str(self.calls_file), **variables}
        command = ["bash", str(self.root / "scripts" / "setup.sh"), *parts]
        return subprocess.Popen(command, env=environment, cwd=self.elsewhere, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, *parts, **variables):
        """Set up; returns (exit code, what was said, what the stand-in was called with)."""
        self.calls_file.write_text("")
        process = self.start(*parts, **variables)
        said = process.communicate(timeout=600)[1]
        return process.returncode, said, self.calls_file.read_text()


@pytest.fixture
def tree(tmp_path):
    """A project in which nothing is set up yet."""
    return Tree(tmp_path)


def test_installs_once_then_is_quiet(tree):
    code, said, calls = tree.run()
    assert code == 0 and "hello" not in said and len(said.splitlines()) <= 3
    first, alone = calls.split("--no-deps")
    assert "torch==1" in first and "insightface" not in first
    assert "insightface==2" in alone and "torch" not in alone
    assert "wandb" not in calls and "pytest==4" not in calls
    assert (tree.root / "models" / "face_detector" / "README.md").exists()
    assert tree.run() == (0, "", "")


PARTS = [("training", "wandb==3", "anny==5"), ("people", "anny==5", "ray==6"), ("ray", "ray==6", "anny==5"),
         ("tests", "pytest==4", "wandb==3")]  # fmt: skip


@pytest.mark.parametrize("part, line, other", PARTS)
def test_a_part_brings_its_own_lines_and_nothing_twice(tree, part, line, other):
    assert line not in tree.run()[2]
    code, said, calls = tree.run(part)
    assert said.startswith(f"Adding {part} to .venv (details") and "Setting up" not in said
    assert code == 0 and line in calls and other not in calls and "torch==1" not in calls and "--no-deps" not in calls
    assert tree.run(part) == (0, "", "")


def test_a_part_may_have_lines_that_come_alone(tree):
    assert "facexlib" not in tree.run()[2]
    first, alone = tree.run("neighbours")[2].split("--no-deps")
    assert "timm==6" in first and "facexlib" not in first and "facexlib==7" in alone and "torch" not in alone + first
    assert parts_for(["--model", "consisid"]) == ("neighbours",) and parts_for(["--cache", "dbcache"]) == ("acceleration",)


def test_another_system_is_told_before_pip_starts(tree):
    write_program(tree.python.parent / "uname", "#!/bin/bash\necho Darwin\n")
    assert tree.run() == (2, "error: found Darwin, expected Linux, for which the packages are; on Windows use WSL\n", "")


def test_a_checkout_without_the_recogniser_gets_it(tree):
    tree.run()
    (tree.root / "models" / "face_recognizer" / "README.md").unlink()
    code, _, calls = tree.run()
    assert code == 0 and "face-models" in calls and "pip install" not in calls


def test_changed_requirements_are_installed_into_the_same_venv(tree):
    tree.run()
    (tree.root / "requirements.txt").write_text("torch==2\n")
    code, _, calls = tree.run()
    assert code == 0 and "torch==2" in calls and "-m venv" not in calls and "--no-deps" not in calls
    assert tree.run() == (0, "", "")


def test_failed_install_shows_the_log_and_is_tried_again(tree):
    code, said, _ = tree.run(PIP_EXIT="1")
    assert code == 2 and "pip says hello" in said and "error: installing" in said.splitlines()[-1]
    code, _, calls = tree.run()
    assert code == 0 and "torch==1" in calls and "-m venv" not in calls


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_install_is_made_anew(tree, how):
    process = tree.start(PIP_SECONDS="30")
    while not tree.calls_file.exists() or "torch" not in tree.calls_file.read_text():
        time.sleep(0.05)
    os.killpg(process.pid, how)
    process.communicate(timeout=600)
    assert process.returncode != 0
    leftover = tree.root / ".venv" / "half-written"
    leftover.touch()
    code, _, calls = tree.run()
    assert code == 0 and "-m venv" in calls and "torch==1" in calls and not leftover.exists()


def test_two_at_once_install_once(tree):
    processes = [tree.start(PIP_SECONDS="0.5") for _ in range(2)]
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert tree.calls_file.read_text().count("torch==1") == 1 and sum("Waiting" in text for text in said) == 1


def test_own_interpreter_is_used_as_it_is(tree):
    code, said, calls = tree.run(CONCAT_ID_PYTHON=str(tree.python))
    assert code == 0 and "pip" not in calls and not (tree.root / ".venv").exists()
    assert "face-models" in calls
    code, said, _ = tree.run(CONCAT_ID_PYTHON="/no/such/python")
    assert code == 2 and said.startswith("error: CONCAT_ID_PYTHON=/no/such/python") and len(said.splitlines()) == 1


def test_unfit_machines_are_told_what_to_install(tree):
    code, said, calls = tree.run("--help")
    assert (code, calls) == (2, "") and "found --help, expected nothing or parts of requirements.txt: training, studio" in said
    code, said, _ = tree.run(NO_VENV="1")
    assert code == 2 and "apt install python3.11-venv" in said
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        write_program(tree.python.with_name(name), "#!/bin/sh\nexit 1\n")
    code, said, _ = tree.run()
    assert code == 2 and "no Python 3.11" in said and "CONCAT_ID_PYTHON" in said


def requirements(folder):
    """Lines of a requirements.txt that name a package."""
    return [line for line in (ROOT / folder / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]


def test_requirements_are_pinned_and_marks_are_known():
    lines = requirements(".")
    assert any(re.fullmatch(r"torch==[\d.]+", line) for line in lines)
    assert all("==" in line for line in lines)
    ours, tests = (dict(PIN.match(line).groups()[:2] for line in requirements(folder)) for folder in (".", "tests"))
    assert [name for name in ours.keys() & tests.keys() if ours[name] != tests[name]] == []
    marked = {line.split("==")[0]: line.split("# ")[1].split(":")[0] for line in lines if "# alone" in line or "# training" in line}
    assert {name for name, mark in marked.items() if mark == "alone"} == {"SwissArmyTransformer", "insightface"}
    assert "opencv-python==" not in "\n".join(lines)


def test_requirements_say_how_to_keep_a_torch(tmp_path):
    """By commands, which a pip is given here that writes down what it is asked for."""
    text = (ROOT / "requirements.txt").read_text()
    assert all(f"{major}.{minor} or newer" in text for major, minor in OLDEST_TORCH.values())
    listed = "numpy==1.0 torch==2.6.0+cpu torchaudio==2.6.0 triton==3.2.0"
    pip = f"#!/bin/sh\nif [ $3 = list ]; then printf '%s\\n' {listed}; else cat $5 $7 >asked; fi\n"
    commands = "\n".join(re.findall("^#     (.*)", text, re.MULTILINE)).replace("/tmp/", "")
    commands = commands.replace("/path/to/python", shlex.quote(str(write_program(tmp_path / "python", pip))))
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, check=True)
    asked = [line.split()[0] for line in (tmp_path / "asked").read_text().splitlines() if not line.startswith("#") and line]
    assert asked[:4] == ["torch==2.6.0+cpu", "triton==3.2.0", "torch", "triton"]
    assert any("deepspeed" in line for line in asked) and not any("torchao" in line or "torchvision" in line for line in asked)
