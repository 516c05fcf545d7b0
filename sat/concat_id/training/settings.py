"""DeepSpeed's configuration from the `deepspeed:` section, which is passed on as it is but for what this project does itself."""

import copy
from dataclasses import dataclass
from typing import Any

from concat_id.config import Config
from concat_id.errors import UserError

MUON = "muon"
OPTIMIZERS = ("adamw", "adam", "sat.ops.fusedemaadam", "fusedemaadam")  # all of them become our AdamW
OPTIMIZER_DEFAULTS = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-4}  # as released
SCALING = ("loss_scale", "loss_scale_window", "hysteresis", "min_loss_scale", "initial_scale_power")


@dataclass(frozen=True)
class EngineSettings:
    """What the engine is built from; `notes` tell the user what was changed."""

    deepspeed: dict[str, Any]
    optimizer: dict[str, Any]
    micro_batch_size: int
    accumulation: int
    notes: tuple[str, ...]

    @property
    def muon(self) -> bool:
        """Whether Muon updates the matrices inside of layers."""
        return "momentum" in self.optimizer

    @property
    def zero_stage(self) -> int:
        """Stage of ZeRO."""
        return self.deepspeed["zero_optimization"]["stage"]


def engine_settings(config: Config, world_size: int) -> EngineSettings:
    """Derive DeepSpeed's configuration and the optimizer's settings; raises `UserError` for what cannot be."""
    given, notes = copy.deepcopy(config.deepspeed), []
    optimizer = _optimizer(given.pop("optimizer", None) or {}, notes)
    if config.args.lr is not None:
        optimizer["lr"] = config.args.lr
    optimizer["ema_decay"] = config.args.ema_decay
    if given.pop("scheduler", None):
        raise UserError("deepspeed.scheduler: found one, expected none; set args.lr_decay_style and args.warmup_iters instead")
    micro, accumulation = _batch_sizes(given, config.args.batch_size, world_size)
    given |= {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
    given.pop("train_batch_size", None)
    _precision(given, config, notes)
    _zero(given, notes)
    zero = given["zero_optimization"]
    if "momentum" in optimizer and (zero["stage"] == 3 or zero.get("offload_optimizer")):
        found = "stage 3" if zero["stage"] == 3 else "offload_optimizer"
        raise UserError(f"deepspeed.zero_optimization: found {found}, expected stage 1 or 2 without offload_optimizer for Muon; use AdamW")
    return EngineSettings(given, optimizer, micro, accumulation, tuple(notes))


def _optimizer(section: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    kind = str(section.get("type", "AdamW"))
    if kind.lower() not in (*OPTIMIZERS, MUON):
        raise UserError(f"deepspeed.optimizer.type: found {kind!r}, expected AdamW, Muon or sat.ops.FusedEmaAdam; change it")
    if kind.lower() in OPTIMIZERS[1:]:
        notes.append(f"deepspeed.optimizer: {kind} stands for torch's AdamW, with a moving average of the weights in its state")
    params = section.get("params") or {}
    defaults = OPTIMIZER_DEFAULTS | ({"momentum": 0.95} if kind.lower() == MUON else {})
    unknown = sorted(set(params) - set(defaults) - {"torch_adam", "adam_w_mode", "fused", "bias_correction"})
    if unknown:
        raise UserError(f"deepspeed.optimizer.params.{unknown[0]}: unknown key, expected {', '.join(defaults)}")
    values = defaults | {name: params[name] for name in defaults if name in params}
    for name, value in values.items():
        values[name] = tuple(_number(item, name) for item in value) if name == "betas" else _number(value, name)
    if not values.get("momentum", 0) < 1:
        raise UserError(f"deepspeed.optimizer.params.momentum: found {values['momentum']}, expected less than 1")
    return values


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)  # YAML reads 1e-8 as text
    except (TypeError, ValueError):
        number = -1.0
    if not number >= 0:
        raise UserError(f"deepspeed.optimizer.params.{name}: found {value!r}, expected a number, 0 or more")
    return number


def _batch_sizes(given: dict[str, Any], default: int, world_size: int) -> tuple[int, int]:
    """Micro-batch and accumulation, also from `train_batch_size` and one of them."""
    def whole(name: str) -> int | None:
        value = given.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"deepspeed.{name}: found {value!r}, expected a whole number, 1 or more")
        return value

    total, micro, accumulation = map(whole, ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"))
    if total is not None:
        if micro is None and accumulation is not None:
            micro = total // (accumulation * world_size)
        micro = micro or default
        accumulation = accumulation or total // (micro * world_size)
        if micro * accumulation * world_size != total:
            product = f"{micro} a process x {accumulation} accumulated x {world_size} processes"
            raise UserError(f"deepspeed.train_batch_size: found {total}, expected {product}; correct one of them")
    return micro or default, accumulation or 1


def _precision(given: dict[str, Any], config: Config, notes: list[str]) -> None:
    for name in ("bf16", "fp16"):
        section = given.get(name) if isinstance(given.get(name), dict) else {}
        given[name] = {**section, "enabled": getattr(config.args, name)}
    scaling = {name: given.pop(name) for name in SCALING if name in given}  # released files have them one level too high
    if config.args.fp16 and scaling:
        given["fp16"] = scaling | given["fp16"]
        notes.append(f"deepspeed: {', '.join(scaling)} belong under fp16 and were moved there")


def _zero(given: dict[str, Any], notes: list[str]) -> None:
    zero = given.setdefault("zero_optimization", {})
    stage = zero.setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"deepspeed.zero_optimization.stage: found {stage!r}, expected 0, 1, 2 or 3")
    if zero.get("cpu_offload") is False:
        del zero["cpu_offload"]  # its old name; False is the default of the new one
    elif zero.pop("cpu_offload", None):
        zero["offload_optimizer"] = {"device": "cpu"}
    if zero.get("offload_optimizer") == {"device": "none"}:
        del zero["offload_optimizer"]
    if zero.get("round_robin_gradients"):
        raise UserError("deepspeed.zero_optimization.round_robin_gradients: found true, with which no checkpoint can be written; remove it")
    if stage == 0:
        zero["stage"] = 1
        notes.append("deepspeed.zero_optimization.stage: 1 in place of 0, the same computation with the optimizer's states shared out")
    if zero.get("offload_optimizer"):
        given["zero_force_ds_cpu_optimizer"] = False
    given["zero_allow_untested_optimizer"] = True
