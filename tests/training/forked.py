"""Runs sat/train_video.py as one or several processes without importing its libraries each time: this process has them and forks.

A request can name another `script` with a `main`, beside this file or in sat/; `file_limit` lets no file grow larger, as on a full
disk; `signal` is sent after `at_step` to all processes, to the first `targets`, or to the `reader` of clips of the first.

Reads requests as lines of JSON from stdin and answers each with a line: {"codes": [...], "output": text of all processes}.
"""

import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1800.0  # seconds after which a run is taken to hang


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(script: str, arguments: list[str], environment: dict[str, str], output: Path, file_limit: int | None) -> int:
    child = os.fork()
    if child:
        return child
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another
    sys.argv = [f"{script}.py", *arguments]
    code = 1
    try:
        from concat_id.startup import run

        run(importlib.import_module(script).main)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def steps_done(folder: Path) -> int:
    """The last step in the metrics of the newest run under `folder`."""
    files = sorted(folder.glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    lines = files[-1].read_text().splitlines() if files else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def readers(process: int) -> list[int]:
    """The loader's processes of a training: forks of it, unlike decoders."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    own = Path(f"/proc/{process}/cmdline").read_bytes()
    return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == own]


def serve(request: dict) -> dict:
    processes, folder = request["processes"], Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | request.get("environment", {})
    environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    given = request.get("script", "train_video"), request["arguments"]
    limit = request.get("file_limit")
    running = {start(*given, environment, output, limit): rank for rank, environment in enumerate(environments)}
    children, codes, end, told = list(running), {}, time.monotonic() + LIMIT, False
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
        if request.get("signal") and steps_done(folder) >= request["at_step"]:
            for target in readers(children[0]) if request.get("reader") else children[: request.get("targets", processes)]:
                os.kill(target, request["signal"])
            request["signal"] = None
        failed = any(code not in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT) for code in codes.values())
        if running and failed and not told:  # as torchrun does
            told, end = True, min(end, time.monotonic() + 120)
            for target in running:
                os.kill(target, signal.SIGTERM)
        if running and time.monotonic() > end:
            for target in running:
                os.kill(target, signal.SIGKILL)
        time.sleep(0.01)
    return {"codes": [codes[rank] for rank in range(processes)], "output": output.read_text()}


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "sat"), str(Path(__file__).parent)]
    from concat_id.startup import prepare_process

    prepare_process()
    for library in ("models.transformer", "models.wan.transformer", "sampling.pipeline", "training.preparation", "training.trainer"):
        importlib.import_module(f"concat_id.{library}")
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # half of the time of a start
    gc.freeze()

    for line in sys.stdin:
        answer = json.dumps(serve(json.loads(line)))
        print(answer, flush=True)
