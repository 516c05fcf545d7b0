"""DeepSpeed's configuration from the `deepspeed:` section, which is passed on as it is but for what this project does itself."""

import copy
from dataclasses import dataclass, fields
from typing import Any

from concat_id.config.loading import COMMAND_LINE
from concat_id.config.schema import Config
from concat_id.config.typed import Origins, build, convert, mismatch, size, to_float, unknown_key, within
from concat_id.errors import UserError
from concat_id.training.deepspeed_keys import check_deepspeed

OPTIMIZERS = ("adamw", "adam", "sat.ops.fusedemaadam", "fusedemaadam")  # all of them become our AdamW
WITHOUT_EFFECT = ("torch_adam", "fused", "set_grad_none", "ema_decay")  # they choose among Adams of equal results; args.ema_decay
ALWAYS_TRUE = ("adam_w_mode", "bias_correction", "use_num_upates")  # spelled as in SAT
MAPPINGS = ("optimizer", "zero_optimization", "bf16", "fp16")
BELOW_ONE = 1 - 1e-9
SCALING = ("loss_scale", "loss_scale_window", "hysteresis", "min_loss_scale", "initial_scale_power")


@dataclass
class AdamConfig:
    """The optimizer's settings; defaults are as released."""

    lr: float = size(1e-5, "learning rate", low=0)
    betas: tuple[float, float] = size((0.9, 0.95), "decay of both moments", low=0, high=BELOW_ONE)
    eps: float = size(1e-8, "added to the root", low=0)
    weight_decay: float = size(1e-4, "weight decay", low=0)


@dataclass
class BatchConfig:
    """The keys that say how large a batch is."""

    train_batch_size: int | None = size(None, "clips of a step", low=1, high=10**8)
    train_micro_batch_size_per_gpu: int | None = size(None, "clips of a process at once", low=1, high=10**5)
    gradient_accumulation_steps: int | None = size(None, "micro-batches of a step", low=1, high=10**5)


@dataclass(frozen=True)
class EngineSettings:
    """What the engine is built from; `notes` tell the user what was changed."""

    deepspeed: dict[str, Any]
    optimizer: dict[str, Any]
    micro_batch_size: int
    accumulation: int
    notes: tuple[str, ...]

    @property
    def zero_stage(self) -> int:
        """Stage of ZeRO."""
        return self.deepspeed["zero_optimization"]["stage"]


def engine_settings(config: Config, world_size: int) -> EngineSettings:
    """Derive DeepSpeed's configuration and the optimizer's settings; raises `UserError` for what cannot be."""
    args, origins, notes = config.training, config.origins, []
    given = copy.deepcopy(config.deepspeed)
    for name in MAPPINGS:
        if not isinstance(given.get(name, {}), dict):
            raise mismatch(f"deepspeed.{name}", given[name], "a mapping of keys to values", origins)
    _conflicts(given, config, notes)
    optimizer = _optimizer(given.pop("optimizer", {}), notes, origins)
    optimizer |= {name: getattr(args, name) for name in ("lr", "weight_decay") if getattr(args, name) is not None}
    optimizer["ema_decay"] = args.ema_decay
    if given.pop("scheduler", None):
        raise UserError(f"{origins.place('deepspeed.scheduler')}: found one, expected none; set args.lr_decay_style and args.warmup_iters")
    if args.gradient_accumulation_steps is not None:
        given["gradient_accumulation_steps"] = args.gradient_accumulation_steps
    if args.zero_stage is not None:
        given["zero_optimization"] = given.get("zero_optimization", {}) | {"stage": args.zero_stage}
    if origins.source("args.batch_size") == COMMAND_LINE:
        given["train_micro_batch_size_per_gpu"] = config.args.batch_size
    micro, accumulation = _batch_sizes(given, config.args.batch_size, world_size, origins)
    given |= {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
    _precision(given, config, notes)
    _zero(given, notes, origins)
    check_deepspeed(given, origins)
    given.setdefault("timers", {"throughput": {"enabled": False}})  # they wait for the device at every micro-batch, for a log not shown
    return EngineSettings(given, optimizer, micro, accumulation, tuple(notes))


def _optimizer(section: dict[str, Any], notes: list[str], origins: Origins) -> dict[str, Any]:
    key = "deepspeed.optimizer"
    kind, params = section.pop("type", "AdamW"), section.pop("params", None) or {}
    section.pop("legacy_fusion", None)
    for name in section:
        raise unknown_key(f"{key}.{name}", ("type", "params"), origins)
    if not isinstance(kind, str) or kind.lower() not in OPTIMIZERS:
        raise mismatch(f"{key}.type", kind, "AdamW or sat.ops.FusedEmaAdam", origins, "change it")
    if kind.lower() in OPTIMIZERS[1:]:
        notes.append(f"{key}: {kind} stands for torch's AdamW, with a moving average of the weights in its state")
    if isinstance(params, dict):
        for name in ALWAYS_TRUE:
            obeyed = name != "adam_w_mode" or kind.lower() != "adamw"  # which DeepSpeed makes an AdamW in any case
            if not convert(params.pop(name, True), bool, f"{key}.params.{name}", origins) and obeyed:
                raise mismatch(f"{key}.params.{name}", False, "true, as AdamW and its average are here", origins, "remove it")
        params = {name: value for name, value in params.items() if name not in WITHOUT_EFFECT and (name, value) != ("amsgrad", False)}
    return vars(build(AdamConfig, params, f"{key}.params", origins))


RIVALS = {  # keys of `args:`, and those of the `deepspeed:` section that say the same
    "lr": "optimizer.params.lr", "weight_decay": "optimizer.params.weight_decay", "ema_decay": "optimizer.params.ema_decay",
    "bf16": "bf16.enabled", "fp16": "fp16.enabled",
    "zero_stage": "zero_optimization.stage", "gradient_accumulation_steps": "gradient_accumulation_steps",
    "batch_size": "train_micro_batch_size_per_gpu",
}  # fmt: skip


def _conflicts(given: dict[str, Any], config: Config, notes: list[str]) -> None:
    """Say where files give a key of `args:` and another value in the `deepspeed:` section, which the original prefers."""
    for name, other in RIVALS.items():
        mine, theirs = getattr(config.args if hasattr(config.args, name) else config.training, name), within(given, other)
        in_a_file = config.origins.source(f"args.{name}") not in (None, COMMAND_LINE)
        if in_a_file and None not in (mine, theirs) and _number(mine) != _number(theirs):
            both = (f"args.{name}", mine), (f"deepspeed.{other}", theirs)
            taken, left = both[::-1] if name == "batch_size" else both
            notes.append(f"{taken[0]}: {taken[1]} is taken, not {left[0]}, which says {left[1]}; remove one of them")


def _number(value: Any) -> Any:
    number = to_float(value)
    return value if number is None else number


def _batch_sizes(given: dict[str, Any], default: int, world_size: int, origins: Origins) -> tuple[int, int]:
    """Micro-batch and accumulation, also from `train_batch_size` and one of them."""
    names = [item.name for item in fields(BatchConfig)]
    sizes = build(BatchConfig, {name: given.pop(name) for name in names if name in given}, "deepspeed", origins)
    total, micro, accumulation = (getattr(sizes, name) for name in names)
    if total is not None:
        if micro is None and accumulation is not None:
            micro = total // (accumulation * world_size)
        micro = micro or default
        accumulation = accumulation or total // (micro * world_size)
        if micro * accumulation * world_size != total:
            product = f"{micro} a process x {accumulation} accumulated x {world_size} processes"
            raise mismatch("deepspeed.train_batch_size", total, product, origins, "correct one of them")
    return micro or default, accumulation or 1


def _precision(given: dict[str, Any], config: Config, notes: list[str]) -> None:
    for name in ("bf16", "fp16"):
        given[name] = {**given.get(name, {}), "enabled": getattr(config.args, name)}
    scaling = {name: given.pop(name) for name in SCALING if name in given}  # released files have them one level too high
    if config.args.fp16 and scaling:
        given["fp16"] = scaling | given["fp16"]
        notes.append(f"deepspeed: {', '.join(scaling)} belong under fp16 and were moved there")


def _zero(given: dict[str, Any], notes: list[str], origins: Origins) -> None:
    zero = given.setdefault("zero_optimization", {})
    key = "deepspeed.zero_optimization.stage"
    stage = zero["stage"] = convert(zero.get("stage", 0), int, key, origins)
    if stage not in (0, 1, 2, 3):
        raise mismatch(key, stage, "0, 1, 2 or 3", origins)
    if zero.pop("cpu_offload", None):  # its old name
        zero["offload_optimizer"] = {"device": "cpu"}
    if zero.get("offload_optimizer") == {"device": "none"}:
        del zero["offload_optimizer"]
    if zero.get("round_robin_gradients"):
        key = "deepspeed.zero_optimization.round_robin_gradients"
        raise UserError(f"{origins.place(key)}: found true, with which no checkpoint can be written; remove it")
    if stage == 0:
        zero["stage"] = 1
        notes.append("deepspeed.zero_optimization.stage: 1 in place of 0, the same computation with the optimizer's states shared out")
    if zero.get("offload_optimizer"):
        given["zero_force_ds_cpu_optimizer"] = False
    given["zero_allow_untested_optimizer"] = True
