"""Transformer blocks fused by torch.compile: between matrix products and attention, one pass over the tokens each."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from concat_id.distributed import is_cuda, rank
from concat_id.errors import reason_of, warn

FEWEST_STEPS, FEWEST_PARAMETERS = 10, 10**9  # from here on compiling, some 20 s the first time, is won back
# Lets the norm of queries and keys be computed again where the rotation reads it: one pass in place of three, and no float32 in memory.
OPTIONS = {"realize_reads_threshold": 16}


def worth_compiling(network: nn.Module, device: torch.device, steps: int) -> bool:
    """Tell whether so many steps of a network win back what compiling takes: large ones on CUDA."""
    large = sum(parameter.numel() for parameter in network.parameters()) >= FEWEST_PARAMETERS
    return is_cuda(device) and steps >= FEWEST_STEPS and large


def compiled(function: Callable[..., Tensor], lengths: Callable[..., Iterable[tuple[Tensor, int]]]) -> Callable[..., Tensor]:
    """Compile a block's function, once for all layers and numbers of tokens; another batch, of one above all, takes another graph.

    `lengths` names the (tensor, dimension) of its arguments that are numbers of tokens: all that varies, so that widths are known and
    passes join. Where compiling fails, one line says so, and the function runs as it is written from then on. Code is kept on disk.
    """
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import TorchDynamoException

    fused = torch.compile(function, fullgraph=True, options=OPTIONS)

    def call(*arguments: object) -> Tensor:
        nonlocal fused
        if fused is None:
            return function(*arguments)
        try:
            for tensor, dimension in lengths(*arguments):
                maybe_mark_dynamic(tensor, dimension)
            return fused(*arguments)
        except (TorchDynamoException, OSError) as error:  # the second where compiled code cannot be kept
            fused = None
            reason = reason_of(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice for PyTorch's developers
            if rank() == 0:
                warn(f"the transformer runs uncompiled, as compiling it failed: {reason}")
        return function(*arguments)

    return call


def product_with_gelu(linear: nn.Module, x: Tensor, gelu: Callable[[Tensor], Tensor]) -> Tensor:
    """gelu(linear(x)), of the tanh form; compiled, cuBLAS computes both at once for frozen weights, on CUDA alone."""
    weight = getattr(linear, "weight", None)  # none where low-rank products are beside it
    frozen = weight is not None and not weight.requires_grad and not torch.is_grad_enabled()
    if torch.compiler.is_compiling() and x.is_cuda and frozen:
        return torch._addmm_activation(linear.bias, x.flatten(0, 1), weight.t(), use_gelu=True).unflatten(0, x.shape[:2])
    return gelu(linear(x))
