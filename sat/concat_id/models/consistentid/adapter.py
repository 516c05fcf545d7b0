"""The adapter: its three groups of weights, read from the released file or a run of ours, and put into a UNet."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from concat_id.errors import UserError
from concat_id.models.consistentid.attention import processors_of
from concat_id.models.consistentid.networks import FacialEncoder, IdentityProjection
from concat_id.weights.folders import find_sat_checkpoint
from concat_id.weights.loading import SAT_PREFIX, load_strictly, load_tensors
from concat_id.weights.model_folders import made_on

GROUPS = ("image_proj", "adapter_modules", "FacialEncoder")
CALLED_ALSO = {"image_proj_model": "image_proj"}  # in files of the SDXL variant, of the released trainer and of its converter
PROCESSOR = ".processor."  # in the names of the UNet that the adapter is in
WIDTH_OF_SDXL = 2048
LOCALIZED = ("down_blocks.1.", "down_blocks.2.", "mid_block.", "up_blocks.1.", "up_blocks.2.")  # layers that training looks at
REMEDY = "expected ConsistentID-v1.bin for Stable Diffusion 1.5, or a run of sat/train_consistentid.py"


@dataclass(frozen=True)
class AdapterSizes:
    """Sizes of the networks: of the text, of CLIP's image features, and of the part projection; the defaults are the released ones."""

    text: int = 768
    features: int = 1280
    width: int = 1024
    depth: int = 8
    heads: int = 16
    head_size: int = 64
    rank: int = 128
    vector: int = 512
    tokens: int = 4
    layers: int = 4  # of the identity's resampler, whose heads have 64 numbers


class ConsistentIDAdapter(nn.Module):
    """Trains and runs the adapter of a frozen UNet, which is no part of it and so of no checkpoint.

    The names of its weights are `<group>.<name in the released file>`.
    """

    def __init__(self, unet: nn.Module, sizes: AdapterSizes):
        """Put processors with new weights into `unet` (diffusers' `UNet2DConditionModel`)."""
        super().__init__()
        self._unet = (unet,)  # in a tuple it is no submodule
        self.sizes = sizes
        self.image_proj = IdentityProjection(
            sizes.vector, sizes.features, sizes.text, sizes.tokens, sizes.layers, max(1, sizes.text // 64)
        )
        self.adapter_modules = processors_of(unet, sizes.rank)
        self.FacialEncoder = FacialEncoder(sizes.features, sizes.width, sizes.text, sizes.depth, sizes.heads, sizes.head_size)
        unet.set_attn_processor(dict(zip(unet.attn_processors, self.adapter_modules, strict=True)))

    @property
    def unet(self) -> nn.Module:
        """The UNet that the adapter is in."""
        return self._unet[0]

    def set_strength(self, scale: float) -> None:
        """Set the factor of the attention to identity tokens."""
        for processor in self.adapter_modules:
            processor.scale = scale

    def record(self, kind: Literal["cross", "self"] | None) -> None:
        """Choose which attention maps `forward` returns: of the cross- or the self-attentions that training looks at, or none."""
        for name, processor in zip(self.unet.attn_processors, self.adapter_modules, strict=True):
            processor.records = kind is not None and processor.is_cross == (kind == "cross") and name.startswith(LOCALIZED)

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, vectors: Tensor, features: Tensor, parts: Tensor,
        positions: Sequence[Sequence[int]],
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Predict the noise (B, 4, h, w) of latents at timesteps (B,) under text (B, 77, D), whose words at `positions` take parts.

        `vectors` (B, 512), `features` (B, N, C) of the photo, `parts` (B, P, N, C) of its parts. The second result are the attention
        maps (B, heads, pixels, L) that `record` asks for, in the order down, middle, up.
        """
        fused = self.FacialEncoder(text, parts, positions)
        if self.training and not any(positions):  # weights without a gradient would keep the other processes waiting
            fused = fused + 0 * self.FacialEncoder(text[:1], parts[:1], [[1]]).sum()
        maps: list[Tensor] = []
        identity = self.image_proj(vectors, features)
        return self.unet(latents, timestep, fused, cross_attention_kwargs={"identity": identity, "maps": maps}).sample, maps


def read_adapter(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read an adapter's tensors as `<group>.<name>`: of the released file, of a file with such names, or of a run of ours.

    The released trainer saves the frozen UNet as well, which is left out.

    Raises `UserError` for a file of another kind.
    """
    content = load_tensors(find_sat_checkpoint(path) if os.path.isdir(path) else path, trust)
    if isinstance(content, Mapping) and "module" in content:
        content = {name.removeprefix(SAT_PREFIX): tensor for name, tensor in content["module"].items()}
    content = _grouped(content if isinstance(content, Mapping) else {})
    missing = [group for group in GROUPS if not any(name.startswith(f"{group}.") for name in content)]
    if missing:
        raise UserError(f"{path}: found no {', '.join(missing)}, {REMEDY}")
    if (norm := content.get("image_proj.norm.weight")) is not None and norm.shape[0] == WIDTH_OF_SDXL:
        raise UserError(f"{path}: found the adapter of SDXL ({WIDTH_OF_SDXL} wide), {REMEDY}")
    return content


def _grouped(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flatten the released file's three state dicts, or keep what has their names.

    Safetensors of the released trainer have the attentions' weights among the UNet's alone: accelerate saves what two names share once.
    """
    content = {name.removeprefix("module."): value for name, value in content.items()}  # of several processes
    layers = sorted({name.partition(PROCESSOR)[0] for name in content if PROCESSOR in name}, key=lambda name: ("mid_block" in name, name))
    grouped = {}
    for name, value in content.items():
        layer, _, rest = name.partition(PROCESSOR)
        group, _, rest = (f"adapter_modules.{layers.index(layer)}.{rest}" if rest else name).partition(".")
        inner = value if isinstance(value, Mapping) else {rest: value}
        group = CALLED_ALSO.get(group, group)
        grouped |= {f"{group}.{key}": tensor for key, tensor in inner.items() if group in GROUPS and isinstance(tensor, Tensor)}
    return grouped


def sizes_of(tensors: Mapping[str, Tensor], source: str, head_size: int = 64) -> AdapterSizes:
    """Read the sizes off an adapter's tensors, of which the size of a head tells nothing."""
    try:
        text, vector = tensors["image_proj.norm.weight"].shape[0], tensors["image_proj.proj.0.weight"].shape[1]
        resampler, parts = "image_proj.perceiver_resampler", "FacialEncoder.visual_projection"
        features, width = tensors[f"{resampler}.proj_in.weight"].shape[1], tensors[f"{parts}.latents"].shape[-1]
        depth, layers = (sum(name.startswith(f"{group}.layers.") and name.endswith("to_q.weight") for name in tensors)
                         for group in (parts, resampler))  # fmt: skip
        heads = tensors[f"{parts}.layers.0.0.to_q.weight"].shape[0] // head_size
        tokens, rank = tensors["image_proj.proj.2.weight"].shape[0] // text, tensors["adapter_modules.0.to_q_lora.down.weight"].shape[0]
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{source}: found no {error}, {REMEDY}") from error
    return AdapterSizes(text, features, width, depth, heads, head_size, rank, vector, tokens, layers)


def load_adapter(unet: nn.Module, path: Path, dtype: torch.dtype, trust: bool = False, head_size: int = 64) -> ConsistentIDAdapter:
    """Put the adapter of a file into a UNet. Raises `UserError` for one that does not fit."""
    tensors = read_adapter(path, trust)
    sizes = sizes_of(tensors, str(path), head_size)
    if (width := unet.config.cross_attention_dim) != sizes.text:
        raise UserError(f"{path}: found an adapter for texts {sizes.text} wide, the base model's are {width}; take one for the other")
    with made_on("meta"):
        adapter = ConsistentIDAdapter(unet, sizes)
    load_strictly(adapter, tensors, str(path), dtype=dtype)
    return adapter


def released_groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort an adapter's tensors as the released file has them."""
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    return groups
