"""Weights of diffusers' networks in few bits: by torchao when they are loaded, or from GGUF files; and what that changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from concat_id.errors import UserError, reason_of
from concat_id.files.paths import require_file
from concat_id.weights.loading import UNREADABLE, check_fit

SAMPLE_SIDE = 16  # of the latents that quantising is tried on
# What stays in 16 bits: little of the memory, and every token or step depends on it.
KEPT = {
    "norm": "modulations by the timestep, and the norms themselves",
    "patch_embed": "the way in, of latents and of text",
    "patch_embedding": "the same, of Wan's latents",
    "time_embedding": "what all modulations come from",
    "condition_embedder": "the same, and the text's way in, of Wan",
    "proj_out": "the way out",
}


def blocks_of(network: nn.Module) -> nn.ModuleList:
    """The repeated blocks of a network of diffusers."""
    return network.transformer_blocks if hasattr(network, "transformer_blocks") else network.blocks


def quantize(module: nn.Module, kind: str) -> None:
    """Hold the matrices of a module's linear layers as 8-bit numbers ("int8" or "fp8"), each row with a scale; `KEPT` ones stay.

    Products are still computed in the type of the inputs.
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    settings = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]()

    def wanted(layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear) and not is_kept(name)

    quantize_(module, settings, filter_fn=wanted)


def quantize_and_compare(network: nn.Module, kind: str, output: Callable[[], Tensor]) -> str:
    """Quantise a network, and say what that saves, and what it changes of its `output` on a fixed input."""
    whole, expected = bytes_of(network), output()
    quantize(network, kind)
    off, sizes = difference(output(), expected), f"{whole / 1e9:.3g} to {bytes_of(network) / 1e9:.3g} GB"
    return f"weights are in {kind}: {sizes}, its output on a fixed input is off by {off:.2%}"


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights, whatever holds them."""
    return sum(_bytes(weight) for weight in module.parameters())


def _bytes(weight: Tensor) -> int:
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    parts = (getattr(weight, name) for name in weight.__tensor_flatten__()[0])
    return sum(_bytes(part) for part in parts if part is not None)


@torch.no_grad()  # not inference mode, in which quantised weights cannot move
def sample_output(transformer: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a transformer of either backbone makes of fixed latents, a reference and text; its blocks visit `device` one by one."""
    config, generator = transformer.config, torch.Generator().manual_seed(0)
    side = min(config.latent_height, config.latent_width, SAMPLE_SIDE)
    latents, refs = (torch.randn(1, 1, config.in_channels, side, side, generator=generator) for _ in range(2))
    text = torch.randn(1, config.text_length, config.text_hidden_size, generator=generator)
    inputs = [each.to(device, dtype) for each in (latents, text, refs)]
    with _visiting(transformer, device):
        return transformer(inputs[0], torch.tensor([500], device=device), *inputs[1:]).float().cpu()


@contextmanager
def _visiting(transformer: nn.Module, device: torch.device) -> Iterator[None]:
    blocks = blocks_of(transformer.network)
    others = [part for part in transformer.network.children() if part is not blocks]
    hooks = [block.register_forward_pre_hook(lambda block, inputs: block.to(device) and None) for block in blocks]
    hooks += [block.register_forward_hook(lambda block, inputs, output: block.to("cpu") and None) for block in blocks]
    try:
        for part in others:
            part.to(device)
        for weight in transformer.network.parameters(recurse=False):
            weight.data = weight.data.to(device)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        transformer.to("cpu")


def difference(found: Tensor, expected: Tensor) -> float:
    """How far one result is from another, in relation to its size."""
    return float((found - expected).norm() / expected.norm())


def is_kept(name: str) -> bool:
    """Whether a module, or a tensor of one, is of those in `KEPT`."""
    return any(part in KEPT or part.startswith("norm") for part in name.split("."))


def load_gguf(network: nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Give a network of diffusers the tensors of a GGUF file that has its names; products are computed in `dtype`.

    Few bits stay in linear layers alone: no other reads them. Raises `UserError` for a file that is damaged or another network's.
    """
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import GGUFParameter, _replace_with_gguf_linear, dequantize_gguf_tensor

    require_file(file, "a GGUF file", "make one with sat/convert_weights.py to-gguf")
    try:
        tensors = load_gguf_checkpoint(file)
    except UNREADABLE as error:
        found = f"found no whole GGUF file ({reason_of(error, 100)})"
        raise UserError(f"{file}: {found}; make it again with sat/convert_weights.py to-gguf, or download it again") from error
    shapes = {name: getattr(tensor, "quant_shape", tensor.shape) for name, tensor in tensors.items()}
    given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    check_fit(given, network.state_dict(), str(file), type(network).__name__)
    for name in tensors:
        layer, _, leaf = name.rpartition(".")
        # Wan gives the timestep the type that its embedder's weights have, which would be that of the packed bytes.
        if leaf != "weight" or not isinstance(network.get_submodule(layer), nn.Linear) or "time_embedder" in layer:
            tensors[name] = dequantize_gguf_tensor(tensors[name])
    _replace_with_gguf_linear(network, dtype, tensors)
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        weight = tensor if isinstance(tensor, GGUFParameter) else nn.Parameter(tensor.to(dtype), requires_grad=False)
        network.get_submodule(module)._parameters[leaf] = weight
