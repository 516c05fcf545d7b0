"""Which classes make up the model of a configuration: the one place that knows the kinds. Each imports its libraries when it is asked."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from concat_id.config.schema import Config
from concat_id.errors import UserError
from concat_id.files.paths import resolve_path
from concat_id.weights.folders import find_sat_checkpoint, some, what_to_do_with
from concat_id.weights.loading import content_digest, load_sat_checkpoint, load_strictly

if TYPE_CHECKING:
    from concat_id.models.autoencoder import VideoAutoencoder
    from concat_id.models.text_encoder import PromptEncoder
    from concat_id.models.wan.autoencoder import WanAutoencoder

MISSING = "missing, expected the weights of the transformer; set it to where they are"


def new_transformer(config: Config, device: torch.device | str | None = None) -> nn.Module:
    """Build the transformer with uninitialised weights."""
    if config.model.kind == "wan":
        from concat_id.models.wan.transformer import WanDiffusionTransformer

        return WanDiffusionTransformer(config.model.transformer, device)
    from concat_id.models.transformer import DiffusionTransformer

    return DiffusionTransformer(config.model.transformer, device)


def load_transformer(config: Config, source: str | Path, train: bool = False) -> nn.Module:
    """Read the transformer of `source` in the type of the run; weights may stay pages of their file unless it is to `train`.

    Only training may start an AdaLN variant of Wan from weights without it. Raises `UserError` for weights that do not fit.
    """
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    path, trust = resolve_path(source), config.args.trust_checkpoint
    if config.model.kind == "wan":
        from concat_id.models.wan.weights import load_wan_transformer

        network = load_wan_transformer(path, config.model.transformer, dtype, trust, start=train)
    else:
        from concat_id.models.transformer import UNUSED_IN_CHECKPOINTS

        network, checkpoint = new_transformer(config, "meta"), load_sat_checkpoint(path, trust=trust)
        if advice := what_to_do_with(checkpoint.state_dict, Path(checkpoint.source)):
            raise UserError(f"{checkpoint.source}: found {some(checkpoint.state_dict)}, {advice}")
        load_strictly(network, checkpoint.state_dict, checkpoint.source, ignore=UNUSED_IN_CHECKPOINTS, dtype=dtype)
    if train:
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # the file may be removed while its pages are in use
    return network


def adjust_transformer(config: Config, network: nn.Module) -> None:
    """Set the attention kernel, and let torch.compile fuse the blocks if that is wanted."""
    if config.model.kind == "wan":
        if config.args.compile:
            network.network.compile_repeated_blocks()
        return
    mixin = network.get_mixin("adaln_layer")
    mixin.attention_kernel = config.args.attention_kernel
    if config.args.compile:
        mixin.compile_block()


def check_kernel(config: Config, device: torch.device) -> None:
    """Raise `UserError` unless the attention kernel runs on the device."""
    from concat_id.models.attention import can_run

    kernel, dtype_name, transformer = config.args.attention_kernel, config.args.dtype_name, config.model.transformer
    head_size = transformer.hidden_size // transformer.num_attention_heads
    if not can_run(kernel, device, getattr(torch, dtype_name), head_size):
        raise UserError(f"args.attention_kernel: {kernel} cannot run on {device} in {dtype_name}; choose another or auto")


def load_autoencoder(config: Config, device: torch.device | str = "cpu") -> "VideoAutoencoder | WanAutoencoder":
    """Read the frozen video VAE, in the type of the run."""
    section, trust = config.model.autoencoder, config.args.trust_checkpoint
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    if getattr(section, "kind", "cogvideox") == "wan":
        from concat_id.models.wan.autoencoder import WanAutoencoder

        base = section.block_out_channels[0]
        sizes = {"base_dim": base, "dim_mult": [channels // base for channels in section.block_out_channels]}
        sizes |= {"num_res_blocks": section.layers_per_block, "z_dim": section.latent_channels}
        return WanAutoencoder.from_path(resolve_path(section.path), dtype, device, trust, **sizes)
    from concat_id.models.autoencoder import VideoAutoencoder

    return VideoAutoencoder.from_config(section, config.model.scale_factor, trust, dtype, device)


def make_text_encoder(config: Config, device: torch.device | str, cache: Path | None) -> "PromptEncoder":
    """Make the text encoder, which reads its weights for the first prompt that `cache` does not hold."""
    section, trust = config.model.text_encoder, config.args.trust_checkpoint
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    if getattr(section, "kind", "t5") == "umt5":
        from concat_id.models.wan.text_encoder import WanTextEncoder

        return WanTextEncoder(resolve_path(section.path), section.max_length, dtype, device, cache, trust)
    from concat_id.models.text_encoder import TextEncoder

    return TextEncoder(resolve_path(section.path), section.max_length, dtype, device, cache, trust)


def weight_digests(config: Config) -> dict[str, str]:
    """Name the weights of every part by their content; raises `UserError` for those that are not there."""
    model, source = config.model, config.args.load
    if not source:
        raise UserError(f"args.load: {MISSING}")
    if model.kind == "wan":
        from concat_id.models.wan.weights import wan_files

        transformer = "+".join(content_digest(file) for file in wan_files(resolve_path(source)))
    else:
        transformer = content_digest(find_sat_checkpoint(resolve_path(source)))
    text_encoder = content_digest(_part(resolve_path(model.text_encoder.path), "text_encoder"))
    return {"transformer": transformer, "autoencoder": autoencoder_digest(config), "text_encoder": text_encoder}


def autoencoder_digest(config: Config) -> str:
    """Name the autoencoder's weights by their content; raises `UserError` if they are not there."""
    return content_digest(_part(resolve_path(config.model.autoencoder.path), "vae"))


def _part(path: Path, name: str) -> Path:
    """A part of a diffusers folder, or the path itself."""
    return path / name if os.path.isdir(path / name) else path
