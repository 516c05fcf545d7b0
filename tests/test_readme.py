"""The README's commands and links lead somewhere, and the launchers make what they promise with the shipped weights."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()]
    assert targets and not missing


def test_files_named_in_commands_exist():
    named = set(re.findall(r"(?:bash|python) ((?:[\w./-]+)\.(?:sh|py))", README))
    named |= set(re.findall(r"`((?:tests|sat|configs|scripts)/[\w./-]+)`", README))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert len(named) > 5 and not missing


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z_]+@", README)


@pytest.mark.parametrize("kind, num_refs", [("single_identity", 1), ("two_identities", 2)])
def test_launchers_generate_with_the_shipped_weights(tmp_path, face_folder, kind, num_refs):
    """The first example of each launcher, as a portrait in four steps, through bash."""
    line = (ROOT / "examples" / f"{kind}.txt").read_text().splitlines()[0]
    (tmp_path / "one.txt").write_text(line + "\n")
    options = {"model": "mini", "input_file": "one.txt", "output": "out", "sampling_num_frames": "1", "num_inference_steps": "4"}
    command = ["bash", str(ROOT / f"inference_{kind}.sh"), *(part for name, value in options.items() for part in (f"--{name}", value))]
    environment = {**os.environ, "CONCAT_ID_PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.name.startswith("0000_"))
    info = json.loads((folder / "info.json").read_text())
    assert info["prompt"] == line.split("@@")[0] and len(info["references"]) == num_refs
    portrait = np.asarray(Image.open(folder / "portrait.png"))
    assert portrait.shape == (96, 144, 3) and portrait.std() > 20, "a picture of something"
    assert (folder / f"reference_{num_refs}.png").is_file() and (folder / "sheet.png").is_file()
