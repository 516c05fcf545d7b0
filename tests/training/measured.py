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


def alive() -> int:
    """Bytes of all storages that Python's tensors reach, but for frozen ones."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and item.device.type == "cpu"]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


class Allocations:
    """The most that the allocator gave out above what was there, in bytes."""

    def __enter__(self):
        gc.collect()  # else what an earlier measurement has left may be given back in this one
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


def main() -> int:
    """Take two steps on noise; the second is measured."""
    from concat_id.config.loading import load_config
    from concat_id.distributed import rank, world_size
    from concat_id.models.backbones import initialize_weights
    from concat_id.models.tensor_names import POSITIONS
    from concat_id.models.transformer import DiffusionTransformer
    from concat_id.training.engine import Engine, start_processes
    from concat_id.training.settings import engine_settings

    request = Path(sys.argv[1])
    asked = json.loads(request.read_text())
    config = load_config(asked["bases"], asked["args"])
    config.deepspeed = asked["deepspeed"]
    start_processes(torch.device("cpu"))
    gc.freeze()  # what is there already is not counted
    network = DiffusionTransformer(config.model.transformer).to(getattr(torch, config.args.dtype_name))
    initialize_weights(network, torch.Generator().manual_seed(0))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name != POSITIONS)
    engine = Engine(network, engine_settings(config, world_size()), torch.device("cpu"))
    for group in engine.optimizer.param_groups:
        group["fused"] = True  # as on a GPU, without temporary tensors
    engine.accumulate(forward_loss(engine, asked["shapes"]))
    with Allocations() as forward:
        engine.deepspeed.backward(forward_loss(engine, asked["shapes"]))
    with_gradients = alive()
    with Allocations() as update:
        engine.deepspeed.step()
    kept = alive()
    measured = {"all": kept, "forward": forward.peak, "update": with_gradients - kept + update.peak}
    if rank() == 0:
        request.with_suffix(".answer").write_text(json.dumps(measured))
    torch.distributed.barrier()
    os._exit(0)  # nothing to save


def forward_loss(engine, shapes) -> torch.Tensor:
    """A loss of inputs of these shapes: latents, text, references."""
    dtype = next(engine.network.parameters()).dtype
    latents, text, refs = (torch.randn(shape).to(dtype) for shape in shapes)
    return engine(latents, torch.tensor([500]), text, refs).float().square().mean()
