"""Transformer blocks fused by torch.compile: between matrix products and attention, one pass over the tokens each."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from concat_id.distributed import is_cuda, rank
from concat_id.errors import reason_of, warn

FEWEST_STEPS, FEWEST_PARAMETERS = 10, 10**9  # from here on compiling, some 20 s the first time, is won back
GRADIENTS_DIFFER = 0.1  # rounding to bfloat16 makes 0.007; what is a hundred times smaller than the largest gradient may be all rounding


class WrongGradients(Exception):
    """Compiled code whose gradients are not those of the function."""


def options() -> dict[str, object]:
    """How inductor is to compile a block."""
    from torch._inductor import config

    # Lets the norm of queries and keys be computed again where the rotation reads it: one pass in place of three, no float32 in memory.
    chosen: dict[str, object] = {"realize_reads_threshold": 16}
    # Sums over tokens beside sums over widths in one kernel count tokens that are not there: gradients of modulations were NaN
    # on an H100 (torch 2.10 to 2.13 at least, https://github.com/pytorch/pytorch/issues/195845).
    if hasattr(config.triton, "mix_order_reduction"):
        chosen["triton.mix_order_reduction"] = False
    return chosen


def choose_folder() -> None:
    """Let inductor keep code in a folder of the user's own, unless TORCHINDUCTOR_CACHE_DIR names one.

    Its own is /tmp/torchinductor_NAME, which somebody else can make first and fill: code that is found there is run.
    """
    from torch._inductor import codecache

    shared = getattr(codecache, "default_cache_dir", str)()  # which importing torch._dynamo writes into the environment
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, "", shared):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = _own_folder()
    folder = os.path.abspath(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    codecache._HEADER_DIR = os.path.join(folder, "precompiled_headers")  # these do not follow the environment
    codecache._HEADER_LOCK_DIR = os.path.join(codecache._HEADER_DIR, "locks")


def _own_folder() -> str:
    """A folder in the user's cache folder that nobody else can write, or one for this process where that cannot be had."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(cache if os.path.isabs(cache) else Path.home() / ".cache")
        for name in ("concat-id", "torchinductor"):
            folder /= name
            folder.mkdir(0o700, parents=True, exist_ok=True)
            found = folder.stat()
            if {folder.lstat().st_uid, found.st_uid} != {os.getuid()} or found.st_mode & 0o022 or not os.access(folder, os.W_OK):
                raise PermissionError
    except (OSError, RuntimeError):  # the latter without a home
        folder = tempfile.mkdtemp(prefix="concat-id-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(folder)


def worth_compiling(network: nn.Module, device: torch.device, steps: int) -> bool:
    """Tell whether so many steps of a network win back what compiling takes: large ones on CUDA."""
    large = sum(parameter.numel() for parameter in network.parameters()) >= FEWEST_PARAMETERS
    return is_cuda(device) and steps >= FEWEST_STEPS and large


def compiled(
    function: Callable[..., Tensor], lengths: Callable[..., Iterable[tuple[Tensor, int]]], recompute: bool = False
) -> Callable[..., Tensor]:
    """Compile a block's function, once for all layers and numbers of tokens; another batch, of one above all, takes another graph.

    `lengths` names the (tensor, dimension) of its arguments that are numbers of tokens: all that varies, so that widths are known and
    passes join. With `recompute`, what gradients need is computed again for them. Where compiling fails, or the first gradients are
    not those of the function, one line says so, and the function runs as it is written from then on. Code is kept on disk.
    """
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import TorchDynamoException

    def written(*arguments: object) -> Tensor:
        if recompute and torch.is_grad_enabled():  # within what is compiled: hooks of checkpoint around it would be in the check's way
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    choose_folder()
    fused, checked = torch.compile(written, fullgraph=True, options=options()), False

    def run(*arguments: object) -> Tensor:
        for tensor, dimension in lengths(*arguments):
            maybe_mark_dynamic(tensor, dimension)
        return fused(*arguments)

    def call(*arguments: object) -> Tensor:
        nonlocal fused, checked
        if fused is None:
            return written(*arguments)
        try:
            if torch.is_grad_enabled() and not checked:
                check_gradients(run, written, arguments)
                checked = True
            return run(*arguments)
        except (TorchDynamoException, WrongGradients, OSError) as error:  # the last where compiled code cannot be kept
            fused = None
            reason = reason_of(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice for PyTorch's developers
            if rank() == 0:
                warn(f"the transformer runs uncompiled, as compiling it failed: {reason}")
        return written(*arguments)

    return call


def check_gradients(run: Callable[..., Tensor], written: Callable[..., Tensor], arguments: tuple) -> None:
    """Raise `WrongGradients` unless a compiled function and the one that was written agree in output and gradients."""
    leaves, structure = tree_flatten(arguments)
    leaves = [leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    weights = [weight for leaf in leaves if isinstance(leaf, nn.Module) for weight in leaf.parameters()]
    wanted = [each for each in (*leaves, *weights) if isinstance(each, Tensor) and each.requires_grad]
    if not wanted:
        return
    found, norm = [], torch.linalg.vector_norm
    for function in (run, written):
        output = function(*tree_unflatten(leaves, structure))
        sent = output.detach() / output.numel() ** 0.5
        found.append([sent, *torch.autograd.grad(output, wanted, sent, materialize_grads=True)])
    norms = torch.stack([norm(expected.float()) for expected in found[1]])
    differences = torch.stack([norm((given - expected).float()) for given, expected in zip(*found, strict=True)])
    off = float((differences / norms.clamp_min(norms.max() / 100)).max())  # NaN where one is, as Python's max does not say
    if not off <= GRADIENTS_DIFFER:
        raise WrongGradients(f"its first gradients are off by {off:.2g} times their size, where {GRADIENTS_DIFFER} may be rounding")


def product_with_gelu(linear: nn.Module, x: Tensor, gelu: Callable[[Tensor], Tensor]) -> Tensor:
    """gelu(linear(x)), of the tanh form; compiled, cuBLAS computes both at once for frozen weights, on CUDA alone."""
    weight = getattr(linear, "weight", None)  # none where low-rank products are beside it
    frozen = weight is not None and not weight.requires_grad and not torch.is_grad_enabled()
    if torch.compiler.is_compiling() and x.is_cuda and frozen:
        return torch._addmm_activation(linear.bias, x.flatten(0, 1), weight.t(), use_gelu=True).unflatten(0, x.shape[:2])
    return gelu(linear(x))
