"""What is on the device, and when: visible as `with` blocks, decided by --memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from concat_id.distributed import memory_told
from concat_id.models.acceleration import is_streamed, stream_blocks

memory_checked = partial(memory_told, "try --memory low, a smaller image or fewer frames")


class Placement:
    """Moves modules as the memory mode says.

    high      text encoder, transformer and autoencoder stay on the device
    balanced  the text encoder is let go after the prompts; transformer and autoencoder stay, so that no video moves 11 GB twice
    low       the text encoder runs on the CPU, the transformer is streamed through the device layer by layer, the guidance
              branches run one after the other, and the autoencoder is on the device only inside its `with` block and decodes tiles
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
        if self.frugal and hasattr(module, "network"):  # of diffusers
            stream_blocks(module.network, self.device)
        elif self.frugal:
            from accelerate import cpu_offload

            cpu_offload(module, execution_device=self.device)
        return module

    def mark(self) -> Callable[[], None]:
        """Note what the device has been given to do; calling what is returned waits until that is done."""
        if self.device.type == "cpu":
            return lambda: None
        event = torch.Event(self.device.type)
        event.record()
        return event.synchronize

    @contextmanager
    def on_device(self, module: nn.Module) -> Iterator[nn.Module]:
        """Have `module` on the device inside the block, and with `low` nowhere else; streamed modules look after themselves."""
        if is_streamed(module):
            yield module
            return
        with torch.inference_mode(False):  # weights that move stay what they are
            module.to(self.device)
        try:
            yield module
        finally:
            if self.frugal:
                with torch.inference_mode(False):
                    module.to("cpu")
