"""What a machine with one GPU and no network can prove in ten minutes: `bash tests/gpu/run.sh [--parts card step_5b] [--seconds 600]`.

Parts, the most valuable first, each in a process and within a time of its own, so that a failure loses that part alone. results.json is
written after every part, a table at the end. Without a GPU the same parts run at tiny size. The exit code is 1 if a part failed.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "sat"), str(HERE), str(HERE.parent)]

from concat_id.startup import prepare_process  # noqa: E402

prepare_process()

import parts  # noqa: E402
import torch  # noqa: E402

from concat_id.distributed import choose_device  # noqa: E402

LIMITS = {  # seconds that a part may take on a GPU
    "card": 30, "small_model": 60, "step_5b": 150, "video_5b": 150, "training": 240, "wan": 90, "engine": 60, "acceleration": 300,
}  # fmt: skip


def main() -> int:
    """Run the parts that are asked for; 1 if one failed or was cut off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS), help="which ones (default: all)")
    parser.add_argument("--seconds", type=float, default=600, help="time of all of them together (default: 600)")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), metavar="FOLDER", help="where results.json is written")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the running part as well
    options.output.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + options.seconds, {}
    for name in options.parts:
        limit = min(LIMITS[name], end - time.monotonic())
        results[name] = run(name, limit, options.output) if limit > 5 else {"failed": "no time was left"}
        print(f"{name}: {json.dumps(results[name])}", flush=True)
        temporary = options.output / "results.json.partial"
        temporary.write_text(json.dumps(results, indent=1))
        os.replace(temporary, options.output / "results.json")
    print(table(results))
    return any("failed" in result for result in results.values())


def run(name: str, limit: float, folder: Path) -> dict:
    """Run one part in a process of its own, and tell what it found until it ended, died or was stopped."""
    context, began = multiprocessing.get_context("fork"), time.monotonic()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, theirs, folder), daemon=True)
    process.start()
    theirs.close()
    found, failed = {}, None
    try:
        while True:
            if not ours.poll(max(0.0, began + limit - time.monotonic())):
                failed = f"stopped after {limit:.0f} s"
                break
            key, value = ours.recv()
            if key == "failed":
                failed = value
            else:
                found[key] = value
    except EOFError:
        process.join(5)
        failed = failed or (f"ended with exit code {process.exitcode}" if process.exitcode else None)
    process.kill()
    process.join()
    return {"seconds": round(time.monotonic() - began, 1), **found} | ({"failed": failed} if failed else {})


def work(name: str, pipe, folder: Path) -> None:
    """Send (key, value) for everything that a part finds, as soon as it does."""
    if not parts.CUDA:  # a rehearsal: graphs are captured and run; machine code for them would take minutes
        compiler = torch.compile
        torch.compile = lambda function, **_: compiler(function, fullgraph=True, backend="aot_eager")
    try:
        choose_device(parts.DEVICE.type)
        for key, value in getattr(parts, name)(folder):
            pipe.send((key, value))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()[-2000:]))


def table(results: dict) -> str:
    """One line for everything found, numbers with four digits."""
    lines = ["| part | what | found |", "| --- | --- | --- |"]
    for name, result in results.items():
        lines += [f"| {name} | {key} | {shown(value)} |" for key, value in result.items() if not isinstance(value, list)]
    return "\n".join(lines)


def shown(value) -> str:
    """A value on one line of the table."""
    if isinstance(value, dict):
        return "none" if not value else ", ".join(f"{key} {shown(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())[-200:]


if __name__ == "__main__":
    sys.exit(main())
