"""The fine-tuning launchers, with a stand-in for Python that writes down how it was called."""

import importlib.util
import shutil

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("inference_launchers", ROOT / "tests" / "test_launchers.py")
inference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inference)
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node"]
GRACE = ["--shutdown-timeout", "600"]


class Project(inference.Project):
    """A copy with the fine-tuning launchers."""

    def __init__(self, folder):
        """Lay the files out under `folder`."""
        super().__init__(folder)
        for name in ("single_identity", "two_identities"):
            shutil.copy(ROOT / f"finetune_{name}.sh", self.root / f"inference_{name}.sh")  # where `run` looks

    def command(self, *configs):
        """What sat/train_video.py is called with for these files of configs/."""
        return [f"{self.root}/sat/train_video.py", "--base", *(f"{self.root}/configs/{name}" for name in configs)]


@pytest.fixture
def project(tmp_path):
    """A project with launchers and without weights."""
    return Project(tmp_path)


@pytest.mark.parametrize("model, files", [
    ("wan_1_3b", ("wan_1_3b.yaml", "training/wan_single_identity.yaml")),
    ("wan_adaln", ("wan_1_3b.yaml", "training/wan_adaln.yaml")),
    ("wan_mini", ("wan_mini.yaml", "training/wan_mini.yaml")),
])  # fmt: skip
def test_wan_has_files_of_its_own(project, model, files):
    assert project.run("--model", model, "--resume") == (0, "", [*project.command(*files), "--resume"])


def test_what_wan_has_not(project):
    code, said, called = project.run("--model", "wan_14b")
    assert (code, called) == (2, None) and "found wan_14b, expected mini" in said and "wan_1_3b" in said
    assert "for one person" in project.run("--model", "wan_1_3b", launcher="two_identities")[1]


@pytest.mark.parametrize("kind", ["single_identity", "two_identities"])
def test_the_demonstration_model_is_the_default(project, kind):
    expected = [*project.command("mini.yaml", f"training/mini_{kind}.yaml"), "--resume", "--lr", "1e-4"]
    assert project.run("--resume", "--lr", "1e-4", launcher=kind) == (0, "", expected)


def test_5b_asks_for_its_weights(project):
    code, said, called = project.run("--model", "cogvideox_5b")
    assert (code, called) == (2, None) and "lacks models/single-identity/latest" in said and len(said.splitlines()) == 1
    project.add_weights()
    assert project.run("--model", "cogvideox_5b")[2] == project.command("cogvideox_5b.yaml", "training/sft_single_identity.yaml")


def test_2b_needs_weights_of_ones_own(project):
    assert "expected --load FOLDER" in project.run("--model", "cogvideox_2b")[1]
    expected = [*project.command("cogvideox_2b.yaml", "training/sft_single_identity.yaml"), "--load", "x"]
    assert project.run("--model", "cogvideox_2b", "--load", "x")[2] == expected
    assert "expected mini, cogvideox_5b or cogvideox_2b" in project.run("--model", "7b")[1]


def test_one_process_per_gpu_of_this_machine(project):
    project.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a'; echo 'GPU 1: b'\n")
    assert project.run(CUDA_VISIBLE_DEVICES="0,1")[2][:7] == [*TORCHRUN, "2", *GRACE, "--standalone"]
    assert project.run(CUDA_VISIBLE_DEVICES="1")[2][0].endswith("train_video.py")


def test_several_machines_meet_at_the_first(project):
    several = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "NPROC_PER_NODE": "8"}
    place = ["--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29500"]
    assert project.run(**several)[2][: 14] == [*TORCHRUN, "8", *GRACE, *place]
    for name, found in (("MASTER_ADDR", ""), ("NODE_RANK", ""), ("NNODES", "two")):
        code, said, called = project.run(**several | {name: found})
        assert (code, called) == (2, None) and said.startswith(f"error: {name}: ") and len(said.splitlines()) == 1


def test_missing_libraries_are_named(project):
    code, said, _ = project.run(STAND_IN_EXIT="1")
    assert code == 2 and "found no deepspeed, tensorboardX or decord" in said


def test_help_names_the_launchers_options(project):
    code, _, called = project.run("--help")
    assert code == 0 and called == [f"{project.root}/sat/train_video.py", "--help"]
    assert "NODE_RANK" in project.output and "--resume [FOLDER]" in project.output
