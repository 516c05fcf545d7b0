"""Where the files of Concat-ID on Wan are fetched from when a user asks for it."""

import os
from dataclasses import dataclass
from importlib import import_module

from concat_id.config.presets import TOKENIZER
from concat_id.config.wan import WAN_FOLDER
from concat_id.errors import UserError, reason_of
from concat_id.files.paths import PROJECT_ROOT


@dataclass(frozen=True)
class Repository:
    """A public collection of weights, and what of it goes into which folder."""

    name: str
    folder: str
    patterns: tuple[str, ...]
    on_modelscope: bool = False


REPOSITORIES = (
    Repository(
        "Wan-AI/Wan2.1-T2V-1.3B",
        WAN_FOLDER,
        ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", f"{TOKENIZER}/*"),
        on_modelscope=True,
    ),
    Repository("yongzhong/Concat-ID-Wan", "models/Concat-ID-Wan", ("*.pt",)),
    Repository("yongzhong/Concat-ID-Wan", "models", ("antelopev2/*",)),
    Repository("jonathandinu/face-parsing", "models/jonathandinu/face-parsing", ("*.json", "model.safetensors")),
)


def download(source: str) -> None:
    """Fetch what is missing from Hugging Face, or Wan's own files from ModelScope; what is there already stays."""
    os.environ["HF_HUB_OFFLINE"] = "0"  # runs are offline, and the library reads this when it is imported
    for repository in REPOSITORIES:
        library = "modelscope" if source == "modelscope" and repository.on_modelscope else "huggingface_hub"
        try:
            fetch = import_module(library).snapshot_download
        except ImportError as error:
            raise UserError(f"--download: {library} is not installed; pip install {library}") from error
        print(f"fetching {', '.join(repository.patterns)} of {repository.name} into {repository.folder}", flush=True)
        try:
            fetch(repository.name, local_dir=str(PROJECT_ROOT / repository.folder), allow_patterns=list(repository.patterns))
        except Exception as error:  # whatever the library's network layer raises
            remedy = f"check the network and run it again, or put the files into {repository.folder} yourself"
            raise UserError(f"{repository.name}: cannot be fetched ({reason_of(error, 160)}); {remedy}") from error
