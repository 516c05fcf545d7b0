"""The models that can be asked for by name: their configuration files, and which of their weights are missing on this machine."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from concat_id.config.neighbours import BUFFALO
from concat_id.config.schema import TRAINED_BY
from concat_id.config.typed import nearest
from concat_id.config.wan import WAN_FOLDER
from concat_id.errors import UserError
from concat_id.files.paths import MODEL_STATES, PROJECT_ROOT, read_text, resolve_path, visible_files

TASKS = ("single_identity", "two_identities")
TOKENIZER = "google/umt5-xxl"  # beside Wan's text encoder
FETCH = "pip install modelscope && modelscope download --model yongzhong/Concat-ID --local_dir models"
FETCH_WAN = "python inference_wan.py --download"


@dataclass(frozen=True)
class Preset:
    """A model: names of files in configs/, by task, and paths of its weights; `transformers` None where none are released."""

    title: str
    base: str
    inference: dict[str, str]
    training: dict[str, str]
    transformers: dict[str, str] | None = None
    others: tuple[str, ...] = ()
    fetch: str = FETCH
    instead: str = "mini"
    shipped: bool = False
    fetch_parts: dict[str, str] = field(default_factory=dict)  # what fetches each of them, where that is several commands


HUB = "hf download {} --local-dir models/{}"  # a command of huggingface_hub, which transformers brings
CONSISID, CONSISID_HUB = "models/ConsisID", "BestWishYsh/ConsisID-preview"
FETCH_CONSISID = HUB.format(CONSISID_HUB, "ConsisID")
CONSISTENTID = "models/ConsistentID/ConsistentID-v1.bin"
REALISTIC_VISION, CLIP_H = "Realistic_Vision_V6.0_B1_noVAE", "CLIP-ViT-H-14-laion2B-s32B-b79K"
PARSER = "jonathandinu/face-parsing"
FETCH_PARSER = HUB.format(f"{PARSER} --include '*.json' --include model.safetensors", PARSER)
BUFFALO_ZIP = "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip"
FETCH_CONSISTENTID = {
    CONSISTENTID: HUB.format("JackAILab/ConsistentID ConsistentID-v1.bin", "ConsistentID"),
    f"models/{REALISTIC_VISION}": HUB.format(
        f"SG161222/{REALISTIC_VISION} --exclude '*.ckpt' --exclude '*B1*.safetensors'", REALISTIC_VISION
    ),
    f"models/{CLIP_H}": HUB.format(f"laion/{CLIP_H} --include '*.json' --include model.safetensors", CLIP_H),
    BUFFALO: f"curl -LO {BUFFALO_ZIP} && unzip buffalo_l.zip -d {BUFFALO}",
    f"models/{PARSER}": FETCH_PARSER,
}


def _both(name: str) -> dict[str, str]:
    return {task: f"{name}_{task}" for task in TASKS}


COGVIDEOX_WEIGHTS = {task: f"models/{task.replace('_', '-')}" for task in TASKS}
COGVIDEOX_OTHERS = ("models/vae/3d-vae.pt", "models/t5-v1_1-xxl")
WAN_OTHERS = (f"{WAN_FOLDER}/Wan2.1_VAE.pth", f"{WAN_FOLDER}/models_t5_umt5-xxl-enc-bf16.pth")


def _wan(variant: str, weights: str) -> Preset:
    files, transformers = {TASKS[0]: variant}, {TASKS[0]: f"models/Concat-ID-Wan/{weights}"}
    return Preset("Concat-ID on Wan", "wan_1_3b", files, files, transformers, WAN_OTHERS, FETCH_WAN, "wan_mini")


PRESETS = {
    "mini": Preset("the demonstration model", "mini", _both("mini"), _both("mini"), shipped=True),
    "cogvideox_5b": Preset("CogVideoX-5B", "cogvideox_5b", _both("inference"), _both("sft"), COGVIDEOX_WEIGHTS, COGVIDEOX_OTHERS),
    "cogvideox_2b": Preset("CogVideoX-2B", "cogvideox_2b", _both("inference"), _both("sft"), None, COGVIDEOX_OTHERS),
    "wan_1_3b": _wan("wan_single_identity", "first_stage.pt"),
    "wan_adaln": _wan("wan_adaln", "second_stage_adaln.pt"),
    "wan_mini": Preset("a small untrained Wan", "wan_mini", {TASKS[0]: "wan_mini"}, {TASKS[0]: "wan_mini"}, shipped=True),
    "wan_mini_adaln": Preset("a small untrained Wan", "wan_mini", {TASKS[0]: "wan_mini_adaln"}, {}, shipped=True),
    "consisid": Preset(
        "ConsisID", "consisid", {TASKS[0]: "consisid"}, {}, {TASKS[0]: f"{CONSISID}/transformer"},
        tuple(f"{CONSISID}/{name}" for name in ("vae", "text_encoder", "tokenizer", "scheduler", "face_encoder")), FETCH_CONSISID,
    ),
    "consistentid": Preset(
        "ConsistentID", "consistentid", {TASKS[0]: "consistentid"}, {}, {TASKS[0]: CONSISTENTID},
        tuple(FETCH_CONSISTENTID)[1:], " && ".join(FETCH_CONSISTENTID.values()), fetch_parts=FETCH_CONSISTENTID,
    ),
}  # fmt: skip
UNTRAINED = "wan_mini", "wan_mini_adaln"


def choose(
    model: str | None,
    task: str | None = None,
    base: list[str] | None = None,
    training: bool = False,
    own_weights: bool = False,
    to_run: bool = True,
) -> list[str]:
    """Return the YAML files to read: `base`, or those of a model for a task. `own_weights` stand in for the model's transformer.

    Without a name: for sampling CogVideoX-5B where any of its weights are there, else the demonstration model. Raises `UserError`
    for a name that is not known, a task that the model has no files for, and, if it is `to_run`, weights that are not there.
    """
    if base:
        if model is not None or task:
            option = "task" if model is None else "model"
            raise UserError(f"--{option} and --base: found both, expected one; the files of --base decide the model")
        return base
    task = task or TASKS[0]
    model = default_model(task, training) if model is None else model
    check_name(model)
    files, preset = files_of(model, task, training), PRESETS[model]
    if to_run and not preset.shipped:
        if not own_weights and preset.transformers is None:
            raise UserError(f"--model {model}: no weights of this size are released, expected --load FOLDER with your own")
        require(preset, None if own_weights else preset.transformers[task], preset.others)
    return files


def check_name(model: str) -> None:
    """Raise `UserError` unless a model has this name."""
    if model not in PRESETS:
        raise UserError(f"--model: found {model!r}, expected one of {', '.join(PRESETS)}; the nearest is {nearest(model, PRESETS)}")


def default_model(task: str, training: bool) -> str:
    """Name the model of a command line that names none."""
    paths = COGVIDEOX_WEIGHTS[task], *(os.path.dirname(path) if path.endswith(".pt") else path for path in COGVIDEOX_OTHERS)
    return "cogvideox_5b" if not training and any(os.path.exists(PROJECT_ROOT / path) for path in paths) else "mini"


def files_of(model: str, task: str = TASKS[0], training: bool = False) -> list[str]:
    """Return a model's YAML files for a task. Raises `UserError` if it has none."""
    preset, folder = PRESETS[model], "training" if training else "inference"
    files = preset.training if training else preset.inference
    if task not in files:
        remedy = TRAINED_BY.get(model if training else "", "name your own with --base")
        raise UserError(f"--model: found {model}, which has no {folder} files for {task}; {remedy}")
    return [str(PROJECT_ROOT / "configs" / f"{preset.base}.yaml"), str(PROJECT_ROOT / "configs" / folder / f"{files[task]}.yaml")]


def require(preset: Preset, transformer: str | None, others: Iterable[str]) -> None:
    """Raise `UserError` naming all that is missing of a model's weights and the command that fetches them."""
    missing = [] if transformer is None else _missing_of_transformer(Path(transformer))
    missing += [str(name) for path in others for name in _missing_of_encoder(Path(path))]
    if missing:
        commands = [command for path, command in preset.fetch_parts.items() if any(name.startswith(path) for name in missing)]
        remedy = f"or choose {PRESETS[preset.instead].title} with --model {preset.instead}"
        remedy = f"fetch them with: {' && '.join(commands) or preset.fetch}   {remedy}"
        remedy = "correct --load or the files of --config" if preset.shipped else remedy
        raise UserError(f"{preset.title} lacks {', '.join(missing)} in {PROJECT_ROOT}; {remedy}")


def _missing_of_transformer(path: Path) -> list[str]:
    """List what is missing of Wan's file or folder, or of a SAT checkpoint: `latest`, and the file that it names."""
    there = resolve_path(path)
    if str(path) not in COGVIDEOX_WEIGHTS.values():
        return [] if os.path.exists(there) else [str(path)]
    if not os.path.isfile(there / "latest"):
        return [str(path / "latest")]
    weights = Path(read_text(there / "latest", "the name of a checkpoint", FETCH).strip()) / MODEL_STATES
    return [] if os.path.isfile(there / weights) else [str(path / weights)]


def _missing_of_encoder(path: Path) -> list[Path]:
    """List what is missing of a file, of Wan's tokenizer beside its text encoder, or of T5's folder: every part of its weights."""
    there = resolve_path(path)
    if path.suffix in (".pt", ".pth"):
        tokenizer = [path.parent / TOKENIZER] if "t5" in path.name and not os.path.isdir(there.parent / TOKENIZER) else []
        return [*([] if os.path.isfile(there) else [path]), *tokenizer]
    if path.name != "t5-v1_1-xxl":
        return [] if os.path.exists(there) else [path]
    missing = [name for name in ("config.json", "spiece.model") if not os.path.isfile(there / name)]
    weights = [item.name for kind in ("safetensors", "bin") for item in visible_files(there, f"*.{kind}")]
    parts = re.fullmatch(r"(.*)-[0-9]+-of-([0-9]{5})(\.[a-z]+)", weights[0]) if weights else None
    wanted = [f"{parts[1]}-{number:05d}-of-{parts[2]}{parts[3]}" for number in range(1, int(parts[2]) + 1)] if parts else []
    missing += [name for name in wanted if name not in weights] if weights else ["*.safetensors"]
    return [path / name for name in missing]
