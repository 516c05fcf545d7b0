"""The files of Concat-ID on Wan: which are missing, and where they are fetched from when a user asks for it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from concat_id.config import Config
from concat_id.errors import UserError
from concat_id.files import PROJECT_ROOT, resolve_path

TOKENIZER = "google/umt5-xxl"  # beside Wan's text encoder


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
        "models/Wan-AI/Wan2.1-T2V-1.3B",
        ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", f"{TOKENIZER}/*"),
        on_modelscope=True,
    ),
    Repository("yongzhong/Concat-ID-Wan", "models/Concat-ID-Wan", ("*.pt", "antelopev2/*")),
    Repository("jonathandinu/face-parsing", "models/jonathandinu/face-parsing", ("*.json", "model.safetensors")),
)


def missing_files(config: Config) -> list[str]:
    """List what the configuration names and is not there, the tokenizer beside Wan's text encoder included."""
    model = config.model
    paths = config.args.load, model.text_encoder.path, model.autoencoder.path
    missing = [path for path in paths if not os.path.exists(resolve_path(path))]
    encoder = Path(model.text_encoder.path)
    if encoder.suffix == ".pth" and not (resolve_path(encoder).parent / TOKENIZER).is_dir():
        missing.append(str(encoder.parent / TOKENIZER))
    return missing


def require_files(config: Config) -> None:
    """Raise `UserError` naming all files that are missing and the command that fetches them."""
    missing = [str(Path(name)) for name in missing_files(config)]
    if missing:
        remedy = "fetch them with: python inference_wan.py --download   or try the small untrained model: --model wan_mini"
        raise UserError(f"Concat-ID on Wan lacks {', '.join(missing)} in {PROJECT_ROOT}; {remedy}")


def download(source: str) -> None:
    """Fetch what is missing from Hugging Face, or Wan's own files from ModelScope; what is there already stays."""
    for repository in REPOSITORIES:
        fetch = _modelscope() if source == "modelscope" and repository.on_modelscope else _huggingface()
        print(f"fetching {', '.join(repository.patterns)} of {repository.name} into {repository.folder}", flush=True)
        try:
            fetch(repository)
        except Exception as error:  # whatever the library's network layer raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            remedy = f"check the network and run it again, or put the files into {repository.folder} yourself"
            raise UserError(f"{repository.name}: cannot be fetched ({reason}); {remedy}") from error


def _huggingface() -> Callable[[Repository], object]:
    os.environ["HF_HUB_OFFLINE"] = "0"  # runs are offline, and the library reads this when it is imported
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError("--download: huggingface_hub is not installed; pip install huggingface_hub") from error
    return lambda of: snapshot_download(of.name, local_dir=PROJECT_ROOT / of.folder, allow_patterns=list(of.patterns))


def _modelscope() -> Callable[[Repository], object]:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise UserError("--download modelscope: modelscope is not installed; pip install modelscope, or leave the word out") from error
    return lambda of: snapshot_download(of.name, local_dir=str(PROJECT_ROOT / of.folder), allow_patterns=list(of.patterns))
