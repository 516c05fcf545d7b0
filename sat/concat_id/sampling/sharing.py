"""One video by all processes: the first prepares, decodes and writes as if it were alone; the others take part in denoising."""

import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from concat_id.config.schema import Config
from concat_id.diffusion.denoiser import Network
from concat_id.diffusion.guidance import count_branches
from concat_id.distributed import from_first, is_cuda, join_processes, rank, world_size
from concat_id.errors import UserError, reason_of, report, warn

PATIENCE = timedelta(days=7)  # for the first process, which prepares and decodes meanwhile; who dies is noticed by torchrun
MOST = 64  # processes
Result = TypeVar("Result")


def way_of_sharing(config: Config) -> str | None:
    """Tell what the processes share of each video: "video" (its tokens), "guidance" (its branches), or None, nothing.

    Raises `UserError` where their number does not fit.
    """
    args, processes, sampler = config.args, world_size(), config.model.sampler
    if processes == 1 and args.parallel in ("video", "guidance"):
        warn(f"--parallel {args.parallel}: found one process, which shares nothing; start several by NPROC_PER_NODE and a launcher")
    if processes == 1 or args.parallel == "prompts":
        return None
    branches = count_branches(sampler.guidance, sampler.guidance_scale, sampler.ref_guidance_scale)
    fits = branches > 1 and branches % processes == 0
    heads = config.model.transformer.num_attention_heads
    way = args.parallel if args.parallel != "auto" else "guidance" if fits else "video"
    if way == "guidance" and not fits:
        raise UserError(f"--parallel guidance: found {processes} processes for {branches} branches of guidance, expected a number "
                        f"that divides them; set NPROC_PER_NODE, or take --parallel video")  # fmt: skip
    if way == "video" and args.network == "sat":
        raise UserError(f"--parallel auto: found {processes} processes for {branches} branches of guidance, which SAT's network cannot "
                        "share further; take --parallel video")  # fmt: skip
    fitting = [number for number in range(2, min(heads, MOST) + 1) if -heads % number < -(-heads // number)]  # each has a head of its own
    if way == "video" and processes not in fitting:
        raise UserError(f"--parallel video: found {processes} processes for {heads} heads of attention, expected "
                        f"{', '.join(map(str, fitting))}; set NPROC_PER_NODE")  # fmt: skip
    return way


class Sharing:
    """The processes that make one video after the other together."""

    def __init__(self, way: str, device: torch.device):
        """Join the processes that torchrun has started."""
        self.way, self.size, self.is_first = way, world_size(), rank() == 0
        if not dist.is_initialized():
            join_processes("cpu:gloo,cuda:nccl" if is_cuda(device) else "cpu:gloo", PATIENCE)

    def together(self, kind: str, compute: Callable[..., Result], *arguments: Any) -> Result:
        """Compute something while the others compute their `kind` of it with the same arguments. What fails here ends them all."""
        if self.is_first:
            from_first((kind, *arguments))
        try:
            return compute(*arguments)
        except UserError:
            raise  # of what all have computed, as NaN
        except Exception as error:
            report(f"process {rank()} of those that share this video failed: {reason_of(error)}; all of them end")
            sys.stderr.flush()
            os._exit(1)  # the others wait in the middle of a step, and torchrun ends them

    def follow(self, kinds: Mapping[str, Callable[..., Any]]) -> None:
        """Take part in the kinds of things that the first process asks for, until it is done."""
        while (request := from_first(None)) is not None:
            kind, *arguments = request
            try:
                self.together(kind, kinds[kind], *arguments)
            except UserError:
                continue  # the first process says so

    def end(self) -> None:
        """Tell the others that there is no more to do."""
        if self.is_first:
            from_first(None)

    def split(self, network: Network) -> Network:
        """Let every process compute its own branches of guidance, and give the results to all; what does not divide, all compute."""

        def of_all(latents: Tensor, timestep: Tensor, text: Tensor, refs: Tensor | None) -> Tensor:
            if latents.shape[0] % self.size:
                return network(latents, timestep, text, refs)
            own = [None if part is None else part.chunk(self.size)[rank()] for part in (latents, timestep, text, refs)]
            output = network(*own).contiguous()
            parts = [torch.empty_like(output) for _ in range(self.size)]
            dist.all_gather(parts, output)
            return torch.cat(parts)

        return of_all
