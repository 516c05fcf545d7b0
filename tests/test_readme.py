"""The commands and links of the README and of docs/ lead somewhere, and the launchers make what they promise with the shipped weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from in_process import load_script
from PIL import Image

PAGES = [
    ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name / "README.md" for name in ("demo", "examples", "models/mini")),
]  # fmt: skip
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The headings of a page as its links spell them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_images_exist(page):
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in target]
    for target in targets:
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_named_in_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:bash|python) ((?:[\w./-]+)\.(?:sh|py))", text))
    named |= set(re.findall(r"`((?:tests|sat|configs|scripts)/[\w./-]+)`", text))
    named |= set(re.findall(r"--base ((?:[\w./-]+/)[\w.-]+\.yaml)", text))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_options_named_in_commands_exist(call):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    named, launched = {}, {"inference": "sample_video", "finetune": "train_video", "studio": "studio"}
    for name, words in re.findall(r"\b(?:python sat/|bash )(\w+)\.(?:py|sh)\b([^`\n#|&;]*)", text):
        script = launched.get(name.partition("_")[0], name) if (ROOT / f"{name}.sh").exists() else name
        first = words.split()[:1]
        command = (script, *first) if script == "convert_weights" or first == ["--training"] else (script,)
        named.setdefault(command, set()).update(re.findall(r"(?<=[ \[])--\w+", words))
    for command, options in named.items():
        assert not options - {*re.findall(r"--\w+", call(*command, "--help").done)}, command
    assert len(named) > 12 and sum(map(len, named.values())) > 60


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert len(pages) > 5 and pages <= set(re.findall(r"\]\(([^)#]+)\)", text))


def test_the_page_of_the_configuration_is_not_stale():
    module = load_script(ROOT / "scripts" / "write_configuration.py")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python scripts/write_configuration.py"


def test_a_launcher_generates_with_the_shipped_weights(tmp_path, face_folder):
    """Its first example, as a portrait in four steps, through bash; tests/test_launchers.py has what sets it apart from the others."""
    kind, num_refs = "two_identities", 2
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
    assert portrait.shape == (96, 144, 3) and portrait.std() > 20, "an image of something"
    assert (folder / f"reference_{num_refs}.png").is_file() and (folder / "sheet.png").is_file()
