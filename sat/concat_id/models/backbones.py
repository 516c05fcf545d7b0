"""Which classes make up the model of a configuration: the one place that knows the kinds. Each imports its libraries when it is asked."""

import inspect
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from concat_id.config.neighbours import NEIGHBOURS, weight_paths
from concat_id.config.schema import Config
from concat_id.distributed import is_cuda, rank
from concat_id.errors import UserError, tell
from concat_id.files.paths import resolve_path
from concat_id.models.operations import count_tokens
from concat_id.models.quantization import blocks_of, load_gguf, quantize_and_compare, sample_output
from concat_id.weights.folders import find_sat_checkpoint, some, what_to_do_with
from concat_id.weights.loading import content_digest, load_sat_checkpoint, weights_digest
from concat_id.weights.model_folders import made_on

if TYPE_CHECKING:
    from concat_id.models.autoencoder import VideoAutoencoder
    from concat_id.models.text_encoder import PromptEncoder
    from concat_id.models.wan.autoencoder import WanAutoencoder

LAST = "mixins.final_layer.linear.weight", "network.proj_out.weight"
MISSING = "missing, expected the weights of the transformer; set it to where they are"


def new_transformer(config: Config, device: torch.device | str | None = None) -> nn.Module:
    """Build the transformer with uninitialised weights."""
    if config.model.kind == "wan":
        from concat_id.models.wan.transformer import WanDiffusionTransformer

        return WanDiffusionTransformer(config.model.transformer, device)
    from concat_id.models.transformer import DiffusionTransformer

    return DiffusionTransformer(config.model.transformer, device)


def initialize_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights for training from scratch: normal matrices, zero modulations and output (DiT, section 3.2).

    Wan's modulations are drawn around those of the time.
    """
    for name, parameter in network.named_parameters():
        if "scale_shift_table" in name:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
        elif parameter.dim() == 1:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "adaLN_modulation" in name or name in LAST:
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02, generator=generator)


def load_transformer(config: Config, source: str | Path, train: bool = False) -> nn.Module:
    """Read the transformer of `source` in the type of the run; weights may stay pages of their file unless it is to `train`.

    Only training may start an AdaLN variant of Wan from weights without it. Raises `UserError` for weights that do not fit.
    """
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    path, trust = resolve_path(source), config.args.trust_checkpoint
    if config.args.gguf and not train:
        network = _new_diffusers_transformer(config)
        load_gguf(network.network, resolve_path(config.args.gguf), dtype)
        return network
    if config.model.kind == "wan":
        from concat_id.models.wan.weights import load_wan_transformer

        network = load_wan_transformer(path, config.model.transformer, dtype, trust, start=train)
    else:
        checkpoint = load_sat_checkpoint(path, trust=trust, alpha=config.model.lora.alpha if config.model.lora else 1.0)
        if advice := what_to_do_with(checkpoint.state_dict, Path(checkpoint.source)):
            raise UserError(f"{checkpoint.source}: found {some(checkpoint.state_dict)}, {advice}")
        by_diffusers = config.args.network == "diffusers" and not train
        network = _new_diffusers_transformer(config) if by_diffusers else new_transformer(config, "meta")
        network.load_sat_tensors(checkpoint.state_dict, checkpoint.source, dtype)
    if train:
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # the file may be removed while its pages are in use
    return network


def _new_diffusers_transformer(config: Config) -> nn.Module:
    """Build the transformer of diffusers on the meta device."""
    if config.model.kind == "wan":
        return new_transformer(config, "meta")
    from concat_id.models.diffusers_transformer import DiffusersTransformer

    return DiffusersTransformer(config.model.transformer)


def quantize_transformer(config: Config, transformer: nn.Module, device: torch.device) -> str:
    """Hold the weights of a transformer of diffusers in 8 bits; returns what that saves, and what it changes on a fixed input."""
    output = partial(sample_output, transformer, getattr(torch, config.args.dtype_name), device)
    return "the transformer's " + quantize_and_compare(transformer.network, config.args.quantize, output)


def _quantize_text_encoder(kind: str, network: nn.Module) -> None:
    tokens = torch.arange(1, 17, device=network.device)[None]
    told = quantize_and_compare(network, kind, lambda: network(input_ids=tokens).last_hidden_state.float().cpu())
    if rank() == 0:
        tell(f"the text encoder's {told}")


def compile_blocks(config: Config, network: nn.Module, device: torch.device, steps: int) -> str | None:
    """Let torch.compile fuse the blocks, if that is wanted or, with auto, worth its while for so many steps; returns what to say of it."""
    from concat_id.models.compilation import compiled, worth_compiling

    wanted, random = config.args.compile, config.model.lora is not None and config.model.lora.dropout > 0
    if not (worth_compiling(network, device, steps) and not random if wanted is None else wanted):
        return None
    recompute = config.model.transformer.checkpoint_activations
    if hasattr(network, "get_mixin"):
        mixin = network.get_mixin("adaln_layer")
        mixin.checkpoint_activations = False  # which compiled blocks do themselves
        mixin.block = compiled(mixin.block, mixin.lengths, recompute)
    else:
        network.network.disable_gradient_checkpointing()  # likewise
        blocks = blocks_of(network.network)
        forward, lengths = type(blocks[0]).forward, _lengths_of_wan if config.model.kind == "wan" else _lengths_of_cogvideox
        fused, signature = compiled(forward, lengths, recompute), inspect.signature(forward)
        for block in blocks:
            block.forward = lambda *args, block=block, **options: fused(*signature.bind(block, *args, **options).args)
    return "the transformer's blocks are compiled in the first step: some 20 s, or seconds if they were before"


def _lengths_of_wan(block: nn.Module, tokens: Tensor, text: Tensor, time: Tensor, rotary: tuple) -> list[tuple[Tensor, int]]:
    return [(table, 1) for table in (tokens, *rotary[:2])]


def _lengths_of_cogvideox(
    block: nn.Module, frames: Tensor, text: Tensor, time: Tensor, rotary: Tensor | None, options: None
) -> list[tuple[Tensor, int]]:
    return [(frames, 1), (text, 1), *([] if rotary is None else [(rotary, 0)])]


def choose_kernel(config: Config, network: nn.Module, device: torch.device, measure: bool = True) -> str | None:
    """Set the attention kernel: the one that is asked for or, with auto on CUDA, the fastest for the configuration's video.

    Returns what to say of the choice. Raises `UserError` for one that does not run on the device.
    """
    transformer, heads = config.model.transformer, config.model.transformer.num_attention_heads
    tokens = count_tokens(config.model, config.args.sampling_num_frames + 1, config.args.sampling_image_size) if measure else 0
    network.attention_kernel, told = pick_kernel(config, device, heads, transformer.hidden_size // heads, tokens)
    if hasattr(network, "get_mixin"):
        network.get_mixin("adaln_layer").attention_kernel = network.attention_kernel
    else:
        from concat_id.models.acceleration import BACKENDS

        network.network.set_attention_backend(BACKENDS[network.attention_kernel])
    return told


def pick_kernel(config: Config, device: torch.device, heads: int, head_size: int, tokens: int) -> tuple[str, str | None]:
    """Activate the attention kernel that is asked for or, with auto on CUDA, the fastest for so many `tokens`, if any are given.

    Returns its name, and what to say of the choice. Raises `UserError` for one that does not run on the device.
    """
    from concat_id.models.attention import activate, can_run, fastest

    args = config.args
    kernel, dtype, told = args.attention_kernel, getattr(torch, args.dtype_name), None
    if not can_run(kernel, device, dtype, head_size):
        raise UserError(f"args.attention_kernel: {kernel} cannot run on {device} in {args.dtype_name}; choose another or auto")
    if tokens and kernel == "auto" and is_cuda(device):
        kernel, told = fastest(torch.empty(2, heads, tokens, head_size, device=device, dtype=dtype).normal_())
    activate(kernel)
    return kernel, told


def load_autoencoder(config: Config, device: torch.device | str = "cpu") -> "VideoAutoencoder | WanAutoencoder":
    """Read the frozen video VAE, in the type of the run."""
    section, trust = config.model.autoencoder, config.args.trust_checkpoint
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    if getattr(section, "kind", "cogvideox") == "wan":
        from concat_id.models.wan.autoencoder import WanAutoencoder, sizes_of

        return WanAutoencoder.from_path(resolve_path(section.path), dtype, device, trust, **sizes_of(section))
    from concat_id.models.autoencoder import VideoAutoencoder

    rate = config.model.transformer.time_compressed_rate
    return VideoAutoencoder.from_config(section, config.model.scale_factor, trust, dtype, device, rate)


def new_autoencoder(config: Config) -> "VideoAutoencoder | WanAutoencoder":
    """Build the video VAE on the meta device."""
    section = config.model.autoencoder
    if getattr(section, "kind", "cogvideox") == "wan":
        from concat_id.models.wan.autoencoder import AutoencoderKLWan, WanAutoencoder, sizes_of

        with made_on("meta"):
            each = [1.0] * section.latent_channels
            return WanAutoencoder(AutoencoderKLWan(**sizes_of(section), latents_mean=each, latents_std=each))
    from concat_id.models.autoencoder import AutoencoderKLCogVideoX, VideoAutoencoder, released_settings

    with made_on("meta"):
        settings = released_settings(section, config.model.transformer.time_compressed_rate)
        return VideoAutoencoder(AutoencoderKLCogVideoX(**settings), config.model.scale_factor)


def make_text_encoder(config: Config, device: torch.device | str, cache: Path | None) -> "PromptEncoder":
    """Make the text encoder, which reads its weights for the first prompt that `cache` does not hold."""
    section, trust = config.model.text_encoder, config.args.trust_checkpoint
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    if getattr(section, "kind", "t5") == "umt5":
        from concat_id.models.wan.text_encoder import WanTextEncoder as Encoder
    else:
        from concat_id.models.text_encoder import TextEncoder as Encoder
    from concat_id.models.text_encoder import check_width

    encoder = Encoder(resolve_path(section.path), section.max_length, dtype, device, cache, trust)
    encoder.check_width = partial(check_width, section.path, config.model.transformer.text_hidden_size)
    if config.args.quantize and not config.args.gguf:
        encoder.change(config.args.quantize, partial(_quantize_text_encoder, config.args.quantize))
    return encoder


def weight_digests(config: Config) -> dict[str, str]:
    """Name the weights of every part by their content; raises `UserError` for those that are not there."""
    model, source = config.model, config.args.gguf or config.args.load
    if model.kind == "consisid" or model.kind in NEIGHBOURS and source:
        paths = {name: resolve_path(path) for name, path in weight_paths(model, source).items()}
        runs = {name: find_sat_checkpoint(path) for name, path in paths.items() if name == "adapter" and os.path.isdir(path)}
        return {name: content_digest(path) for name, path in (paths | runs).items()}
    if not source:
        raise UserError(f"args.load: {MISSING}")
    if config.args.gguf:
        transformer = content_digest(resolve_path(source))
    elif model.kind == "wan":
        from concat_id.models.wan.weights import wan_files

        transformer = "+".join(content_digest(file) for file in wan_files(resolve_path(source)))
    else:
        transformer = content_digest(find_sat_checkpoint(resolve_path(source)))
    text_encoder = content_digest(_part(resolve_path(model.text_encoder.path), "text_encoder"))
    return {"transformer": transformer, "autoencoder": autoencoder_digest(config), "text_encoder": text_encoder}


def autoencoder_digest(config: Config) -> str:
    """Name the autoencoder's weights by their content, with a folder's settings; raises `UserError` if they are not there."""
    path = _part(resolve_path(config.model.autoencoder.path), "vae")
    digest = content_digest(path)
    return f"{digest}+{weights_digest(path / 'config.json')}" if os.path.isdir(path) else digest


def _part(path: Path, name: str) -> Path:
    """A part of a diffusers folder, or the path itself."""
    return path / name if os.path.isdir(path / name) else path
