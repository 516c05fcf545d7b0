"""The inference launchers, with a stand-in for Python that writes down how it was called."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

STAND_IN = """#!/bin/bash
printf '%s\\n' "$@" >"$CALLS"
printf '%s\\n' "$PYTHONPATH" "$PYTHONSAFEPATH" >"$CALLS.environment"
exit "${STAND_IN_EXIT:-0}"
"""
TEXT_ENCODER = ["config.json", "spiece.model", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FETCH = "modelscope download --model yongzhong/Concat-ID --local_dir models"


class Project:
    """A copy of the launchers in a folder with a space; its weights are empty files."""

    def __init__(self, folder):
        """Lay the files out under `folder`."""
        self.folder, self.root, self.calls = folder, folder / "my project", folder / "calls"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("inference_single_identity.sh", "inference_two_identities.sh"):
            shutil.copy(ROOT / name, self.root)
        self.add("models/face_detector/README.md")
        self.add("models/face_recognizer/README.md")
        self.program("python", STAND_IN)

    def add(self, *names, content=""):
        """Make files, with the folders they are in."""
        for name in names:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(content)

    def add_weights(self, kind="single-identity"):
        """Make everything CogVideoX-5B needs."""
        self.add("models/vae/3d-vae.pt", f"models/{kind}/1000/mp_rank_00_model_states.pt")
        self.add(f"models/{kind}/latest", content="1000\n")
        self.add(*(f"models/t5-v1_1-xxl/{name}" for name in TEXT_ENCODER))

    def program(self, name, text):
        """Put a program on the PATH."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *arguments, launcher="single_identity", start=None, **variables):
        """Start a launcher from another folder; returns (exit code, stderr, arguments of the stand-in or None)."""
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "CONCAT_ID_PYTHON": str(self.folder / "bin" / "python"),
            "CALLS": str(self.calls), "CUDA_VISIBLE_DEVICES": "", **variables,
        }  # fmt: skip
        if "NPROC_PER_NODE" not in variables:
            environment.pop("NPROC_PER_NODE", None)
        self.calls.unlink(missing_ok=True)
        command = [*(start or ["bash", str(self.root / f"inference_{launcher}.sh")]), *arguments]
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=600)
        self.output = done.stdout
        return done.returncode, done.stderr, self.calls.read_text().split("\n")[:-1] if self.calls.exists() else None

    def command(self, *configs):
        """What sat/sample_video.py is called with for these files of configs/."""
        return [f"{self.root}/sat/sample_video.py", "--base", *(f"{self.root}/configs/{name}" for name in configs)]


@pytest.fixture
def project(tmp_path):
    """A project with launchers and without weights."""
    return Project(tmp_path)


@pytest.mark.parametrize("kind", ["single_identity", "two_identities"])
def test_without_weights_the_demonstration_model_runs_under_a_banner(project, kind):
    code, said, called = project.run("--seed", "7", "--prompt", "two words", launcher=kind)
    assert code == 0
    assert called == [*project.command("mini.yaml", f"inference/mini_{kind}.yaml"), "--seed", "7", "--prompt", "two words"]
    assert len(said.splitlines()) == 2 and "96x144 demonstration model" in said and f"pip install modelscope && {FETCH}" in said


@pytest.mark.parametrize("kind", ["single_identity", "two_identities"])
def test_complete_weights_run_5b_without_a_banner(project, kind):
    project.add_weights(kind.replace("_", "-"))
    assert project.run(launcher=kind) == (0, "", project.command("cogvideox_5b.yaml", f"inference/inference_{kind}.yaml"))


@pytest.mark.parametrize("absent", [
    "models/vae/3d-vae.pt", "models/single-identity/latest", "models/single-identity/1000/mp_rank_00_model_states.pt",
    "models/t5-v1_1-xxl/spiece.model", "models/t5-v1_1-xxl/config.json", "models/t5-v1_1-xxl/model-00001-of-00002.safetensors",
    "models/t5-v1_1-xxl/model-00002-of-00002.safetensors",
])  # fmt: skip
@pytest.mark.parametrize("arguments", [(), ("--model", "cogvideox_5b")])
def test_half_present_weights_are_an_error_that_names_what_is_missing(project, absent, arguments):
    project.add_weights()
    (project.root / absent).unlink()
    code, said, called = project.run(*arguments)
    assert code == 2 and called is None
    assert len(said.splitlines()) == 1 and f"lacks {absent} in" in said and FETCH in said


def test_everything_missing_is_listed(project):
    code, said, _ = project.run("--model=cogvideox_5b")
    assert code == 2
    for name in ("single-identity/latest", "vae/3d-vae.pt", "t5-v1_1-xxl/config.json", "t5-v1_1-xxl/*.safetensors"):
        assert f"models/{name}" in said
    project.add_weights("two-identities")
    assert "lacks models/single-identity/latest in" in project.run()[1]


def test_model_decides(project):
    project.add_weights()
    assert project.run("--model", "mini") == (0, "", project.command("mini.yaml", "inference/mini_single_identity.yaml"))
    for name in ("cogvideox_5b", "cogvideox_2b"):
        assert project.run(f"--model={name}")[2] == project.command(f"{name}.yaml", "inference/inference_single_identity.yaml")
    code, said, called = project.run("--model", "cogvideox_7b")
    assert (code, called) == (2, None) and "found cogvideox_7b, expected mini, cogvideox_5b or cogvideox_2b" in said
    assert project.run("--model")[0] == 2


def test_own_checkpoint_stands_in_for_the_released_one(project):
    project.add_weights()
    (project.root / "models/single-identity/latest").unlink()
    code, _, called = project.run("--load", "my/run")
    assert code == 0 and called == [*project.command("cogvideox_5b.yaml", "inference/inference_single_identity.yaml"), "--load", "my/run"]


def test_own_base_replaces_the_launchers(project):
    code, said, called = project.run("--seed", "1", "--base", "a.yaml", "b c.yaml", "--fps", "4")
    assert (code, said) == (0, "")
    assert called == [f"{project.root}/sat/sample_video.py", "--base", "a.yaml", "b c.yaml", "--seed", "1", "--fps", "4"]
    assert project.run("--base")[0] == 2
    assert "found both" in project.run("--base", "a.yaml", "--model", "mini")[1]


def test_a_link_to_a_launcher_and_another_shell_will_do(project):
    """Called through links from other folders, and by `sh`, which need not be Bash."""
    launcher, links = project.root / "inference_single_identity.sh", project.folder / "links"
    links.mkdir()
    (links / "first").symlink_to(launcher)
    (links / "second").symlink_to("first")
    shell = next(name for name in ("dash", "sh") if shutil.which(name))
    for start in (["bash", str(links / "second")], [shell, str(launcher)], [shell, str(links / "first")]):
        assert project.run("--model", "mini", start=start)[::2] == (0, project.command("mini.yaml", "inference/mini_single_identity.yaml"))


def test_python_is_told_to_run_nothing_of_the_working_folder(project):
    assert project.run("--model", "mini", PYTHONPATH=":/own modules::/b*:")[0] == 0
    assert project.calls.with_name("calls.environment").read_text() == f"{project.root}/sat:/own modules:/b*\n1\n"


def test_bash_reads_what_git_checks_out():
    """No carriage returns, whatever the user's settings are."""
    for file in (*ROOT.glob("*.sh"), *ROOT.glob("*/*.sh"), ROOT / ".ci" / "run"):
        told = subprocess.run(["git", "check-attr", "eol", str(file)], cwd=ROOT, capture_output=True, text=True)
        assert told.stdout.endswith("eol: lf\n") or told.returncode, file
        assert b"\r" not in file.read_bytes()


def test_exit_code_is_passed_through(project):
    assert project.run("--model", "mini", STAND_IN_EXIT="3")[0] == 3


def test_help_names_the_launchers_options_then_those_of_the_script(project):
    code, _, called = project.run("--help")
    assert code == 0 and called == [f"{project.root}/sat/sample_video.py", "--help"]
    assert "--model" in project.output and "NPROC_PER_NODE" in project.output
    code, _, called = project.run("--help", CONCAT_ID_PYTHON="")
    assert code == 0 and called is None and "bash scripts/setup.sh" in project.output


def test_processes_follow_the_visible_gpus(project):
    project.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a'; echo 'GPU 1: b'; echo 'GPU 2: c'\n")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    assert project.run("--model", "mini", CUDA_VISIBLE_DEVICES="0,2")[2][:5] == [*torchrun, "2"]
    assert project.run("--model", "mini", CUDA_VISIBLE_DEVICES="1")[2][0].endswith("sample_video.py")
    assert project.run("--model", "mini", CUDA_VISIBLE_DEVICES="")[2][0].endswith("sample_video.py")
    assert project.run("--model", "mini", NPROC_PER_NODE="4")[2][:5] == [*torchrun, "4"]
    assert project.run("--model", "mini", CUDA_VISIBLE_DEVICES="0,1", NPROC_PER_NODE="1")[2][0].endswith("sample_video.py")
    assert project.run("--model", "mini", NPROC_PER_NODE="two")[0] == 2
