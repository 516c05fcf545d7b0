"""What an entry script sets before the heavy libraries are imported: quiet logs, no network, no telemetry."""

import logging
import os
import warnings

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_SILENT": "true"}
QUIET = {"SAT_LOGLEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false", "ORT_LOGGING_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error"}


def prepare_process() -> None:
    """Set the environment that libraries read once, at import; what the user has set already stays."""
    for name, value in {**OFFLINE, **QUIET}.items():
        os.environ.setdefault(name, value)
    if not os.path.exists("/dev/nvidiactl"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns while it finds that out by itself
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"Image size .* could be decompression bomb")  # photographs of 90 megapixels
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|wandb|sat|pydantic")
