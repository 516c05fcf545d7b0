"""What an entry script sets before the heavy libraries are imported: quiet logs, no network, no telemetry."""

import logging
import os
import sys
import warnings
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_SILENT": "true"}
QUIET = {"SAT_LOGLEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false", "ORT_LOGGING_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error",
         "DIFFUSERS_VERBOSITY": "error", "CACHE_DIT_LOG_LEVEL": "error"}  # fmt: skip


def python_environment() -> dict[str, str]:
    """What Python is started with, so that it finds this project's modules and runs nothing of the working folder.

    An empty entry of PYTHONPATH would stand for that folder.
    """
    own = str(Path(__file__).resolve().parents[1])
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != own and not _is_strange(entry)]
    return {"PYTHONPATH": os.pathsep.join([own, *entries]), "PYTHONSAFEPATH": "1"}


def _is_strange(entry: str) -> bool:
    """Tell whether an entry of sys.path is the working folder and not one of this project's own, sat/ or demo/."""
    try:
        return os.path.dirname(entry) != str(Path(__file__).resolve().parents[2]) and (entry == "" or os.path.samefile(entry, "."))
    except OSError:
        return False


def prepare_process() -> None:
    """Set the environment that libraries and further processes read; what the user has set already stays."""
    os.environ.update(python_environment())
    sys.path[:] = [entry for entry in sys.path if not _is_strange(entry)]
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
