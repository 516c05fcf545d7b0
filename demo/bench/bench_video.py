"""Time and peak memory of a whole demonstration video, from command to file.

    python demo/bench/bench_video.py [--runs 2] [options of sat/sample_video.py]

Runs sat/sample_video.py anew each time on the shipped model: 17 frames of 96x144 in 25 steps of the first example.
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

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [str(ROOT / "configs" / "mini.yaml"), str(ROOT / "configs" / "inference" / "mini_single_identity.yaml")]


def main() -> None:
    """Generate as often as asked for and print what each run took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    args, passed_on = parser.parse_known_args()
    prompt, *images = (ROOT / "examples" / "single_identity.txt").read_text().splitlines()[0].split("@@")
    for run in range(1, args.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "sat" / "sample_video.py"), "--base", *CONFIGS, "--prompt", prompt, "--output", folder]
            begun = time.perf_counter()
            subprocess.run([*command, "--image", *images, *passed_on], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            took = time.perf_counter() - begun
            sample = json.loads(next(Path(folder).glob("*/info.json")).read_text())["samples"][0]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        parts = f"sampling {sample['sampling_s']} s, decoding and writing {sample['decoding_s']} s"
        print(f"run {run}: {took:.1f} s from command to file ({parts}), peak memory {peak:.2f} GiB, {os.cpu_count()} cores", flush=True)


if __name__ == "__main__":
    main()
