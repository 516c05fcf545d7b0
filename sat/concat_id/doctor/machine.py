"""The machine: processor, memory, disk and GPUs. Only the GPUs are asked of torch."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from concat_id.doctor.findings import GIB, NOTE, OK, PROBLEM, Finding, from_error, gib
from concat_id.errors import UserError
from concat_id.files.paths import PROJECT_ROOT

CPU_INFO, MEMORY_INFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
MEMORY_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bfloat16", "amx_bf16": "AMX bfloat16",
    "asimd": "NEON", "sve": "SVE", "bf16": "bfloat16",
}  # fmt: skip
SMALL_MEMORY, SMALL_DISK = 2 * GIB, 2 * GIB  # for the demonstration model and its video
ROOM_FOR_WEIGHTS = 40 * GIB  # 5B as released: two transformers, text encoder, autoencoder
QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]


@dataclass(frozen=True)
class Capacity:
    """Bytes of memory: of the smallest GPU (0 without one), and of the machine."""

    gpu: int
    ram: int

    @property
    def device(self) -> int:
        """What a process can use where it computes."""
        return self.gpu or self.ram


def look_around() -> Iterator[Finding]:
    """Processor, memory and free disk."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    facts = dict(line.partition(":")[::2] for line in reversed(text.splitlines()))
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    features = [name for flag, name in FEATURES.items() if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = facts.get("model name", platform.processor() or platform.machine())
    fast = any("bfloat16" in feature for feature in features)
    found = f"{name}, {cores} cores, {', '.join(features) or 'none of the known features'}"
    yield Finding(OK if fast else NOTE, "processor", found, "" if fast else "--bf16 auto: bfloat16 is slow here", {"features": features})
    total, available = memory()
    enough = available >= SMALL_MEMORY
    found = f"{gib(total)} GiB, {gib(available)} GiB of it available"
    yield Finding(OK if enough else PROBLEM, "memory", found, "" if enough else "end other programs", {"bytes": total})
    free = shutil.disk_usage(PROJECT_ROOT).free
    found = f"{gib(free)} GiB free in {PROJECT_ROOT}"
    advice = "free some space" if free < SMALL_DISK else "" if free >= ROOM_FOR_WEIGHTS else "too little to fetch all weights of 5B"
    yield Finding(PROBLEM if free < SMALL_DISK else NOTE if advice else OK, "disk", found, advice, {"bytes": free})


def memory() -> tuple[int, int]:
    """Bytes of the machine's memory that this process may use, and those that are available."""
    lines = MEMORY_INFO.read_text().splitlines() if MEMORY_INFO.exists() else []
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    total = sizes.get("MemTotal", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits = [int(text) for path in MEMORY_LIMITS if path.exists() and (text := path.read_text().strip()).isdigit()]
    total = min([total, *limits])
    return total, min(total, sizes.get("MemAvailable", total))


def look_for_gpus() -> tuple[Capacity, list[Finding]]:
    """Ask torch for its accelerators, and nvidia-smi for the driver."""
    import torch

    from concat_id.distributed import choose_device, has_bfloat16

    ram, listed = memory()[0], _listed()
    try:
        device = choose_device("auto")
    except UserError as error:
        return Capacity(0, ram), [from_error("GPU", error)]
    if device.type in ("cpu", "mps"):  # of the latter torch tells no memory, which is the machine's
        hidden = "CUDA_VISIBLE_DEVICES hides it" if "CUDA_VISIBLE_DEVICES" in os.environ else "install the torch of requirements.txt"
        seen = Finding(PROBLEM, "GPU", f"{'; '.join(listed)}: torch {torch.__version__} does not see it", hidden)
        return Capacity(0, ram), [seen] if listed else [Finding(OK, "GPU", "none, which is enough for the demonstration model")]
    module = torch.get_device_module(device)
    driver = f", driver {listed[0].rpartition(', ')[2]}" if listed else ""
    lacking = [] if has_bfloat16(device) else ["no bfloat16: --bf16 false --fp16 true"]
    sizes, findings = [], []
    for index in range(module.device_count()):
        properties, free = module.get_device_properties(index), module.mem_get_info(index)[0]
        sizes.append(properties.total_memory)
        busy = free < 0.9 * properties.total_memory
        found = f"{properties.name}, {gib(properties.total_memory)} GiB, {gib(free)} GiB of it free{driver}"
        numbers, advice = {"bytes": properties.total_memory, "free": free}, lacking + ["other programs use it: nvidia-smi"] * busy
        findings.append(Finding(NOTE if advice else OK, f"GPU {index}", found, "; ".join(advice), numbers))
    return Capacity(min(sizes), ram), findings


def _listed() -> list[str]:
    """What nvidia-smi lists: name, memory and driver of each GPU."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
