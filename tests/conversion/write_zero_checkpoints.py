"""Writes checkpoints as DeepSpeed and SAT do, of two processes: `python write_zero_checkpoints.py MODEL_STATES OUTPUT PORT`.

OUTPUT/<kind>/5 for zero2, zero3 (DeepSpeed's save_checkpoint) and sat3 (SAT's), each a step away from the weights of MODEL_STATES;
OUTPUT/<kind>.safetensors is what they hold, gathered by DeepSpeed. Averages in the optimizer's states are half the masters.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

source, output, port = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}

import deepspeed  # noqa: E402
import safetensors.torch  # noqa: E402
from deepspeed.utils import safe_get_full_fp32_param  # noqa: E402
from sat.training.model_io import zero3_state_dict  # noqa: E402

FROZEN = "model.diffusion_model.transformer.position_embeddings"
SETTINGS = {
    "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}  # fmt: skip


class Leaf(nn.Module):
    """Holds parameters, as every layer does for ZeRO."""

    def forward(self, factor):
        return sum((parameter * factor).float().square().sum() for parameter in self.parameters(recurse=False))


class Network(nn.Module):
    """Parameters with the names of a checkpoint's."""

    def __init__(self, tensors):
        super().__init__()
        self.leaves = []
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, Leaf())
                module = module._modules[part]
            module.register_parameter(last, nn.Parameter(tensor.float(), requires_grad=not name.startswith(FROZEN)))
        self.owners = [module for module in self.modules() if isinstance(module, Leaf) and module._parameters]

    def forward(self, factor):
        return sum(owner(factor) for owner in self.owners)


def make_engine(tensors, stage):
    network = Network(tensors)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    settings = SETTINGS | {"zero_optimization": {"stage": stage, "sub_group_size": 50_000}}
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    engine.backward(engine(torch.ones(1, dtype=torch.bfloat16)))
    engine.step()
    for parameter, state in optimizer.state.items():
        state["shadow"] = parameter.detach() / 2
    return engine


def save_whole(engine, path):
    whole = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            whole[name] = safe_get_full_fp32_param(parameter).clone()
        else:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                whole[name] = parameter.detach().clone()
    if torch.distributed.get_rank() == 0:
        safetensors.torch.save_file(whole, path)


def work(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    torch.distributed.init_process_group("gloo")
    tensors = torch.load(source, weights_only=True)["module"]
    for stage in (2, 3):
        engine = make_engine(tensors, stage)
        engine.save_checkpoint(str(output / f"zero{stage}"), tag="5")
        save_whole(engine, output / f"zero{stage}.safetensors")
    folder = output / "sat3" / "5"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"module": zero3_state_dict(engine.module)}, folder / f"z3_rank_{rank:02d}_model_states.pt")
    (folder.parent / "latest").write_text("5")
    torch.distributed.barrier()


output.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
child = os.fork()
work(0 if child else 1)
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
