"""Measures what one process of a small training keeps in memory and how much more a step takes; forked.py runs it.

Called as `main` with the path of a JSON request; the first process writes the answer beside it.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from torch.autograd.profiler import profile


def storages(tensors) -> dict[int, int]:
    """Bytes of the storages of tensors, by address."""
    found = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def alive() -> dict[int, int]:
    """All storages that Python's tensors reach."""
    gc.collect()
    return storages(item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and item.device.type == "cpu")


class Allocations:
    """The most that the allocator gave out above what was there, in bytes."""

    def __enter__(self):
        self.profile = profile(profile_memory=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        events = sorted((event.start_ns(), event.nbytes()) for event in self.profile.kineto_results.events() if event.name() == "[memory]")
        live = self.peak = 0
        for _, size in events:
            live += size
            self.peak = max(self.peak, live)


def parts(engine) -> dict[str, int]:
    """Bytes of weights, masters, moments and averages."""
    zero, network = engine.deepspeed.optimizer, engine.network
    sharded = hasattr(zero, "fp32_partitioned_groups_flat")
    weights = storages(tensor for parameter in network.parameters() for tensor in (parameter, getattr(parameter, "ds_tensor", None)))
    master = storages(zero.fp32_partitioned_groups_flat if sharded else zero.single_partition_of_fp32_groups)
    states = {key: storages(state[key] for state in engine.optimizer.state.values()) for key in engine.state_names}
    sizes = {key: sum(found.values()) for key, found in states.items()}
    moments, average = sizes["exp_avg"] + sizes["exp_avg_sq"], sizes.get("ema", 0)
    return {"weights": sum(weights.values()), "master": sum(master.values()), "moments": moments, "average": average}


def main() -> int:
    """Take two steps on noise; the second is measured."""
    from concat_id.config.loading import load_config
    from concat_id.distributed import rank, world_size
    from concat_id.models.transformer import DiffusionTransformer
    from concat_id.training.engine import Engine, start_processes
    from concat_id.training.preparation import UNTRAINED
    from concat_id.training.settings import engine_settings

    request = Path(sys.argv[1])
    asked = json.loads(request.read_text())
    config = load_config(asked["bases"], asked["args"])
    config.deepspeed = asked["deepspeed"]
    start_processes(torch.device("cpu"))
    gc.freeze()  # what is there already is not counted
    network = DiffusionTransformer(config.model.transformer).to(getattr(torch, config.args.dtype_name))
    network.initialize_weights(torch.Generator().manual_seed(0))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in UNTRAINED)
    engine = Engine(network, engine_settings(config, world_size()), torch.device("cpu"))
    for group in engine.optimizer.param_groups:
        group["fused"] = True  # as on a GPU, without temporary tensors
    engine.accumulate(forward_loss(engine, asked["shapes"]))
    with Allocations() as forward:
        engine.deepspeed.backward(forward_loss(engine, asked["shapes"]))
    with_gradients = sum(alive().values())
    with Allocations() as update:
        engine.deepspeed.step()
    kept = sum(alive().values())
    gradients = with_gradients - kept
    measured = parts(engine) | {"all": kept, "gradients": gradients, "forward": forward.peak, "update": gradients + update.peak}
    if rank() == 0:
        request.with_suffix(".answer").write_text(json.dumps(measured))
    torch.distributed.barrier()
    os._exit(0)  # nothing to save


def forward_loss(engine, shapes) -> torch.Tensor:
    """A loss of inputs of these shapes: latents, text, references."""
    dtype = next(engine.network.parameters()).dtype
    latents, text, refs = (torch.randn(shape).to(dtype) for shape in shapes)
    return engine(latents, torch.tensor([500]), text, refs).float().square().mean()
