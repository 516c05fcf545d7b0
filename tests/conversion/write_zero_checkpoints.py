"""Writes checkpoints as DeepSpeed and SAT do, of two processes: `python write_zero_checkpoints.py MODEL_STATES OUTPUT`.

OUTPUT/<kind>/5 for zero2, zero3 (DeepSpeed's save_checkpoint) and sat3 (SAT's), each a step away from the weights of MODEL_STATES;
OUTPUT/<kind>.safetensors is what they hold, gathered by DeepSpeed. Averages in the optimizer's states are half the masters.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

source, output = sys.argv[1], Path(sys.argv[2])
os.environ |= {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": "2"}

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402 - slow, and wanted by both processes
import safetensors.torch  # noqa: E402
from deepspeed.utils import safe_get_full_fp32_param  # noqa: E402
from sat.training.model_io import zero3_state_dict  # noqa: E402

from concat_id.config.loading import load_config  # noqa: E402
from concat_id.models.transformer import DiffusionTransformer  # noqa: E402

FROZEN = "model.diffusion_model.transformer.position_embeddings.weight"
SETTINGS = {
    "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}  # fmt: skip


class Network(nn.Module):
    """The transformer of configs/debug.yaml where SAT has it."""

    def __init__(self, tensors):
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = DiffusionTransformer(load_config(["configs/debug.yaml"]).model.transformer)
        self.load_state_dict(tensors)
        self.get_parameter(FROZEN).requires_grad_(False)

    def forward(self, *inputs):
        return self.model.diffusion_model(*inputs).float().square().sum()


def make_engine(tensors, stage):
    network = Network(tensors)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    settings = SETTINGS | {"zero_optimization": {"stage": stage, "sub_group_size": 50_000}}
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    latents, text = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((1, 1, 16, 4, 4), (1, 16, 32)))
    engine.backward(engine(latents, torch.tensor([500]), text, latents))
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
    torch.distributed.init_process_group("gloo", f"file://{output}/rendezvous", rank=rank, world_size=2)
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
