"""What libraries do for diffusers' networks: step caches, one video by several processes, offloading, kernels.

All of it works on `network.network` of either backbone (`diffusers_transformer`, `wan.transformer`) and on that alone.
"""

import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from concat_id.distributed import is_cuda
from concat_id.models.quantization import blocks_of, bytes_of

THRESHOLDS = {"first_block": 0.05, "mag": 0.06, "dbcache": 0.08}  # the libraries' own
# Attention kernels; which of the flash ones is flash3's is `attention.activate`'s to say.
BACKENDS = {"auto": "native", "cudnn": "_native_cudnn", "flash": "_native_flash", "flash3": "_native_flash", "sage": "sage",
            "efficient": "_native_efficient", "math": "_native_math"}  # fmt: skip


class StepCache:
    """A cache of what blocks add to the tokens, on a network of diffusers, and the steps whose blocks were computed."""

    def __init__(self, network: nn.Module, kind: str, threshold: float | None, steps: int, ratios: Sequence[float] | None = None):
        """Put a cache of `kind` onto `network`; "mag" without `ratios` (of magnitudes, one a step) measures them, and skips nothing."""
        self.network, self.kind, self.computed = network, kind, set[int]()
        self.step, self.num_steps = 0, steps
        blocks = blocks_of(network)
        self._middle = blocks[len(blocks) // 2]
        self._forward = self._middle.forward
        self._middle.forward = self._counted
        threshold = THRESHOLDS[kind] if threshold is None else threshold
        use = {"first_block": self._use_first_block, "mag": partial(self._use_mag, ratios), "dbcache": self._use_dbcache}[kind]
        with _unshared(network):
            use(threshold)

    def _counted(self, *args: Any, **options: Any) -> Any:
        self.computed.add(self.step)
        return self._forward(*args, **options)

    def _use_first_block(self, threshold: float) -> None:
        from diffusers.hooks import FirstBlockCacheConfig
        from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

        self.network.enable_cache(FirstBlockCacheConfig(threshold))
        hook = blocks_of(self.network)[0]._diffusers_hook.get_hook(_FBC_LEADER_BLOCK_HOOK)
        if self.network._parallel_config is not None:
            hook._should_compute_remaining_blocks = partial(_changed_more_than, threshold, hook.state_manager)

    def _use_mag(self, ratios: Sequence[float] | None, threshold: float) -> None:
        from diffusers.hooks import MagCacheConfig

        # When measuring, one step more than there are, as the library prints and forgets what it has measured at the last.
        steps = self.num_steps + (ratios is None)
        self.network.enable_cache(MagCacheConfig(threshold, num_inference_steps=steps, mag_ratios=ratios, calibrate=ratios is None))

    def _use_dbcache(self, threshold: float) -> None:
        import cache_dit

        pattern = cache_dit.ForwardPattern.Pattern_0 if hasattr(self.network, "transformer_blocks") else cache_dit.ForwardPattern.Pattern_2
        adapter = cache_dit.BlockAdapter(
            transformer=self.network, blocks=blocks_of(self.network), forward_pattern=pattern, check_forward_pattern=False
        )
        settings = cache_dit.DBCacheConfig(
            num_inference_steps=self.num_steps, Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold,
            enable_separate_cfg=False,
        )  # fmt: skip
        cache_dit.enable_cache(adapter, cache_config=settings)

    def begin(self) -> None:
        """Forget the video before."""
        self.computed, self.step = set(), 0
        if self.kind == "dbcache":
            import cache_dit

            cache_dit.refresh_context(self.network, num_inference_steps=self.num_steps)
        else:
            self.network._reset_stateful_cache()

    def branch(self, name: str) -> AbstractContextManager[None]:
        """Inside the block the network computes this branch of guidance, which shares nothing with the others."""
        return nullcontext() if self.kind == "dbcache" else self.network.cache_context(name)

    def ratios(self) -> list[float]:
        """How large what the blocks add is, of what it was a step earlier, as measured; the mean of all branches."""
        from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK

        states = blocks_of(self.network)[0]._diffusers_hook.get_hook(_MAG_CACHE_LEADER_BLOCK_HOOK).state_manager._state_cache
        return [statistics.mean(step) for step in zip(*(state.calibration_ratios for state in states.values()), strict=True)]

    def remove(self) -> None:
        """Take the cache off."""
        if self.kind == "dbcache":
            import cache_dit

            cache_dit.disable_cache(self.network)
        else:
            self.network.disable_cache()
        self._middle.forward = self._forward


def _changed_more_than(threshold: float, states: Any, residual: Tensor) -> bool:
    """Decide as diffusers does, from the tokens of all processes."""
    before = states.get_state().head_block_residual
    if before is None:
        return True
    sums = torch.stack([(residual - before).abs().sum(dtype=torch.float32), before.abs().sum(dtype=torch.float32)])
    dist.all_reduce(sums)
    return bool(sums[0] > threshold * sums[1])


@contextmanager
def _unshared(network: nn.Module) -> Iterator[None]:
    """Put hooks that the block adds under those that share the tokens, so that they see a process's own ones."""
    from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel

    shared = network._parallel_config
    if shared:
        remove_context_parallel(network, _plan(network))
    yield
    if shared:
        apply_context_parallel(network, shared.context_parallel_config, _plan(network))


def _plan(network: nn.Module) -> dict[str, Any]:
    """Where tokens are divided; `_gathered` brings them together, as diffusers' own way fails with gloo where parts differ in length."""
    return {name: plan for name, plan in network._cp_plan.items() if name != "proj_out"}


def share_tokens(network: nn.Module, device: torch.device, processes: int) -> None:
    """Let all processes compute attention for each other's tokens (Ulysses: DeepSpeed, Jacobs et al. 2023)."""
    from diffusers import ContextParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (1, processes), mesh_dim_names=("ring", "ulysses"))
    count = torch.accelerator.device_count
    with patch.object(torch.accelerator, "device_count", lambda: count() or processes):  # diffusers divides by it, CPUs or not
        network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes, mesh=mesh), cp_plan=_plan(network))
    network.proj_out.register_forward_hook(lambda layer, inputs, output: _gathered(output, network.shared_tokens, processes))


def share_unevenly(network: nn.Module, frame_tokens: int, text_tokens: int) -> None:
    """Prepare for sequences of these lengths, which need not divide by the number of processes."""
    shared = network._parallel_config.context_parallel_config
    counts = frame_tokens, text_tokens, network.config.num_attention_heads
    shared.ulysses_anything = any(count % shared.ulysses_degree for count in counts)
    network.shared_tokens = frame_tokens


def _gathered(part: Tensor, tokens: int, processes: int) -> Tensor:
    """Put the parts (B, S / N, D) of all processes together, of which the first ones may be one token longer."""
    longest = -(-tokens // processes)
    parts = [part.new_empty(part.shape[0], longest, part.shape[2]) for _ in range(processes)]
    dist.all_gather(parts, F.pad(part, (0, 0, 0, longest - part.shape[1])).contiguous())
    lengths = (len(own) for own in torch.arange(tokens).tensor_split(processes))
    return torch.cat([part[:, :length] for part, length in zip(parts, lengths, strict=True)], dim=1)


def stream_blocks(network: nn.Module, device: torch.device) -> None:
    """Keep the weights in the machine's memory and bring each block to `device` while the one before it computes.

    That memory is pinned, which copies need to run beside computing, where half of what is free is enough for it.
    """
    from diffusers.hooks import apply_group_offloading

    streams = is_cuda(device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    pinned = streams and bytes_of(network) < free / 2
    apply_group_offloading(
        network, onload_device=device, offload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1,
        non_blocking=streams, use_stream=streams, record_stream=streams, low_cpu_mem_usage=streams and not pinned,
    )  # fmt: skip


def is_streamed(module: nn.Module) -> bool:
    """Whether a module, of either library, brings its weights to the device by itself."""
    hooks = [part._diffusers_hook for part in module.modules() if hasattr(part, "_diffusers_hook")]
    return any(hook.get_hook("group_offloading") for hook in hooks) or any(hasattr(part, "_hf_hook") for part in module.modules())
