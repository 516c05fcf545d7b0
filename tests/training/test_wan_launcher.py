"""The fine-tuning launcher with Wan, with the stand-in for Python of the other launchers' tests."""

import importlib.util

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("training_launchers", ROOT / "tests" / "training" / "test_launchers.py")
launchers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launchers)


@pytest.mark.parametrize("model, files", [
    ("wan_1_3b", ("wan_1_3b.yaml", "training/wan_single_identity.yaml")),
    ("wan_adaln", ("wan_1_3b.yaml", "training/wan_adaln.yaml")),
    ("wan_mini", ("wan_mini.yaml", "training/wan_mini.yaml")),
])  # fmt: skip
def test_wan_has_files_of_its_own(tmp_path, model, files):
    project = launchers.Project(tmp_path)
    assert project.run("--model", model, "--resume") == (0, "", [*project.command(*files), "--resume"])


def test_what_wan_has_not(tmp_path):
    project = launchers.Project(tmp_path)
    code, said, called = project.run("--model", "wan_14b")
    assert (code, called) == (2, None) and "found wan_14b, expected mini" in said and "wan_1_3b" in said
    assert "for one person" in project.run("--model", "wan_1_3b", launcher="two_identities")[1]
