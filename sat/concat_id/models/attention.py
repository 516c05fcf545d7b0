"""Full attention through one door, which chooses the kernel."""

import statistics
import warnings
from contextlib import nullcontext

import torch
import torch.nn.attention as library
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = {
    "auto": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,  # FlashAttention-2, which comes with PyTorch
    "flash3": SDPBackend.FLASH_ATTENTION,  # FlashAttention-3, where the package flash_attn_3 is installed
    "sage": None,  # of the package sageattention; rounds queries and keys to 8 bits
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
FAST = ("cudnn", "flash", "flash3")
PROBES = 3  # timed runs of each, after one to warm up


def activate(kernel: str) -> None:
    """Let PyTorch's flash attention be of the generation that a kernel's name says; raises where that is not installed."""
    if kernel == "flash3":
        library.activate_flash_attention_impl("FA3")  # torch >= 2.11
    elif hasattr(library, "restore_flash_attention_impl"):
        library.restore_flash_attention_impl(_raise_warn=False)


def can_run(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Tell whether a kernel works for this device, type and head size."""
    probe = torch.zeros(1, 1, 64, head_size, device=device, dtype=dtype)
    try:
        activate(kernel)
        with warnings.catch_warnings(action="ignore"):  # PyTorch's reasons why one cannot
            attention(probe, probe, probe, kernel)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, AttributeError, ValueError, AssertionError):
        return False
    return True


def fastest(probe: Tensor) -> tuple[str, str | None]:
    """Time the fast kernels on queries (B, N, S, head size) of a CUDA device; returns the fastest one and a line that says so.

    "auto" and nothing to say where none of them runs, as in float32.
    """
    times = {}
    for kernel in FAST:
        if can_run(kernel, probe.device, probe.dtype, probe.shape[-1]):
            times[kernel] = statistics.median([_milliseconds(probe, kernel) for _ in range(PROBES + 1)][1:])
    best = min(times, key=times.__getitem__, default="auto")
    shares = ", ".join(f"{kernel} {time:.1f} ms" for kernel, time in times.items())
    return best, f"attention kernel: {best} ({shares} a layer)" if times else None


def _milliseconds(probe: Tensor, kernel: str) -> float:
    start, end = (torch.get_device_module(probe.device).Event(enable_timing=True) for _ in range(2))
    activate(kernel)
    start.record()
    attention(probe, probe, probe, kernel)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def attention(query: Tensor, key: Tensor, value: Tensor, kernel: str = "auto") -> Tensor:
    """Softmax attention of every token to every token, without a mask; all (B, N, S, head size).

    `kernel` "auto" leaves the choice to PyTorch; the others insist on one and raise RuntimeError where it cannot run.
    """
    if kernel == "sage":
        from sageattention import sageattn

        return sageattn(query, key, value, tensor_layout="HND", is_causal=False)
    backend = KERNELS[kernel]
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)
