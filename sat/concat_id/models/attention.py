"""Full attention through one door, which chooses the kernel."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = {
    "auto": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def can_run(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Tell whether a kernel works for this device, type and head size."""
    probe = torch.zeros(1, 1, 64, head_size, device=device, dtype=dtype)
    try:
        attention(probe, probe, probe, kernel)
    except RuntimeError:
        return False
    return True


def attention(query: Tensor, key: Tensor, value: Tensor, kernel: str = "auto") -> Tensor:
    """Softmax attention of every token to every token, without a mask; all (B, N, S, head size).

    `kernel` "auto" leaves the choice to PyTorch; the others insist on one and raise RuntimeError where it cannot run.
    """
    backend = KERNELS[kernel]
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)
