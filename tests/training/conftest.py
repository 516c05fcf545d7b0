"""A small data set, a training file for the model of configs/debug.yaml, and a way to train it with several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from entry import only_error
from PIL import Image
from training.alone import TRAINING

from concat_id.config.loading import load_config
from concat_id.files.paths import PROJECT_ROOT as ROOT
from concat_id.video.writing import write_video


@pytest.fixture(autouse=True)
def plain_linear():
    """Undo what ZeRO 3 puts in place of torch's linear layer, for the tests that come later in this process."""
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear


def write_clips(folder: Path, count: int = 5) -> Path:
    """Write clips of moving stripes with an image each, and the list of them."""
    entries, random = [], np.random.default_rng(0)
    for index in range(count):
        colour = random.integers(40, 200, 3)
        stripes = (np.arange(96)[None, :] + 7 * np.arange(12)[:, None]) // 8 % 2  # (F, W)
        frames = (stripes[:, None, :, None] * 50 + np.broadcast_to(colour, (12, 64, 96, 3))).astype(np.uint8)
        write_video(folder / f"clip_{index}.mp4", frames, 8)
        Image.fromarray(frames[0]).save(folder / f"person_{index}.png")
        caption = f"a man in red {'hat ' * index}"
        entries.append({"video_path": f"clip_{index}.mp4", "caption": caption, "image_path": f"person_{index}.png"})
    (folder / "list.json").write_text(json.dumps(entries))
    return folder / "list.json"


class Setup:
    """Files to train from, and the process that trains."""

    def __init__(self, folder: Path, model: Path):
        """Write the data and the training file under `folder`."""
        self.folder, self.model, self.server = folder, model, None
        self.list = write_clips(folder)
        args = TRAINING["args"] | {"train_data": [str(self.list)], "valid_data": [str(self.list)]}
        (folder / "training.yaml").write_text(yaml.safe_dump(TRAINING | {"args": args}))
        self.bases = [str(ROOT / "configs" / "debug.yaml"), str(model), str(folder / "training.yaml")]

    def config(self, save: Path, deepspeed: dict | None = None, **overrides):
        """Configuration of a run that saves under `save`."""
        config = load_config(self.bases, {"save": str(save), **overrides})
        config.deepspeed |= deepspeed or {}
        return config

    def ask(self, request: dict) -> dict:
        """Let forked.py run processes; returns their exit codes and what they said."""
        if self.server is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(Path(__file__).with_name("forked.py"))]
            self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def train(self, save: Path, *arguments: str, codes: tuple[int, ...] = (0,), base: dict | None = None, **request):
        """Train through the entry script with one process for each expected exit code; returns (what was said, newest run or None)."""
        bases = list(self.bases)
        if base is not None:
            save.mkdir(parents=True, exist_ok=True)
            (save / "own.yaml").write_text(yaml.safe_dump(base))
            bases.append(str(save / "own.yaml"))
        arguments = ["--base", *bases, "--save", str(save), *map(str, arguments)]
        answer = self.ask({"arguments": arguments, "processes": len(codes), "folder": str(save), **request})
        assert answer["codes"] == list(codes), answer["output"]
        runs = sorted((path.parent for path in save.glob("run-*/metrics.jsonl")), key=lambda run: run.stat().st_mtime_ns)
        return answer["output"], runs[-1] if runs else None

    def refused(self, message: str, save: Path, *arguments: str, **request) -> None:
        """Check that training ends in one line for the user that has `message`."""
        said, _ = self.train(save, *arguments, codes=(2,), **request)
        assert message in only_error(2, said)


@pytest.fixture(scope="session")
def setup(tmp_path_factory, tiny_model):
    """Data, configuration and processes, made once."""
    made = Setup(tmp_path_factory.mktemp("training data"), tiny_model)
    yield made
    if made.server is not None:
        made.server.stdin.close()
        made.server.wait(30)
