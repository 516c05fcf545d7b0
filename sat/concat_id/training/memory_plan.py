"""How much memory a process of training needs, from the configuration alone.

P trained and F frozen parameters of b bytes (2 in 16 bits, 4 in float32) on N processes. From the first step to the last one holds

    weights      b (P + F)      b (P / N + P' + F) under ZeRO-3, P' in parameters that are too small to be shared out
    master       4 P / N        what the optimizer updates, float32 whatever b is
    moments      8 P / N        two of AdamW
    average      4 P / N        none if ema_decay is 0
    autoencoder  b V            frozen; the text encoder has left before the transformer comes
    buffers      b P / N + b E  under ZeRO-3: gradients, and a bucket of E = reduce_bucket_size numbers

and above that, one after the other in every step, so that the largest of the three counts:

    encoding     the clip through the autoencoder, whole
    network      forward and backward (with checkpoint_activations only the layers' inputs, b S D each, are kept in between)
                 + gradients b P / N + (2, or 3 with overlap_comm) b min(E, P) in which they meet
    update       gradients b P / N, joined to one b P / N, as float32 4 P / N where b is 2

Under ZeRO-3, gradients and E are held already. There the network needs b min(P, max_live_parameters) for weights that are gathered,
b min(P, prefetch_bucket_size) while they arrive and 2 b E for gradients that are sent; the update goes by parts of sub_group_size.
`offload_optimizer` puts master, moments, average, (4 + b) P / N of gradients and copies and a buffer of the largest parameter into the
machine's memory, and another such buffer on the GPU. Encoding and network are traced (`memory_trace`), without contents and with the
rules of PyTorch's fused attention.

Checked against real processes (tests/training/test_memory_plan.py): what stays to 1 %, the update to 10 %, the network's trace to 5 %
(with gradients and buckets it is an upper bound, since gradients grow while activations go). Not in it: the device's context and
libraries, what convolutions take for themselves while encoding, and what the allocator loses between blocks; leave 10 %.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from concat_id.config.schema import Config
from concat_id.models.backbones import new_autoencoder
from concat_id.training.memory_trace import empty_network, network_flops, trace_encoder, trace_network
from concat_id.training.settings import engine_settings

FLOAT32 = 4


@dataclass(frozen=True)
class Sizes:
    """What does not depend on the number of processes: numbers of parameters, and bytes of a step's parts."""

    parameters: tuple[int, ...]  # sizes of those that are trained
    frozen: int
    autoencoder: int
    encoding: int
    network: Callable[[int], int]  # of so many clips at once
    flops: tuple[int, int]  # of one clip: transformer, autoencoder
    bytes_each: int

    @property
    def trained(self) -> int:
        """Of all trained parameters."""
        return sum(self.parameters)

    @property
    def largest(self) -> int:
        """Of the largest trained parameter."""
        return max(self.parameters)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process. `weights` to `buffers` stay; of `encoding`, `network` and `update` the largest comes on top."""

    processes: int
    zero_stage: int
    offload: bool
    weights: int
    master: int
    moments: int
    average: int
    autoencoder: int
    buffers: int
    encoding: int
    network: int
    update: int
    host: int  # in the machine's memory, per process

    @property
    def states(self) -> int:
        """What stays."""
        return self.weights + self.master + self.moments + self.average + self.autoencoder + self.buffers

    @property
    def peak(self) -> int:
        """The most that is needed at once."""
        return self.states + max(self.encoding, self.network, self.update)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return asdict(self) | {"states": self.states, "peak": self.peak}


def measure_sizes(config: Config, num_refs: int = 1) -> Sizes:
    """Count parameters and trace a step of clips with `num_refs` people; nothing is allocated."""
    network = empty_network(config)
    trained = tuple(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    encoding, operations = trace_encoder(config)
    return Sizes(
        parameters=trained,
        frozen=sum(parameter.numel() for parameter in network.parameters()) - sum(trained),
        autoencoder=sum(parameter.numel() for parameter in new_autoencoder(config).parameters()),
        encoding=encoding,
        network=functools.cache(lambda clips: trace_network(config, clips, num_refs)),
        flops=(network_flops(config, num_refs), operations),
        bytes_each=getattr(torch, config.args.dtype_name).itemsize,
    )


def plan(config: Config, sizes: Sizes, processes: int, zero_stage: int | None = None, offload: bool | None = None) -> MemoryPlan:
    """Memory of each of so many processes; `zero_stage` and `offload` go before what the configuration says."""
    config = copy.deepcopy(config)
    section = config.deepspeed.setdefault("zero_optimization", {})
    if zero_stage is not None:
        config.training.zero_stage = zero_stage
    if offload and isinstance(section, dict):  # else the settings refuse it
        section["offload_optimizer"] = {"device": "cpu"}
    settings = engine_settings(config, processes)
    zero = DeepSpeedZeroConfig(**settings.deepspeed["zero_optimization"])  # with DeepSpeed's own defaults
    traced = sizes.network(settings.micro_batch_size)
    away = zero.offload_optimizer is not None and zero.offload_optimizer.device != "none"
    partition, each = -(-sizes.trained // processes), sizes.bytes_each
    average = FLOAT32 * partition if config.training.ema_decay else 0
    shared = FLOAT32 * partition, 2 * FLOAT32 * partition, average
    if zero.stage == 3:
        weights, buffers, network, update = _stage_3(sizes, zero, partition, processes, away)
    else:
        weights, buffers, network, update = _stage_1_and_2(sizes, zero, partition, away)
    return MemoryPlan(
        processes, int(zero.stage), away, weights, *((0, 0, 0) if away else shared), sizes.autoencoder * each, buffers,
        sizes.encoding, traced + network, update, host=sum(shared) + (FLOAT32 + each) * partition + each * sizes.largest if away else 0,
    )  # fmt: skip


def _stage_1_and_2(sizes: Sizes, zero: DeepSpeedZeroConfig, partition: int, away: bool) -> tuple[int, int, int, int]:
    each = sizes.bytes_each
    bucket = each * min(zero.reduce_bucket_size, sizes.trained)
    gradients = 0 if away else each * partition
    network = gradients + (3 if zero.overlap_comm else 2) * bucket
    update = 0 if away else 2 * gradients + (FLOAT32 * partition if each != FLOAT32 else 0)
    gathered = each * min(zero.allgather_bucket_size, sizes.trained)
    return each * (sizes.trained + sizes.frozen), each * sizes.largest if away else 0, network, max(update, gathered)


def _stage_3(sizes: Sizes, zero: DeepSpeedZeroConfig, partition: int, processes: int, away: bool) -> tuple[int, int, int, int]:
    each = sizes.bytes_each
    whole = sum(count for count in sizes.parameters if count <= zero.param_persistence_threshold) if processes > 1 else 0
    bucket = each * zero.reduce_bucket_size if zero.contiguous_gradients else each * min(zero.reduce_bucket_size, sizes.trained)
    gathered = each * min(sizes.trained, zero.max_live_parameters) if processes > 1 else 0
    buffers = bucket + (0 if away else each * partition)
    arriving = each * min(sizes.trained, zero.prefetch_bucket_size) if processes > 1 else 0
    group = min(partition, zero.sub_group_size)
    update = 0 if away else FLOAT32 * group + (each * group if each != FLOAT32 else 0)
    return each * (partition + whole + sizes.frozen), buffers, gathered + arriving + 2 * bucket, update
