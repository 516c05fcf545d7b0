"""How far fine-tuning on two clips brings down the demonstration model's validation loss on these clips, and how fast.

    python demo/bench/bench_overfit.py [--steps 200] [--goal 5] [options of sat/train_video.py]

Runs sat/train_video.py from the shipped weights on the middle nine frames of the first two clips of examples/training; the measure is
the loss at fixed timesteps and noise. The exit code is 1 if it is not at least `goal` times smaller after the last step than before
the first.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [str(ROOT / "configs" / "mini.yaml"), str(ROOT / "configs" / "training" / "mini_single_identity.yaml")]
EXAMPLES = ROOT / "examples" / "training"
DATA = {"max_num_frames": 9, "skip_frms_num": 20}  # of 49 frames
LEARNING = {"lr": 5e-4, "warmup_iters": 20, "lr_decay_style": "cosine", "bf16": False, "ema_decay": 0}


def write_list(folder: Path) -> Path:
    """The first two clips of the examples as a list of their own."""
    entries = json.loads((EXAMPLES / "single_identity_train.json").read_text())[:2]
    for entry in entries:
        for key in ("video_path", "image_path"):
            entry[key] = str(EXAMPLES / entry[key])
    (folder / "list.json").write_text(json.dumps(entries))
    return folder / "list.json"


def train(folder: Path, steps: int, interval: int, options: list[str]) -> list[tuple[int, float]]:
    """Train, and return (step, validation loss) with a first validation of the weights as they are."""
    data = [str(write_list(folder))]
    args = {
        "train_data": data, "valid_data": data, "eval_iters": 2, "eval_samples": 0, "eval_interval": interval, "log_interval": interval,
        "save_interval": 10**6, "tensorboard": False, "save": str(folder / "exps"), "latent_cache": str(folder / "cache"),
        "num_workers": 0, **LEARNING,
    }  # fmt: skip
    curve = []
    for count, more in ((1, ["--lr", "0"]), (steps, [])):  # a step with a learning rate of 0 leaves the weights as they are
        own = {"data": DATA, "args": args | {"train_iters": count, "experiment_name": f"steps-{count}"}}
        (folder / "own.yaml").write_text(yaml.safe_dump(own))
        command = [sys.executable, str(ROOT / "sat" / "train_video.py"), "--base", *CONFIGS, str(folder / "own.yaml"), *options, *more]
        subprocess.run(command, check=True)
        (metrics,) = (folder / "exps").glob(f"steps-{count}-*/metrics.jsonl")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        curve += [(line["step"] if steps == count else 0, line["validation_loss"]) for line in lines if "validation_loss" in line]
    return curve


def main() -> int:
    """Train and print the curve; returns 1 where the loss falls short of the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--goal", type=float, default=5.0)
    args, passed_on = parser.parse_known_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        curve = train(Path(folder), args.steps, max(args.steps // 10, 1), passed_on)
    took, usage = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    for step, loss in curve:
        print(f"step {step:5d}  validation loss {loss:.4f}  {curve[0][1] / loss:.2f} times smaller")
    factor = curve[0][1] / curve[-1][1]
    cost = f"{took:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of processor time, {os.cpu_count()} cores"
    print(f"from {curve[0][1]:.4f} to {curve[-1][1]:.4f}: {factor:.2f} times smaller in {args.steps} steps, {cost}")
    return 0 if factor >= args.goal else 1


if __name__ == "__main__":
    sys.exit(main())
