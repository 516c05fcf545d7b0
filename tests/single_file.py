"""Stable Diffusion 1.5 as one file with the names of its first release, made of diffusers' networks."""

import re

import torch

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2"}  # fmt: skip
OF_VAE = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
          "to_out.0": "proj_out"}  # fmt: skip


def unet_name(name: str, layers: int, attends: list[bool]) -> str:
    """What a tensor of the UNet is called; `attends` says which of the up blocks have attention."""
    for ours, theirs in ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    way, level, kind, index, rest = re.fullmatch(r"(down|up|mid)_blocks?\.?(\d*)\.(\w+)\.(\d+)\.(.*)", name).groups()
    if kind == "resnets":
        part, _, end = rest.rpartition(".")
        rest = f"{RESNET[part]}.{end}"
    place = {"resnets": 0, "attentions": 1}.get(kind)
    if way == "mid":
        return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{rest}"
    if way == "down":
        block = 1 + (layers + 1) * int(level) + (layers if kind == "downsamplers" else int(index))
        return f"input_blocks.{block}.0.op.{rest.removeprefix('conv.')}" if place is None else f"input_blocks.{block}.{place}.{rest}"
    block = (layers + 1) * int(level) + (layers if kind == "upsamplers" else int(index))
    return f"output_blocks.{block}.{1 + attends[int(level)] if place is None else place}.{rest}"


def vae_name(name: str, levels: int) -> str:
    """What a tensor of the autoencoder is called."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}.block.{found[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)
    for ours, theirs in OF_VAE.items():
        name = re.sub(rf"\b{re.escape(ours)}\b", theirs, name)
    return name


def single_file(pipeline) -> dict[str, torch.Tensor]:
    """All tensors of a pipeline under the names of one file."""
    unet, vae = pipeline.unet, pipeline.vae
    attends = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    tensors = {f"model.diffusion_model.{unet_name(name, unet.config.layers_per_block, attends)}": tensor
               for name, tensor in unet.state_dict().items()}  # fmt: skip
    for name, tensor in vae.state_dict().items():
        is_attention = "attentions" in name and name.endswith("weight") and tensor.dim() == 2
        tensors[f"first_stage_model.{vae_name(name, len(vae.config.block_out_channels))}"] = (
            tensor[:, :, None, None] if is_attention else tensor
        )
    text = pipeline.text_encoder.state_dict()
    tensors |= {f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
