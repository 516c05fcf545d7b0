"""How an entry script starts and ends: quiet logs, no network, no telemetry; exit codes in place of tracebacks."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import concat_id
from concat_id.errors import UserError, reason_of, report

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_SILENT": "true"}
QUIET = {"SAT_LOGLEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false", "ORT_LOGGING_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error",
         "DIFFUSERS_VERBOSITY": "error", "CACHE_DIT_LOG_LEVEL": "error"}  # fmt: skip

MPI = {"RANK": "OMPI_COMM_WORLD_RANK", "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK", "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE"}  # as torchrun says


def python_environment() -> dict[str, str]:
    """What Python is started with, so that it finds this project's modules and runs nothing of the working folder.

    An empty entry of PYTHONPATH would stand for that folder.
    """
    own, given = os.path.join(concat_id.PROJECT, "sat"), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    entries = [entry for entry in given if entry != own and not concat_id.is_strange(entry)]
    return {"PYTHONPATH": os.pathsep.join([own, *entries]), "PYTHONSAFEPATH": "1"}


def prepare_process() -> None:
    """Set the environment that libraries and further processes read; what the user has set already stays.

    Raises `UserError` for a torch that is too old.
    """
    from concat_id.bootstrap import check_torch

    check_torch()
    os.environ.update(python_environment())
    sys.path[:] = [entry for entry in sys.path if not concat_id.is_strange(entry)]
    os.environ.update({name: os.environ[theirs] for name, theirs in MPI.items() if theirs in os.environ})
    for name, value in {**OFFLINE, **QUIET}.items():
        os.environ.setdefault(name, value)
    if not os.path.exists("/dev/nvidiactl"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns while it finds that out by itself
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    for name in ("torchao", "torch.utils._pytree"):  # of kernels for other machines, and of each other's versions
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"Image size .* could be decompression bomb")  # photographs of 90 megapixels
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|wandb|sat|pydantic")


def guard_output(stream: TextIO, lost: bool = False) -> None:
    """Turn the first failure to print, but for that of a reader that has gone, into a `UserError`; what comes after it is lost.

    `lost` are all of them where a full disk, or a reader that has gone, must not end what is being made.
    """

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*given: Any) -> Any:
            try:
                return call(*given)
            except OSError as error:
                if lost:
                    return None
                guard_output(stream, lost=True)
                if isinstance(error, BrokenPipeError):
                    raise
                raise UserError(f"standard output: cannot be written ({reason_of(error)}); free space, or send it elsewhere") from error

        return attempt

    for name in ("write", "flush"):
        setattr(stream, name, guarded(getattr(type(stream), name).__get__(stream)))


def run(main: Callable[[], int | None], sets_up: bool = False) -> None:
    """Call `main` and leave the process: 0 or what it returned, 2 after a `UserError` or without a library, 130 after Ctrl-C.

    Goes on in .venv first if the libraries are there and not here, but where `main` sets that up by itself.
    """
    from concat_id.bootstrap import enter_made_environment

    if not sets_up:
        enter_made_environment()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
        if stream:
            guard_output(stream, lost=stream is sys.stderr)
    try:
        code = main() or 0
        print(end="", flush=True)
    except UserError as error:
        report(error)
        code = 2
    except ModuleNotFoundError as error:
        if "." in (error.name or "."):  # a library's part, or this project's
            raise
        report(f"{error.name}: not installed for {sys.executable}; `bash scripts/setup.sh` makes .venv, in which this goes on by itself; "
               "requirements.txt names the parts that some commands need besides")  # fmt: skip
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        code = 130
    except BrokenPipeError:  # whoever read what is printed has gone, as head does
        code = 141
    if "torch" in sys.modules:
        from concat_id.distributed import leave_processes

        leave_processes(failed=code != 0)
    sys.exit(code)
