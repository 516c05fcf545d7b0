"""DeepSpeed's engine around one network: start the processes, take steps, and get at the whole of what ZeRO has cut up."""

import contextlib
import datetime
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from concat_id.distributed import join_alone, join_processes, local_rank, rank, world_size
from concat_id.errors import UserError, reason_of
from concat_id.training.optimizer import STATES, EmaAdamW
from concat_id.training.settings import EngineSettings

SCALER = "cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"  # what a dynamic loss scaler changes in itself
TIMEOUT = datetime.timedelta(hours=1)  # a checkpoint of the first process may take long on a slow disk
States = dict[str, Tensor]


def start_processes(device: torch.device) -> None:
    """Join the processes that torchrun started, or be alone; collectives run where `device` is."""
    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # for inference on CPUs; it would be compiled for a minute
    if dist.is_initialized():
        return
    backend = dist.Backend.default_device_backend_map[device.type]
    if device.type != "cpu":  # DeepSpeed takes the device of this number
        if world_size() > 1 and device.index != local_rank():
            raise UserError(f"args.device: found {device} for process {local_rank()} of {world_size()}, expected auto or {device.type}")
        os.environ["LOCAL_RANK"] = str(device.index)
    try:
        if "RANK" in os.environ and world_size() > 1:
            join_processes(backend, TIMEOUT)
        else:
            join_alone(backend)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"processes {rank()} of {world_size()}: cannot meet ({reason}); check MASTER_ADDR and MASTER_PORT") from error


def all_reduce(values: list[float], device: torch.device) -> list[float]:
    """Add up numbers over all processes."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


class Engine:
    """One network under DeepSpeed; only parameters with `requires_grad` are trained, and only they have states."""

    def __init__(self, network: nn.Module, settings: EngineSettings, device: torch.device):
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        if settings.deepspeed["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
            raise UserError(f"args.fp16: found true, but DeepSpeed has no float16 on a {device.type}; set bf16: true, or neither of them")
        offloaded = bool(settings.deepspeed["zero_optimization"].get("offload_optimizer"))
        optimizer = EmaAdamW(list(trained.values()), **settings.optimizer, fused=device.type != "cpu" and not offloaded)
        os.environ.setdefault("LOCAL_RANK", str(local_rank()))  # DeepSpeed reads it
        self.network, self.trained, self.settings, self.device = network, trained, settings, device
        self.base_lr, self.earlier_updates = optimizer.defaults["lr"], 0
        try:
            self.deepspeed, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings.deepspeed)
        except torch.OutOfMemoryError:
            raise
        except UnicodeDecodeError as error:  # torch reads templates of its own by the locale
            raise UserError(f"LC_ALL, LANG: torch cannot read its own files ({error.encoding}); set PYTHONUTF8=1") from error
        except Exception as error:  # whatever the parts of it raise that the section asks for
            raise UserError(f"deepspeed: {reason_of(error)}; correct that section") from error
        self.optimizer = optimizer
        self._make_states()

    def __call__(self, *inputs: Any) -> Any:
        """Run the network for training."""
        return self.deepspeed(*inputs)

    def set_learning_rate(self, factor: float) -> float:
        """Multiply the configured learning rate and return it."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = self.base_lr * factor
        return self.base_lr * factor

    def accumulate(self, loss: Tensor) -> None:
        """Take the gradients of one micro-batch; the last one of a step updates the parameters."""
        self.deepspeed.backward(loss)
        try:
            self.deepspeed.step()
        except Exception as error:  # DeepSpeed has no class of its own for it
            if "loss scale already at minimum" not in str(error):
                raise
            found = "args.fp16: found true, but every gradient overflows in float16 at the smallest loss scale"
            raise UserError(f"{found}; use bf16: true, or neither of them, or check clips and weights") from error

    @property
    def gradient_norm(self) -> float:
        """Norm of the last step's whole gradient before clipping; infinite where it overflowed, so that there was no update."""
        norm = self.deepspeed.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Give the network for use without gradients."""
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                yield self.network
        finally:
            self.deepspeed.train()

    def memory_gib(self) -> float:
        """The most memory that was in use on the device (on a CPU: by this process)."""
        if self.device.type == "cpu":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return get_accelerator().max_memory_allocated() / 2**30

    def full_states(self) -> Iterator[tuple[str, Tensor, States]]:
        """Yield (name, float32 master, optimizer states) of every trained parameter, whole and on the CPU; all processes must iterate.

        Where a step has not yet made states, they are zeros and the average the parameter.
        """
        for name, parameter in self.trained.items():
            yield name, self._get(parameter, None), {key: self._get(parameter, key) for key in self.state_names}

    def frozen_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is not trained, whole and on the CPU; all processes must iterate."""
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                    yield name, parameter.detach().cpu().clone()

    def load_states(self, read: Callable[[str], States], steps: int) -> None:
        """Put masters ("fp32") and optimizer states back after `steps` updates; every process reads what it needs."""
        for name, parameter in self.trained.items():
            for key, value in read(name).items():
                self._set(parameter, None if key == "fp32" else key, value)
        self.earlier_updates = steps
        for state in self.optimizer.state.values():
            state["step"].fill_(steps)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the optimizer's states."""
        return STATES if self.optimizer.ema_decay else STATES[:2]

    @property
    def updates(self) -> int:
        """Updates so far; fewer than steps where float16 overflowed."""
        return self.earlier_updates + self.deepspeed.global_steps - self.deepspeed.skipped_steps

    def scaler_state(self) -> dict[str, float | int | bool]:
        """The numbers of float16's loss scaler, if there is one."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return {key: value for key, value in vars(scaler).items() if isinstance(value, int | float)} if scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Put back where a dynamic loss scaler stood; a static scale, and what is configured, are the new run's."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        if scaler is not None and scaler.dynamic and state.get("dynamic"):
            vars(scaler).update({name: state[name] for name in SCALER if name in state})

    def _make_states(self) -> None:
        """Make the optimizer's states now, which DeepSpeed leaves to the first step, so that they can be saved and loaded before."""
        zero = self.deepspeed.optimizer
        flat = getattr(zero, "fp32_partitioned_groups_flat", None)  # ZeRO-3 hands them to the optimizer one by one
        flat = flat or [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.optimizer.prepare(flat)
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            zero._lazy_init_hp_params_optimizer_state()

    def _get(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        found = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        return found.detach().cpu().float().clone()

    def _set(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        if hasattr(parameter, "ds_id"):  # by ZeRO-3, whose own setter takes whole tensors only where the processes divide them
            part = -(-value.numel() // world_size())
            own = F.pad(value.flatten(), (0, part * world_size() - value.numel()))[rank() * part :][:part]
            return safe_set_local_fp32_param(parameter, own) if key is None else safe_set_local_optimizer_state(parameter, own, key)
        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
