"""What the launchers (`bash inference_single_identity.sh [options]` and the others) do; scripts/setup.sh starts it.

Checks the options, sets .venv up, and starts the script on what the machine has; needs the standard library alone.
"""

import os
import subprocess
import sys

from concat_id.bootstrap import LIBRARIES, check_torch, parts_for, set_up
from concat_id.config.command_line import build_parser, resolve_files
from concat_id.config.parser import number_within
from concat_id.errors import UserError
from concat_id.files.paths import PROJECT_ROOT
from concat_id.startup import run

DESCRIPTIONS = {
    "sample_video": "Generate videos of the people on photos, from prompts.",
    "train_video": "Fine-tune on clips and photos of the people in them.",
}
TRAINING_LIBRARIES = "deepspeed", "tensorboardX", "decord"
ENVIRONMENT = """
environment:
  CONCAT_ID_PYTHON      interpreter to use as it is, in place of .venv; requirements.txt says what it needs
  NPROC_PER_NODE        processes on this machine; by default one for every visible NVIDIA GPU
  CUDA_VISIBLE_DEVICES  the GPUs to use"""
MACHINES = """
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT  number of machines, which one this is, where the first one listens (port 29500)"""


def main() -> None:
    """Start a script in place of this process."""
    script, task, *words = sys.argv[1:]
    training = script == "train_video"
    parser = build_parser(DESCRIPTIONS[script], training, task)
    parser.prog = f"bash {'finetune' if training else 'inference'}_{task}.sh"
    parser.epilog += "\n" + ENVIRONMENT + (MACHINES if training else "")
    given = vars(parser.parse_args(words))
    if "base" not in given and "task" not in given:
        given["task"] = task
        words += ["--task", task]
    resolve_files(given, training)
    machines = read_machines() if training else []
    if os.environ.get("CONCAT_ID_PYTHON"):
        check_torch()
    python = set_up(*(("training",) if training else parts_for(words)))
    check_libraries(python, (*LIBRARIES, *TRAINING_LIBRARIES) if training else LIBRARIES)
    processes = count_processes()
    command = [python, *torchrun(processes, training, machines), str(PROJECT_ROOT / "sat" / f"{script}.py"), *words]
    sys.stdout.flush()
    os.execve(python, command, os.environ | threads(processes))


def read_machines() -> list[str]:
    """Return torchrun's options for several machines, from the environment; nothing for one."""
    nodes = number_within("NNODES", os.environ.get("NNODES") or "1", 1)
    if nodes == 1:
        return []
    address = os.environ.get("MASTER_ADDR")
    if not address:
        raise UserError(f"MASTER_ADDR: missing, expected the address of the first of {nodes} machines")
    if not os.environ.get("NODE_RANK"):
        raise UserError(f"NODE_RANK: missing, expected a number from 0 to {nodes - 1}")
    rank = number_within("NODE_RANK", os.environ["NODE_RANK"], 0, nodes - 1)
    port = os.environ.get("MASTER_PORT") or "29500"
    return ["--nnodes", str(nodes), "--node_rank", str(rank), "--master_addr", address, "--master_port", port]


def count_processes() -> int:
    """How many processes to start on this machine: NPROC_PER_NODE, or one for every visible NVIDIA GPU."""
    if os.environ.get("NPROC_PER_NODE"):
        return number_within("NPROC_PER_NODE", os.environ["NPROC_PER_NODE"], 0)
    ids = os.environ.get("CUDA_VISIBLE_DEVICES")
    if ids == "-1":
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return 0
    if "MIG" in (listed if ids is None else ids):  # of parts of GPUs, CUDA shows a process one
        return 1
    if ids is None:
        return sum(line.startswith("GPU") for line in listed.splitlines())
    return sum(bool(item.strip()) for item in ids.split(","))


def torchrun(processes: int, training: bool, machines: list[str]) -> list[str]:
    """Return what starts several processes; nothing for one."""
    if processes < 2 and not machines:
        return []
    patience = ["--shutdown-timeout", "600"] if training else []  # a checkpoint takes a while
    starter = str(PROJECT_ROOT / "sat" / "concat_id" / "processes.py")
    return [starter, "--nproc_per_node", str(max(processes, 1)), *patience, *(machines or ["--standalone"])]


def threads(processes: int) -> dict[str, str]:
    """Share the processor's cores among the processes; torchrun's own choice is one thread each."""
    own = max(1, -(-(os.cpu_count() or 1) // processes)) if processes > 1 else None
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(own)} if own else {}


def check_libraries(python: str, libraries: tuple[str, ...]) -> None:
    """Check that the user's own interpreter has what is needed."""
    if not os.environ.get("CONCAT_ID_PYTHON"):
        return
    find = f"import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, {libraries!r})))"
    if subprocess.run([python, "-c", find], check=False).returncode:
        raise UserError(f"{python}: lacks one of {', '.join(libraries)}; see requirements.txt, or leave CONCAT_ID_PYTHON out")


if __name__ == "__main__":
    run(main, sets_up=True)
