"""The launchers, with a stand-in for Python that runs concat_id/launch.py and writes down what that starts."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from in_process import write_program

STAND_IN = f"""#!/bin/bash
case "$1" in */launch.py) exec {shlex.quote(sys.executable)} "$@";; -c) exit "${{LACKS_LIBRARIES:-0}}";; esac
printf '%s\\n' "$@" >"$CALLS"
printf '%s\\n' "$PYTHONPATH" "$PYTHONSAFEPATH" "$PYTHONUTF8" >"$CALLS.environment"
exit "${{STAND_IN_EXIT:-0}}"
"""
ROOMS = "models", "training", "sampling", "evaluation", "curation", "conversion", "face", "data", "diffusion"  # not read before set-up
LAUNCHERS = ["inference_single_identity", "inference_two_identities", "finetune_single_identity", "finetune_two_identities"]


class Project:
    """A copy of the launchers in a folder with a space and letters that not every locale has, without weights."""

    def __init__(self, folder):
        """Lay the files out under `folder`."""
        self.folder, self.root, self.calls = folder, folder / "my 项目", folder / "calls"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        rooms = shutil.ignore_patterns("__pycache__", *ROOMS)
        shutil.copytree(ROOT / "sat" / "concat_id", self.root / "sat" / "concat_id", ignore=rooms)
        for launcher in LAUNCHERS:
            shutil.copy(ROOT / f"{launcher}.sh", self.root)
        for name in ("face_detector", "face_recognizer"):
            (self.root / "models" / name).mkdir(parents=True)
            (self.root / "models" / name / "README.md").touch()
        write_program(folder / "bin" / "python", STAND_IN)

    def run(self, *arguments, launcher="inference_single_identity", start=None, **variables):
        """Start a launcher from another folder; returns (exit code, stderr, arguments of the stand-in or None)."""
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "CONCAT_ID_PYTHON": str(self.folder / "bin" / "python"),
            "CALLS": str(self.calls), "CUDA_VISIBLE_DEVICES": "", **variables,
        }  # fmt: skip
        for name in {"NPROC_PER_NODE", "MASTER_PORT"} - variables.keys():
            environment.pop(name, None)
        self.calls.unlink(missing_ok=True)
        command = [*(start or ["bash", str(self.root / f"{launcher}.sh")]), *arguments]
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=600)
        self.output = done.stdout
        return done.returncode, done.stderr, self.calls.read_text().split("\n")[:-1] if self.calls.exists() else None

    def torchrun(self):
        """What starts several processes."""
        return [f"{self.root}/sat/concat_id/processes.py", "--nproc_per_node"]

    def script(self, name="sample_video"):
        """What is started."""
        return f"{self.root}/sat/{name}.py"


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_options_are_passed_on(project, launcher):
    kind, _, task = launcher.partition("_")
    rest = ["--resume"] if kind == "finetune" else ["--prompt", "two words"]
    code, said, called = project.run("--seed", "7", *rest, launcher=launcher)
    script = project.script("train_video" if kind == "finetune" else "sample_video")
    assert (code, said, called) == (0, "", [script, "--seed", "7", *rest, "--task", task])


def test_mistakes_are_told_before_anything_is_set_up(project):
    for arguments, part in (
        (["--model", "cogvideox_5b"], "lacks models/single-identity/latest"),
        (["--seeed", "3"], "the nearest is --seed"),
        (["--base", "a", "--model", "mini"], "found both"),
    ):  # fmt: skip
        code, said, called = project.run(*arguments, CONCAT_ID_PYTHON="")
        assert (code, called, len(said.splitlines())) == (2, None, 1) and part in said, said
    code, said, called = project.run("--seed", "1", "--base", "a.yaml", "b c.yaml", "--sampling_fps", "4")
    assert (code, said) == (0, "")
    assert called == [project.script(), "--seed", "1", "--base", "a.yaml", "b c.yaml", "--sampling_fps", "4"]


def test_a_link_to_a_launcher_and_another_shell_will_do(project):
    """Called through links from other folders, and by `sh`, which need not be Bash."""
    launcher, links = project.root / "inference_single_identity.sh", project.folder / "links"
    links.mkdir()
    (links / "first").symlink_to(launcher)
    (links / "second").symlink_to("first")
    shell = next(name for name in ("dash", "sh") if shutil.which(name))
    for start in (["bash", str(links / "second")], [shell, str(links / "first")]):
        assert project.run("--model", "mini", start=start)[2][0] == project.script()


def test_python_is_told_to_run_nothing_of_the_working_folder_and_its_exit_code_is_passed_on(project):
    assert project.run("--model", "mini", PYTHONPATH=":/own modules::/b*:", STAND_IN_EXIT="3")[0] == 3
    assert project.calls.with_name("calls.environment").read_text() == f"{project.root}/sat:/own modules:/b*\n1\n1\n"


def test_a_locale_that_is_not_utf_8_will_do(project):
    started = [project.script(), "--model", "mini", "--task", "single_identity"]
    write_program(own := project.folder / "项" / "python", STAND_IN)
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "CONCAT_ID_PYTHON": str(own)}
    assert project.run("--model", "mini", **ascii) == (0, "", started)


def test_a_path_that_pythonpath_cannot_hold_is_told(tmp_path):
    project = Project(tmp_path / "a:b")
    told = f"error: {project.root}: found ':' in the project's path, which PYTHONPATH cannot hold; move the folder\n"
    assert project.run("--model", "mini") == (2, told, None)


def test_bash_reads_what_git_checks_out():
    """No carriage returns, whatever the user's settings are."""
    for file in (*ROOT.glob("*.sh"), *ROOT.glob("*/*.sh"), ROOT / ".ci" / "run"):
        told = subprocess.run(["git", "check-attr", "eol", str(file)], cwd=ROOT, capture_output=True, text=True)
        assert told.stdout.endswith("eol: lf\n") or told.returncode, file
        assert b"\r" not in file.read_bytes()


def test_help_needs_no_set_up(project):
    for launcher, words in (("inference_single_identity", ["NPROC_PER_NODE"]), ("finetune_two_identities", ["NODE_RANK", "--lr"])):
        code, _, called = project.run("--help", launcher=launcher, CONCAT_ID_PYTHON="", PYTHONHOME="/of/another/python")
        assert (code, called) == (0, None)
        assert all(word in project.output for word in ["--model", f"bash {launcher}.sh", *words])


def test_processes_follow_the_visible_gpus(project):
    write_program(project.folder / "bin" / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: a'; echo 'GPU 1: b'; echo 'GPU 2: c'\n")
    assert project.run("--model", "mini", CUDA_VISIBLE_DEVICES="0,2")[2][:4] == [*project.torchrun(), "2", "--standalone"]
    assert project.run("--model", "mini", CUDA_VISIBLE_DEVICES="1")[2][0] == project.script()
    assert project.run("--model", "mini", CUDA_VISIBLE_DEVICES="0,1", NPROC_PER_NODE="1")[2][0] == project.script()
    assert project.run("--model", "mini", NPROC_PER_NODE="two")[0] == 2
    write_program(project.folder / "bin" / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: a'; echo '  MIG 1g.10gb Device 0: b'; echo 'GPU 1: c'\n")
    for chosen in ({}, {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}):
        assert project.run("--model", "mini", **chosen)[2][0] == project.script()


def test_several_machines_meet_at_the_first(project):
    several = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "NPROC_PER_NODE": "8", "launcher": "finetune_single_identity"}
    place = ["--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29500"]
    assert project.run(**several)[2][:13] == [*project.torchrun(), "8", "--shutdown-timeout", "600", *place]
    code, said, called = project.run(**several | {"MASTER_ADDR": ""})
    assert (code, called) == (2, None) and said.startswith("error: MASTER_ADDR: ") and len(said.splitlines()) == 1


def test_an_interpreter_without_the_libraries_is_told(project):
    code, said, called = project.run(launcher="finetune_single_identity", LACKS_LIBRARIES="1")
    assert (code, called, len(said.splitlines())) == (2, None, 1) and "deepspeed" in said


def test_a_torch_that_is_too_old_is_told_before_anything_else(project):
    """By a launcher, though not where .venv takes the place of what starts it, and by a script."""
    script = [sys.executable, str(ROOT / "sat" / "doctor.py")]
    for found, library, oldest in (("2.5.1+cu124", "diffusers", "2.6"), ("2.10.0", "torchao", "2.11"), ("2.11.0", "torchao", "")):
        for name, number in {"torch": found, library: "0.18.0"}.items():
            write_program(project.folder / found / f"{name}-{number}.dist-info" / "METADATA", f"Name: {name}\nVersion: {number}\n")
        for start in (None, script) if oldest else (None,):
            code, said, called = project.run("--model", "mini", start=start, PYTHONPATH=str(project.folder / found), PYTHONSAFEPATH="")
            if oldest:
                assert (code, called, len(said.splitlines())) == (2, None, 1), said
                assert f"torch: found {found}, expected {oldest} or newer beside {library}" in said
            else:
                assert (code, said) == (0, "")
        assert project.run("--help", CONCAT_ID_PYTHON="", PYTHONPATH=str(project.folder / found))[0] == 0
