"""From YAML files and a command line to a checked, typed configuration."""

import dataclasses
import functools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from concat_id.config import released_model
from concat_id.config.args import RIVALS, DataConfig, SamplingArgs, TrainingArgs
from concat_id.config.constraints import validate
from concat_id.config.released_args import ACCEPTED_ARGS, drop_accepted
from concat_id.config.schema import BACKBONES, MODELS, SECTIONS, TRAINED_BY, Config, fields_of_args
from concat_id.config.typed import Origins, build, mismatch, nearest, shown, unknown_key, within
from concat_id.config.yaml_files import merge, read_yaml, resolve_references
from concat_id.distributed import choose_device, has_bfloat16
from concat_id.errors import UserError, warn
from concat_id.files.paths import expand_path, kind_of, resolve_path

COMMAND_LINE = "command line"
NAMES_OF_RUNS = ("latest", "true", "false")  # what args.resume may be besides a path


def load_config(
    paths: Iterable[str | Path], overrides: dict[str, Any] | None = None, options: dict[str, str] | None = None,
    kinds: Collection[str] = MODELS,
) -> Config:  # fmt: skip
    """Merge YAML files left to right, put `overrides` over `args`, and return the checked, typed whole.

    Model sections may be in this project's form or in the released `target:`/`params:` one. `options` says what keys of `overrides`
    are called on the command line where that is not their name; `kinds` says which models will do.
    Raises `UserError` naming file, key, value found and value expected.
    """
    origins, files = Origins(), []
    for path in [str(path) for path in paths]:
        files.append((path, _read_file(path, origins)))
    if not files:
        raise UserError("--base: no file given, expected one or more YAML files; try --base configs/mini.yaml")
    _check_one_form(files)
    given = _read_overrides(overrides or {}, origins, options or {})
    raw = resolve_references(functools.reduce(functools.partial(_put_over, origins), (content for _, content in files), {}), origins)
    raw.setdefault("args", {})
    raw = _put_over(origins, raw, {"args": given})
    drop_accepted(raw["args"], origins)
    _choose_rivals(raw["args"], origins)
    if raw["args"].get("compile") == "auto":
        del raw["args"]["compile"]  # for which the types have no other word
    _take_from_deepspeed(raw, origins)
    if "model" not in raw:
        raise UserError(f"{files[-1][0]}: no model section in the files given; add one, e.g. --base configs/mini.yaml {files[-1][0]}")
    if released_model.form_of(raw["model"]) == released_model.RELEASED:
        raw["model"] = released_model.import_model(raw["model"], origins, raw["args"].get("mode", "inference") != "inference")
    unknown = next((name for name in raw["args"] if name not in fields_of_args()), None) if isinstance(raw["args"], dict) else None
    if unknown:
        raise unknown_key(f"args.{unknown}", fields_of_args(), origins)
    config = Config(
        model=build(_model_class(raw["model"], origins, kinds), raw["model"], "model", origins),
        args=_build_args(SamplingArgs, raw["args"], origins),
        training=_build_args(TrainingArgs, raw["args"], origins),
        data=build(DataConfig, raw.get("data", {}), "data", origins),
        deepspeed={name: value for name, value in raw.get("deepspeed", {}).items() if value is not None},
        origins=origins,
    )
    _fill_in(config, origins)
    for section, key in ((config.model, "model."), (config.args, "args."), (config.training, "args."), (config.data, "data.")):
        _settle_paths(section, key, origins)
    validate(config)
    return config


def _build_args(section: type, args: dict[str, Any], origins: Origins) -> Any:
    names = {item.name for item in dataclasses.fields(section)}
    return build(section, {name: value for name, value in args.items() if name in names}, "args", origins)


def _model_class(model: dict[str, Any], origins: Origins, kinds: Collection[str]) -> type:
    kind = model.get("kind", "cogvideox")
    if not isinstance(kind, str) or kind not in MODELS:
        raise mismatch("model.kind", kind, f"one of {', '.join(MODELS)}", origins, f"the nearest is {nearest(shown(kind), MODELS)}")
    if kind not in kinds:
        raise mismatch("model.kind", kind, " or ".join(kinds), origins, TRAINED_BY[kind])
    return MODELS[kind]


def _read_file(path: str, origins: Origins) -> dict[str, Any]:
    content = read_yaml(resolve_path(path, place="command line: --base"), path, "check --base") or {}
    if not content:
        warn(f"{path}: found nothing in it, expected one of the sections {', '.join(SECTIONS)}")
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, expected sections {', '.join(SECTIONS)}")
    args = fields_of_args().keys() | ACCEPTED_ARGS.keys()
    for name, section in content.items():
        origins.record(name, path)
        if name not in SECTIONS:
            misplaced = UserError(f"{path}: {name}: belongs under args:; indent it there")
            raise misplaced if name in args else unknown_key(name, SECTIONS, origins)
        if not isinstance(section, dict | None):
            raise mismatch(name, section, "a mapping of keys to values", origins)
        _record(name, section, path, origins)
    content = {name: section for name, section in content.items() if section}
    if "data" in content:
        content["data"] = _flatten_data(content["data"], origins)
    return content


def _record(key: str, value: Any, source: str, origins: Origins) -> None:
    origins.record(key, source)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        _record(f"{key}.{name}", inner, source, origins)


def _flatten_data(data: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Take the released `target:`/`params:` form apart; the target, a class of the original, is ignored."""
    params = data.get("params") or {}
    if not isinstance(params, dict):
        raise mismatch("data.params", params, "a mapping of keys to values", origins)
    for name in params:
        origins.alias(f"data.{name}", f"data.params.{name}")
    return {name: value for name, value in data.items() if name not in ("target", "params")} | params


def _check_one_form(files: list[tuple[str, dict[str, Any]]]) -> None:
    forms = [(path, released_model.form_of(content["model"])) for path, content in files if "model" in content]
    forms = [(path, form) for path, form in forms if form]
    for path, form in forms[1:]:
        first, expected = forms[0]
        if form != expected:
            raise UserError(f"{path}: its model section has the {form} form, that of {first} the {expected} form; give files of one form")


def _put_over(origins: Origins, earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Merge two files; of keys that exclude one another the later one's stays."""
    given = {name for name, value in (later.get("args") or {}).items() if value is not None}
    taken_back = {other for pair in RIVALS for one, other in (pair, pair[::-1]) if one in given and other not in given}
    args = {name: value for name, value in earlier.get("args", {}).items() if name not in taken_back}
    return merge(earlier | ({"args": args} if args else {}), later, origins)


def _choose_rivals(args: dict[str, Any], origins: Origins) -> None:
    for one, other in RIVALS:
        if args.get(one) is not None and args.get(other) is not None:
            raise mismatch(f"args.{other}", args[other], f"none where args.{one} is given", origins, "remove one of them")
        args.pop(one if args.get(one) is None else other, None)


def _read_overrides(overrides: dict[str, Any], origins: Origins, options: dict[str, str]) -> dict[str, Any]:
    given = {name.replace("-", "_"): value for name, value in overrides.items()}
    for name in given:
        origins.record(f"args.{name}", COMMAND_LINE, options.get(name, f"--{name}"))
    for name, other in (("bf16", "fp16"), ("fp16", "bf16")):
        if other not in given and str(given.get(name)).lower() in ("true", "yes", "on", "1"):
            given[other] = False  # asking for one precision takes back the files' other one
    return given


def _take_from_deepspeed(raw: dict[str, Any], origins: Origins) -> None:
    """Let `deepspeed` say precision and averaging where `args` does not, as training files do, and the device where bf16 is auto."""
    args, section = raw["args"], raw.get("deepspeed")
    given = {} if {"bf16", "fp16"} & set(args) else {name: f"{name}.enabled" for name in ("bf16", "fp16")}
    for name, key in (given | {"ema_decay": "optimizer.params.ema_decay"}).items():
        value = within(section, key)
        if name not in args and value is not None and (name == "ema_decay" or value is True):
            args[name] = value
            origins.alias(f"args.{name}", f"deepspeed.{key}")
    if raw["args"].get("bf16") == "auto":
        raw["args"]["bf16"] = has_bfloat16(choose_device(str(raw["args"].get("device", "auto"))))
        if raw["args"]["bf16"]:
            raw["args"]["fp16"] = False


def _fill_in(config: Config, origins: Origins) -> None:
    """Put the model's sizes where data gives none, the clips' where args gives none, and what args says of sampling over the model's."""
    args, data, model, sampler = config.args, config.data, config.model, config.model.sampler
    data.fps = data.fps or model.fps
    data.video_size = data.video_size or model.largest_size
    data.max_num_frames = data.max_num_frames or model.num_frames
    sizes = model.fps, model.largest_size, model.max_latent_frames
    if model.kind in BACKBONES:  # ConsistentID's portraits are larger than what it is trained with
        sizes = data.fps, data.video_size, model.latent_frames(data.max_num_frames)
    for name, value in zip(("sampling_fps", "sampling_image_size", "sampling_num_frames"), sizes, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    names = "num_inference_steps", "guidance_scale", "ref_guidance_scale", "guidance"
    given = {"name": args.sampler, **{name: getattr(args, name) for name in names}}
    for name, value in given.items():
        if value is not None:
            setattr(sampler, name, value)
            origins.alias(f"model.sampler.{name}", f"args.{'sampler' if name == 'name' else name}")
    if args.network == "auto":
        needs_it = args.cache or args.quantize or args.parallel == "video" or model.kind != "cogvideox"
        args.network = "diffusers" if needs_it else "sat"
    if args.best_of and args.batch_size == 1:
        args.batch_size = args.best_of
    if args.negative_prompt is not None:
        model.negative_prompt = args.negative_prompt
    if config.training.epochs is None:
        config.training.count_steps()
    if config.training.checkpoint_activations is not None and model.kind in BACKBONES:
        model.transformer.checkpoint_activations = config.training.checkpoint_activations


def _settle_paths(section: Any, key: str, origins: Origins) -> None:
    """Expand `~` in every path; one that is read becomes that of the file beside the YAML file that names it, if there is one."""
    for item in dataclasses.fields(section):
        value, place = getattr(section, item.name), f"{key}{item.name}"
        way = item.metadata.get("path")
        if dataclasses.is_dataclass(value):
            _settle_paths(value, f"{place}.", origins)
        elif way and value is not None and not (item.name == "resume" and value in NAMES_OF_RUNS):
            source = origins.source(place) if way == "read" else None
            beside = resolve_path(source).parent if source and source != COMMAND_LINE else None
            paths = [_settle(path, place, beside, origins) for path in (value if isinstance(value, tuple) else (value,))]
            setattr(section, item.name, tuple(paths) if isinstance(value, tuple) else paths[0])


def _settle(text: str, key: str, beside: Path | None, origins: Origins) -> str:
    if not text.strip():
        raise mismatch(key, text, "a path", origins, "leave it out")
    path = expand_path(text, origins.place(key))
    found = beside / path if beside else path
    return str(found) if beside and kind_of(found) in ("a file", "a folder") else text if not text.startswith("~") else str(path)
