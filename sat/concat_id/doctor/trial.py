"""What is done rather than looked at: a tiny video by the real script, and repairs that need no download and delete nothing."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from concat_id.bootstrap import set_up
from concat_id.config.schema import Config
from concat_id.doctor.findings import NOTE, OK, PROBLEM, Finding
from concat_id.doctor.weight_files import MINI_AGAIN, examine_model, inside_itself, parts_of
from concat_id.errors import shortened
from concat_id.files.paths import PROJECT_ROOT, resolve_path

TIMEOUT = 40  # seconds; it takes 7 on two cores
TINY = ("--sampling_num_frames", "2", "--num_inference_steps", "2", "--prompt", "a man in a green shirt speaks")
PERSON = "examples/people/ben.png"


def make_tiny_video() -> Finding:
    """Make five frames with the demonstration model in a process of its own, if its weights are whole."""
    if any(finding.mark != OK for finding in examine_model("mini", False)):
        return Finding(NOTE, "mini", "skipped: its weights are damaged or missing", MINI_AGAIN)
    with tempfile.TemporaryDirectory() as folder:
        script, image = PROJECT_ROOT / "sat" / "sample_video.py", PROJECT_ROOT / PERSON
        command = [sys.executable, script, "--model", "mini", "--image", image, "--output", folder, *TINY]
        start = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=PROJECT_ROOT)
        except subprocess.TimeoutExpired:
            return Finding(PROBLEM, "mini", f"nothing after {TIMEOUT} s", "end other programs and try again")
        seconds = time.monotonic() - start
        if done.returncode or not any(Path(folder).rglob("video.mp4")):
            told = [line for line in done.stderr.splitlines() if line.strip()] or ["no video"]
            errors = [line.removeprefix("error: ") for line in told if line.startswith("error: ")]
            return Finding(PROBLEM, "mini", shortened((errors or told)[-1], 300), "bash inference_single_identity.sh")
    return Finding(OK, "mini", f"5 frames of 96x144 in {seconds:.0f} s, start included", numbers={"seconds": seconds})


def repair(configs: list[Config]) -> Iterator[Finding]:
    """Move files out of folders inside themselves, and prepare the face detector."""
    named = [path for config in configs for path in (*(part.path for part in parts_of(config)), config.model.faces.detector)]
    for folder in dict.fromkeys(folder for path in map(resolve_path, named) for folder in (path, path.parent)):
        if inner := inside_itself(folder):
            yield _lift(inner, folder)
    fallback = resolve_path(configs[0].model.faces.fallback_detector)
    if not any(fallback.glob("*.onnx")):
        set_up(environment=dict(os.environ) | {"CONCAT_ID_PYTHON": sys.executable})
        made = any(resolve_path(configs[0].model.faces.fallback_detector).glob("*.onnx"))
        found, advice = ("prepared", "") if made else ("could not be prepared", "see .setup.log")
        yield Finding(OK if made else PROBLEM, "face detector", found, advice)


def _lift(inner: Path, folder: Path) -> Finding:
    """Move all of a folder's content one level up, unless something there has the same name."""
    entries = sorted(inner.iterdir())
    if taken := [entry.name for entry in entries if os.path.lexists(folder / entry.name)]:
        return Finding(NOTE, str(folder), f"left as it is: {taken[0]} is in both folders", "move the files yourself")
    try:
        for entry in entries:
            entry.rename(folder / entry.name)
        inner.rmdir()
    except OSError as error:
        return Finding(PROBLEM, str(folder), f"cannot be written ({error.strerror})", f"move the files of {inner} yourself")
    return Finding(OK, str(folder), f"moved all out of {inner.name}/ inside of it")
