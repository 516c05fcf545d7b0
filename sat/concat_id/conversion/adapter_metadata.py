"""How strongly low-rank products count: the settings of peft's LoraConfig that diffusers saves in a file's metadata."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from concat_id.errors import UserError, one_line
from concat_id.files.json_files import parse_json

ENTRY = "lora_adapter_metadata"
DEFAULT = 8  # of both numbers in LoraConfig
LARGEST = 10**6
SCALE = {"r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora"}
# What is of training alone, or told by the names of the tensors. Any other setting that is on may change what a product means.
NO_EFFECT = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "target_modules",
    "exclude_modules", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save", "layers_to_transform", "layers_pattern",
    "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "lora_bias", "ensure_weight_tying",
}  # fmt: skip
START, STARTS = "init_lora_weights", (True, False, None, "gaussian", "eva")  # these leave the weights themselves alone


def saved_scale(path: Path, prefix: str = "") -> Callable[[str, int], float] | None:
    """Return what gives the scale of a layer's product, by its name and rank, as peft does; None where the file does not tell.

    Settings are those whose keys start with `prefix`. Raises `UserError` for what is damaged or means something else than products.
    """
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(ENTRY)
    if not text:
        return None
    source = f"{path}: {ENTRY}"
    settings = parse_json(text, source)
    if not isinstance(settings, dict):
        raise UserError(f"{source}: found a {type(settings).__name__}, expected settings by name; save the file again")
    settings = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    unknown = (key for key, value in settings.items() if (value not in STARTS if key == START else value and key not in SCALE | NO_EFFECT))
    if key := next(unknown, None):
        found = one_line(f"{key:.60}: found {settings[key]!r:.60}")
        expected = "expected plain low-rank products; load them in diffusers, call pipe.fuse_lora(); pipe.unload_lora_weights() and save"
        raise UserError(f"{source}: {found}, {expected} the folder")
    return partial(_scale, settings, source)


def _scale(settings: Mapping[str, Any], source: str, layer: str, rank: int) -> float:
    told = _number(settings, "r", "rank_pattern", layer, source)
    if told != rank:
        raise UserError(f"{source}: r: found {told:g} for {layer}, expected {rank} as its weights have; save the file again")
    return _number(settings, "lora_alpha", "alpha_pattern", layer, source) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _number(settings: Mapping[str, Any], key: str, patterns: str, layer: str, source: str) -> float:
    """Take the value of the first pattern that fits the layer's name, or its end after a dot, else that of all (peft's get_pattern_key)."""
    values = settings.get(patterns) or {}
    try:
        fitting = next((pattern for pattern in values if re.match(rf"(.*\.)?({pattern})$", layer)), layer)
        value = values.get(fitting, settings.get(key, DEFAULT))
    except (re.error, RecursionError, OverflowError, AttributeError, TypeError) as error:
        found = one_line(f"{values!r:.100}")
        raise UserError(f"{source}: {patterns}: found {found}, expected names or patterns of layers; save the file again") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise UserError(f"{source}: {key}: found {one_line(f'{value!r:.40}')} for {layer}, expected a number of at most {LARGEST:,}; save"
                        " the file again")  # fmt: skip
    return value
