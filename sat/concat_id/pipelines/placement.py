"""What is on the device, and when: visible as `with` blocks, decided by --memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Placement:
    """Moves modules as the memory mode says.

    high      everything stays on the device once it was there
    balanced  a module is on the device inside its `with` block and in main memory outside
    low       as balanced, but large modules are streamed through the device layer by layer, the guidance branches run one
              after the other, and the video is decoded in tiles
    """

    def __init__(self, device: torch.device, memory: str):
        self.device = device
        self.memory = memory

    @property
    def frugal(self) -> bool:
        """Whether to trade time for memory wherever possible."""
        return self.memory == "low"

    def streamed(self, module: nn.Module) -> nn.Module:
        """Prepare a large module: with `low`, each of its layers comes to the device only while it computes."""
        if self.frugal:
            from accelerate import cpu_offload

            cpu_offload(module, execution_device=self.device)
        return module

    @contextmanager
    def on_device(self, module: nn.Module) -> Iterator[nn.Module]:
        """Hold `module` on the device inside the block; streamed modules look after themselves."""
        if hasattr(module, "_hf_hook") or any(hasattr(part, "_hf_hook") for part in module.modules()):
            yield module
            return
        module.to(self.device)
        try:
            yield module
        finally:
            if self.memory != "high" and self.device.type != "cpu":
                module.to("cpu")
