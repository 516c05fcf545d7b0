"""Which process this is among those started together, and which device it works on."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from concat_id.errors import UserError, reason_of, warn

Item = TypeVar("Item")
STORE = "CONCAT_ID_STORE"  # names the file by which the processes that processes.py starts on one machine find one another
CPU_INFO = Path("/proc/cpuinfo")
FLAGS = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}  # the last ones are ARM's


def rank() -> int:
    """Index of this process among all, as torchrun sets it; 0 when started alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Index of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_share(items: Sequence[Item]) -> list[Item]:
    """The items that fall to this process; together the processes cover each item once."""
    return list(items[rank() :: world_size()])


def say(*lines: str) -> None:
    """Print lines, in the first process alone."""
    for line in lines if rank() == 0 else ():
        print(line, flush=True)


def join_processes(backend: str, timeout: timedelta) -> None:
    """Join the processes that were started together, which wait for one another as long as `timeout`."""
    place = {}
    if store := _store_of_files():
        store.set_timeout(timeout)
        place = {"store": store, "rank": rank(), "world_size": world_size()}
    else:
        os.environ.setdefault("MASTER_ADDR", "localhost")  # As released, of processes that mpirun starts.
        os.environ.setdefault("MASTER_PORT", "6000")
    torch.distributed.init_process_group(backend, timeout=timeout, **place)


def join_alone(backend: str) -> None:
    """Make this process a group of its own, as SAT and DeepSpeed ask for one."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo listens, by default at the address of the host's name
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


def wait_if_failed(failed: bool) -> None:
    """Say that this process is done, and if it failed wait until the others are: torchrun stops all once one has failed."""
    forever = timedelta(days=365)
    store = _store_of_files()
    if store is None:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return
        store, *_ = next(iter(rendezvous("env://", rank(), world_size(), timeout=forever)))
    store.set(f"done/{rank()}", "yes")
    if failed:
        store.wait([f"done/{other}" for other in range(world_size())], forever)


def _store_of_files() -> torch.distributed.Store | None:
    return torch.distributed.FileStore(os.environ[STORE]) if os.environ.get(STORE) else None


def leave_processes(failed: bool = False) -> None:
    """Leave the group of the processes that were started together: left to the interpreter's end, its threads abort that now and then.

    A process that `failed` leaves groups of gloo alone, as NCCL might wait for those that never come.
    """
    if world_size() > 1 and torch.distributed.is_initialized() and not (failed and torch.distributed.get_backend() != "gloo"):
        torch.distributed.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Turn "auto" into this process's accelerator or else the CPU; other names are taken as torch's. It becomes torch's current one.

    Raises `UserError` for a device that is not there, or does not compute.
    """
    remedy = "add --device cpu" if name == "auto" else "choose auto, cpu or one that torch sees"
    if name == "auto":
        name = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cpu" and device.index is None:
            device = torch.device(device.type, local_rank())
        if device.type == "cpu" and device.index or (torch.ones(1, device=device) + 1).item() != 2:
            raise ValueError("there is no such device")
    except Exception as error:  # whatever the part of torch that is for this device raises
        reason = reason_of(error)
        remedy += ", or install PyTorch's build for CUDA 12.6, which GPUs before Turing need" * ("no kernel image" in reason)
        raise UserError(f"device: {name[:60]!r} cannot be used ({reason}); {remedy}") from error
    if select := getattr(torch.get_device_module(device), "set_device", None):
        select(device)  # streams and events are the current device's where none is named
    if is_cuda(device):
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32 in convolutions too, as in products
    return device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; a GPU takes it from pinned memory when it has the time, and this process goes on."""
    if not is_cuda(device) or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def is_cuda(device: torch.device) -> bool:
    """Whether a device is an NVIDIA GPU (or one that torch takes for one)."""
    return device.type == "cuda"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine has no memory left; of a CPU torch says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def memory_told(remedy: str, where: Callable[[], str] = str) -> Iterator[None]:
    """Turn the end of the memory into a `UserError` that says what needs less of it, and begins with what `where` returns."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{where()}found too little memory ({reason_of(error, 120)}); {remedy}") from error


def from_first(value: Item) -> Item:
    """Give every process what the first one has."""
    held = [value]
    torch.distributed.broadcast_object_list(held)
    return held[0]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device, the current one, computes in bfloat16 at speed; a CPU without instructions for it takes a hundred times as long."""
    if device.type == "cpu":
        return _has_instructions("bfloat16")
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return supported is None or bool(supported(including_emulation=False) if is_cuda(device) else supported())


def _has_instructions(dtype_name: str) -> bool:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    return any(FLAGS[dtype_name] & set(line.split()) for line in lines if line.startswith(("flags", "Features")))


def warn_of_emulation(device: torch.device, dtype_name: str) -> None:
    """Say, in the first process, that a device has to emulate the type of the run."""
    if rank() != 0 or dtype_name == "float32":
        return
    if device.type == "cpu" and not _has_instructions(dtype_name):
        name, remedy = ("bf16", "--bf16 auto") if dtype_name == "bfloat16" else ("fp16", "--bf16 auto --fp16 false")
        slow = "this processor has no instructions for it, which takes up to a hundred times as long as float32"
        warn(f"args.{name}: found true, but {slow}; add {remedy}")
    elif device.type != "cpu" and dtype_name == "bfloat16" and not has_bfloat16(device):
        slow = "this GPU has no instructions for it, and no attention that saves memory"
        warn(f"args.bf16: found true, but {slow}; add --bf16 false --fp16 true")
