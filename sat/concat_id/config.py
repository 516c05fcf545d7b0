"""What a run is made of, as typed data: the sections of the YAML files, how files are merged, and what must fit together."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from concat_id import released_config
from concat_id.constraints import validate
from concat_id.distributed import choose_device, has_bfloat16
from concat_id.errors import UserError
from concat_id.files import resolve_path
from concat_id.model_config import (
    AutoencoderConfig,
    FaceConfig,
    GuidanceName,
    LoraConfig,
    ModelConfig,
    SamplerConfig,
    ScheduleConfig,
    TextEncoderConfig,
    TransformerConfig,
)
from concat_id.typed import Origins, bounded, build, mismatch, nearest, option, unknown_key
from concat_id.wan_config import WanModelConfig

__all__ = [
    "Args", "AutoencoderConfig", "Config", "DataConfig", "FaceConfig", "LoraConfig", "ModelConfig", "SamplerConfig", "ScheduleConfig",
    "TextEncoderConfig", "TransformerConfig", "WanModelConfig", "load_config", "to_dict",
]  # fmt: skip
COMMAND_LINE = "command line"
MODELS = {"cogvideox": ModelConfig, "wan": WanModelConfig}  # by model.kind
SamplerName = Literal["sde_dpmpp_2m", "ddim", "euler", "unipc"]
@dataclass
class Args:
    """The `args:` section; every key is a command-line option too. `load_config` replaces None by what the model says."""

    prompt: str | None = option(None, "input", "text of one video, in place of --input_file", metavar="TEXT")
    image: tuple[str, ...] = option((), "input", "photos of the people of --prompt, left to right", metavar="FILE")
    input_file: str | None = option(None, "input", "prompt file, one 'prompt@@photo[@@photo]' a line", metavar="FILE")
    output_dir: str = option("outputs", "input", "folder for the results", metavar="FOLDER")
    overwrite: bool = option(False, "input", "make finished videos again")
    seed: int = option(42, "input", "seed of the noise", low=0, high=2**63 - 1)

    mode: Literal["inference", "finetune", "pretrain"] = option("inference", "model", "what the run is for")
    load: str | None = option(None, "model", "checkpoint folder of the transformer", metavar="FOLDER")
    trust_checkpoint: bool = option(False, "model", "load pickles that can run code; only for files you made yourself")
    sampling_image_size: tuple[int, int] | None = option(
        None, "model", "height and width, divisible by 16 (default: the model's)", low=1, metavar=("HEIGHT", "WIDTH")
    )
    sampling_num_frames: int | None = option(
        None, "model", "latent frames: n makes 4(n-1)+1 frames, 1 a portrait picture (default: the model's longest)"
    )
    sampling_fps: int = option(8, "model", "frames per second of the files", low=1)
    num_inference_steps: int | None = option(None, "model", "denoising steps (default: the model's)", low=2)
    guidance_scale: float | None = option(None, "model", "strength of the text (default: the model's)", low=0)
    ref_guidance_scale: float | None = option(None, "model", "strength of references, not 1: a third pass (default: the model's)", low=0)
    early_guidance_scale: float | None = option(None, "model", "strength of the text in the first steps (default: as later)", low=0)
    early_ref_guidance_scale: float | None = option(None, "model", "strength of references in the first steps (default: as later)", low=0)
    early_part: float | None = option(None, "model", "share of the steps that are the first (default: the model's, 0.3)", low=0, high=1)
    end_at_step: int | None = option(None, "model", "step after which the estimate is the video (default: the model's)", low=1)
    guidance: GuidanceName | None = option(None, "model", "course of the guidance scale (default: the model's)")
    sampler: SamplerName | None = option(None, "model", "sampler, the last two for Wan (default: the model's)")
    negative_prompt: str | None = option(None, "model", "text to stay away from (default: the model's)", metavar="TEXT")
    batch_size: int = option(1, "model", "videos per line, with seeds one after the other", low=1)

    memory: Literal["low", "balanced", "high"] = option("balanced", "placement", "what stays on the device")
    tiled_decoding: bool = option(False, "placement", "decode in overlapping tiles: less memory, as low does by itself")
    device: str = option("auto", "placement", "device to compute on; auto takes an accelerator where there is one")
    attention_kernel: Literal["auto", "cudnn", "flash", "efficient", "math"] = option("auto", "placement", "kernel; auto: PyTorch's choice")
    compile: bool = option(False, "placement", "fuse the transformer's blocks by torch.compile: slow first step, rounding differs")
    bf16: bool = option(False, "placement", "compute in bfloat16; auto: where the device has it", metavar="{true,false,auto}")
    fp16: bool = option(False, "placement", "compute in float16; neither means float32")

    train_data: tuple[str, ...] = option((), "training", "training lists (JSON)", metavar="FILE")
    valid_data: tuple[str, ...] = option((), "training", "validation lists (JSON)", metavar="FILE")
    save: str | None = option(None, "training", "folder for checkpoints", metavar="FOLDER")
    experiment_name: str = option("concat-id", "training", "name of the run's folder in --save", metavar="NAME")
    train_iters: int = option(1000, "training", "optimizer steps", low=1)
    save_interval: int = option(100, "training", "steps between checkpoints", low=1)
    log_interval: int = option(20, "training", "steps between lines of the log", low=1)
    eval_interval: int = option(100, "training", "steps between validations", low=1)
    eval_iters: int = option(1, "training", "batches per validation, 0 for none", low=0)
    eval_batch_size: int = option(1, "training", "clips per validation batch", low=1)
    num_workers: int = option(8, "training", "processes that read clips", low=0)
    lr_decay_style: Literal["constant", "linear", "cosine"] | None = option(None, "training", "course of the learning rate")
    warmup_iters: int = option(0, "training", "steps over which the learning rate rises", low=0)
    warmup_part: float | None = option(None, "training", "part of the steps that warmup_iters is at most", low=0, high=1)
    lr: float | None = option(None, "training", "learning rate (default: that of the deepspeed section)", low=0)
    ema_decay: float = option(0.9999, "training", "decay of the averaged weights, 0 for none", low=0, high=1)
    timestep_sampling: Literal["uniform", "logit_normal"] = option("uniform", "training", "how training draws its noise levels")
    logit_mean: float = option(0.0, "training", "logit_normal: middle, as log(t / (1 - t)) of t in (0, 1), 1 being pure noise", metavar="X")
    logit_std: float = option(1.0, "training", "logit_normal: spread in the same measure", low=0.01)
    face_weight: float = option(1.0, "training", "weight of faces in the loss, where lists have face_boxes", low=1)
    resume: str | None = option(None, "training", "continue a run, the latest if none is named", metavar="FOLDER")
    keep_checkpoints: int = option(3, "training", "how many of the last checkpoints stay", low=1)
    eval_samples: int = option(1, "training", "videos sampled at every validation, per process", low=0)
    tensorboard: bool = option(True, "training", "write TensorBoard files")
    latent_cache: str | None = option(None, "training", "folder to keep encoded clips in", metavar="FOLDER")
    latent_windows: int = option(4, "training", "with latent_cache: places of a clip that are encoded; 1 for short clips", low=1)
    ref_noises: int | None = option(None, "training", "with latent_cache: noises of each reference, kept too (default: always new)", low=1)
    checkpoint_activations: bool | None = option(None, "training", "recompute activations to save memory (default: the model's)")
    model_parallel_size: int = option(1, "training", "only 1 is supported", low=1, high=1)
    only_log_video_latents: bool = option(False, "training", "leave validation videos undecoded")
    wandb: bool = option(False, "training", "log to Weights & Biases")
    wandb_project_name: str = option("concat-id", "training", "its project", metavar="NAME")

    @property
    def dtype_name(self) -> str:
        """Name of the torch dtype to compute in."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"


# Keys of released files that nothing reads any more: why, and the only value that still means what it did (if one does).
ACCEPTED_ARGS: dict[str, tuple[str, Any]] = {
    "image2video": ("this project is text-to-video with reference images", False),
    "contextimage2video": ("reference images always are part of the input", True),
    "input_type": ("prompts come from args.input_file or --prompt", "txt"),
    "latent_channels": ("model.autoencoder says it", None),
    "force_inference": ("checkpoints load strictly", None),
    "force_train": ("checkpoints load strictly", None),
    "no_load_rng": ("the state of random generators is never loaded with weights", None),
    "split": ("train_data and valid_data are separate lists", None),
}


@dataclass
class DataConfig:
    """Training clips: size, frames per second, length, and source frames to skip at both ends. None means the model's.

    Batches of pictures, which are videos of one frame, have `picture_batch` of them (None: as many as there are clips in a batch).
    An epoch shows clips of more frames `clip_repeats` times, and what has one of `rare_words` in its caption (whole words, any case)
    `rare_repeats` times.
    """

    video_size: tuple[int, int] | None = bounded(None, low=1)
    fps: int = bounded(8, low=1)
    max_num_frames: int | None = bounded(None, low=1)
    skip_frms_num: int = bounded(3, low=0)
    picture_batch: int | None = bounded(None, low=1)
    clip_repeats: int = bounded(1, low=1)
    rare_words: tuple[str, ...] = ()
    rare_repeats: int = bounded(1, low=1)


@dataclass
class Config:
    """A whole run; `deepspeed` is passed on to DeepSpeed as it is."""

    model: ModelConfig | WanModelConfig
    args: Args = field(default_factory=Args)
    data: DataConfig = field(default_factory=DataConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)


SECTIONS = tuple(section.name for section in dataclasses.fields(Config))


def load_config(
    paths: Iterable[str | Path], overrides: dict[str, Any] | None = None, options: dict[str, str] | None = None
) -> Config:
    """Merge YAML files left to right, put `overrides` over `args`, and return the checked, typed whole.

    Model sections may be in this project's form or in the released `target:`/`params:` one. `options` says what keys of `overrides`
    are called on the command line where that is not their name.
    Raises `UserError` naming file, key, value found and value expected.
    """
    origins, files = Origins(), []
    for path in [str(path) for path in paths]:
        files.append((path, _read_file(path, origins)))
    if not files:
        raise UserError("--base: no file given, expected one or more YAML files; try --base configs/mini.yaml")
    _check_one_form(files)
    raw = _merge(files)
    raw.setdefault("args", {}).update(_read_overrides(overrides or {}, origins, options or {}))
    _drop_accepted(raw["args"], origins)
    _take_precision(raw, origins)
    if "model" not in raw:
        raise UserError(f"{files[-1][0]}: no model section in the files given; add one, e.g. --base configs/mini.yaml {files[-1][0]}")
    if released_config.form_of(raw["model"]) == released_config.RELEASED:
        raw["model"] = released_config.import_model(raw["model"], origins)
    config = Config(
        model=build(_model_class(raw["model"], origins), raw["model"], "model", origins),
        args=build(Args, raw["args"], "args", origins),
        data=build(DataConfig, raw.get("data", {}), "data", origins),
        deepspeed=raw.get("deepspeed", {}),
    )
    _fill_in(config, origins)
    validate(config, origins)
    return config


def _model_class(model: dict[str, Any], origins: Origins) -> type:
    kind = model.get("kind", "cogvideox")
    if kind not in MODELS:
        raise mismatch("model.kind", kind, f"one of {', '.join(MODELS)}", origins, f"the nearest is {nearest(str(kind), MODELS)}")
    return MODELS[kind]


def to_dict(config: Any) -> Any:
    """Return a config, or a part of one, as plain mappings, lists and scalars that JSON can hold."""
    if dataclasses.is_dataclass(config):
        return {item.name: to_dict(getattr(config, item.name)) for item in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {name: to_dict(value) for name, value in config.items()}
    return [to_dict(value) for value in config] if isinstance(config, list | tuple) else config


def _read_file(path: str, origins: Origins) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(resolve_path(path)), resolve=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown line"
        raise UserError(f"{path}: {where}: not valid YAML ({error.problem}); mend that line") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, expected a YAML file; check --base") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, expected sections {', '.join(SECTIONS)}")
    args = {item.name for item in dataclasses.fields(Args)} | set(ACCEPTED_ARGS)
    for name, section in content.items():
        origins.record(str(name), path)
        if name not in SECTIONS:
            misplaced = UserError(f"{path}: {name}: belongs under args:; indent it there")
            raise misplaced if name in args else unknown_key(str(name), SECTIONS, origins)
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
    forms = [(path, released_config.form_of(content["model"])) for path, content in files if "model" in content]
    forms = [(path, form) for path, form in forms if form]
    for path, form in forms[1:]:
        first, expected = forms[0]
        if form != expected:
            raise UserError(f"{path}: its model section has the {form} form, that of {first} the {expected} form; give files of one form")


def _merge(files: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    try:
        merged = OmegaConf.merge(*(content for _, content in files))
        return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        names = ", ".join(path for path, _ in files)
        raise UserError(f"{names}: cannot be merged ({' '.join(str(error).split())})") from error


def _read_overrides(overrides: dict[str, Any], origins: Origins, options: dict[str, str]) -> dict[str, Any]:
    given = {name.replace("-", "_"): value for name, value in overrides.items()}
    for name in given:
        origins.record(f"args.{name}", COMMAND_LINE, options.get(name, f"--{name}"))
    for name, other in (("bf16", "fp16"), ("fp16", "bf16")):
        if other not in given and str(given.get(name)).lower() in ("true", "yes", "on", "1"):
            given[other] = False  # asking for one precision takes back the files' other one
    return given


def _take_precision(raw: dict[str, Any], origins: Origins) -> None:
    """Let `deepspeed` say the precision where `args` does not, as training files do, and the device where bf16 is auto."""
    if not {"bf16", "fp16"} & set(raw["args"]):
        for name in ("bf16", "fp16"):
            section = raw.get("deepspeed", {}).get(name)
            if isinstance(section, dict) and section.get("enabled") is True:
                raw["args"][name] = True
                origins.alias(f"args.{name}", f"deepspeed.{name}.enabled")
    if raw["args"].get("bf16") == "auto":
        raw["args"]["bf16"] = has_bfloat16(choose_device(str(raw["args"].get("device", "auto"))))


def _drop_accepted(args: dict[str, Any], origins: Origins) -> None:
    for name in set(args) & set(ACCEPTED_ARGS):
        reason, only = ACCEPTED_ARGS[name]
        value = args.pop(name)
        if only is not None and str(value).lower() != str(only).lower():
            raise mismatch(f"args.{name}", value, str(only).lower(), origins, f"{reason}, so remove the key")


def _fill_in(config: Config, origins: Origins) -> None:
    """Put the model's sizes where args and data give none, and what args says of sampling over the model's."""
    args, data, transformer, sampler = config.args, config.data, config.model.transformer, config.model.sampler
    factor = config.model.autoencoder.spatial_factor
    largest = (transformer.latent_height * factor, transformer.latent_width * factor)
    args.sampling_image_size = args.sampling_image_size or largest
    if args.sampling_num_frames is None:
        args.sampling_num_frames = transformer.max_latent_frames
    data.video_size = data.video_size or largest
    data.max_num_frames = data.max_num_frames or transformer.num_frames
    early = "early_guidance_scale", "early_ref_guidance_scale", "early_part"
    names = "num_inference_steps", "guidance_scale", "ref_guidance_scale", *early, "end_at_step", "guidance"
    given = {"name": args.sampler, **{name: getattr(args, name) for name in names}}
    for name, value in given.items():
        if value is not None:
            setattr(sampler, name, value)
            origins.alias(f"model.sampler.{name}", f"args.{'sampler' if name == 'name' else name}")
    if args.negative_prompt is not None:
        config.model.negative_prompt = args.negative_prompt
    if args.warmup_part is not None:
        args.warmup_iters = min(args.warmup_iters, int(args.warmup_part * args.train_iters))
    if args.checkpoint_activations is not None:
        transformer.checkpoint_activations = args.checkpoint_activations
