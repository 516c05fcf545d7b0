"""Time and peak memory of ConsisID with each memory mode: one table, on this machine.

    python tests/bench/bench_neighbours.py [--steps 50]                    # the weights in models/ConsisID
    python tests/bench/bench_neighbours.py --random {small,released}       # random ones of such sizes

Each mode has a process of its own. Peaks are what the device's allocator used and reserved, on a CPU the whole process. The face is random.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tests")]

from concat_id.startup import prepare_process  # noqa: E402

prepare_process()

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from concat_id.config.loading import load_config  # noqa: E402
from concat_id.distributed import choose_device  # noqa: E402
from concat_id.sampling.pipeline import make_pipeline  # noqa: E402

CONFIG = ROOT / "configs" / "consisid.yaml"
MODES = {mode: {"memory": mode} for mode in ("high", "balanced", "low")}
MODES["balanced, tiled_decoding"] = {"memory": "balanced", "tiled_decoding": True}
HEAD = "| mode | prompts s | load s | step s | decode s | peak used GB | peak reserved GB |\n|" + "---|" * 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", choices=("small", "released"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args, device = parser.parse_args(), choose_device("auto")
    if args.measure:
        print(json.dumps(measure(args, device)))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = CONFIG
        if args.random:
            from tiny_consisid import write_released_sizes, write_tiny_consisid

            paths = write_tiny_consisid(Path(folder)) if args.random == "small" else write_released_sizes(Path(folder), device)
        print(f"{device}, torch {torch.__version__}, {args.steps} steps\n{HEAD}", flush=True)
        for mode in MODES:
            command = [sys.executable, __file__, "--steps", str(args.steps), "--measure", mode, str(paths)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(f"| {mode} | " + " | ".join(f"{number:.3g}" for number in json.loads(done.stdout.splitlines()[-1])) + " |", flush=True)


def measure(args: argparse.Namespace, device: torch.device) -> list[float]:
    """Make one video in this process; returns the columns of the table."""
    from concat_id.sampling.consisid import FaceFeatures

    options = MODES[args.measure[0]] | {"num_inference_steps": args.steps, "bf16": True}
    pipeline = make_pipeline(load_config([CONFIG, args.measure[1]], options), device)
    times = [time.perf_counter()]

    def lap(result):
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter())
        return result

    (text,) = lap(pipeline.encode_prompts(["a man and the woman laugh"]))
    lap(pipeline.load())
    sizes, image = pipeline.transformer.config, Image.linear_gradient("L").convert("RGB").resize((512, 512))
    features = [torch.randn(1, 577, sizes.LFE_vit_dim) for _ in range(sizes.LFE_num_scale)]
    face = FaceFeatures(image, image, torch.randn(1, sizes.LFE_id_dim), features, None)
    lap(pipeline.decode(lap(pipeline.sample(text, face, 42))))
    seconds = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024] * 2
    if device.type != "cpu":
        peaks = [torch.accelerator.max_memory_allocated(), torch.accelerator.max_memory_reserved()]
    return [*seconds[:2], seconds[2] / args.steps, seconds[3], *(peak / 1e9 for peak in peaks)]


if __name__ == "__main__":
    main()
