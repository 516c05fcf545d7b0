"""Running a function in several processes that share the work of one network, by gloo."""

import tempfile
from collections.abc import Callable

import torch
from torch.multiprocessing import start_processes


def in_processes(count: int, function: Callable[[int], None]) -> None:
    """Call a function in `count` forks with their number; what one of them raises is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_join, (count, f"file://{folder}/meeting", function), count, start_method="fork")


def _join(rank: int, count: int, meeting: str, function: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: count  # diffusers divides by it
    torch.distributed.distributed_c10d._update_default_pg(None)  # the group of one that another test's network has made
    torch.distributed.init_process_group("cpu:gloo", meeting, rank=rank, world_size=count)
    torch.distributed.all_gather = _gather
    function(rank)


def _gather(outputs: list[torch.Tensor], own: torch.Tensor, group=None) -> None:
    """Gather tensors of different lengths, which NCCL does and gloo does not."""
    for rank, output in enumerate(outputs):
        if rank == torch.distributed.get_rank(group):
            output.copy_(own)
        torch.distributed.broadcast(output, rank, group)
