"""What the transformer's tensors and settings are called in SAT and in diffusers, and how each is made from the other's."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from concat_id.config.cogvideox import TransformerConfig
from concat_id.errors import UserError
from concat_id.models.mixins import EPS, LAYER_EPS
from concat_id.weights.loading import check_floats

# Modules whose tensors differ in their names alone: SAT's, diffusers'.
RENAMED = {
    "mixins.patch_embed.proj": "patch_embed.proj",
    "mixins.patch_embed.text_proj": "patch_embed.text_proj",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "transformer.final_layernorm": "norm_final",
    "mixins.final_layer.norm_final": "norm_out.norm",
    "mixins.final_layer.adaLN_modulation.1": "norm_out.linear",
    "mixins.final_layer.linear": "proj_out",
}
RENAMED_IN_LAYER = {
    "transformer.layers.{i}.input_layernorm": "transformer_blocks.{i}.norm1.norm",
    "transformer.layers.{i}.post_attention_layernorm": "transformer_blocks.{i}.norm2.norm",
    "transformer.layers.{i}.attention.dense": "transformer_blocks.{i}.attn1.to_out.0",
    "transformer.layers.{i}.mlp.dense_h_to_4h": "transformer_blocks.{i}.ff.net.0.proj",
    "transformer.layers.{i}.mlp.dense_4h_to_h": "transformer_blocks.{i}.ff.net.2",
    "mixins.adaln_layer.query_layernorm_list.{i}": "transformer_blocks.{i}.attn1.norm_q",
    "mixins.adaln_layer.key_layernorm_list.{i}": "transformer_blocks.{i}.attn1.norm_k",
}
# Those that diffusers cuts into several along their rows; for each of those its pieces, of all that are equal in size.
# AdaLN: SAT has (shift, scale, gate) of attention and MLP for frames, then for text; diffusers has attention's for both, then MLP's.
SPLIT_IN_LAYER = {
    "transformer.layers.{i}.attention.query_key_value": {
        "transformer_blocks.{i}.attn1.to_q": (0,),
        "transformer_blocks.{i}.attn1.to_k": (1,),
        "transformer_blocks.{i}.attn1.to_v": (2,),
    },
    "mixins.adaln_layer.adaLN_modulations.{i}.1": {
        "transformer_blocks.{i}.norm1.linear": (0, 1, 2, 6, 7, 8),
        "transformer_blocks.{i}.norm2.linear": (3, 4, 5, 9, 10, 11),
    },
}
POSITIONS = "transformer.position_embeddings.weight"  # unused, but part of the SAT format; zeros when converted back
BASE = "give the --base of the model that these weights belong to"
IGNORED = {POSITIONS, "mixins.pos_embed.pos_embedding"}
Pieces = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """A tensor to write and how to make it from the source's tensors."""

    name: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # a view where that will do


def _take(count: int, pieces: Pieces, tensor: Tensor) -> Tensor:
    return _joined([tensor.chunk(count)[piece] for piece in pieces])


def _put_together(order: Iterable[Pieces], *parts: Tensor) -> Tensor:
    if len({part.dtype for part in parts}) > 1:  # a product was added to some of 8 bits, which torch.cat takes with no others
        parts = tuple(part.bfloat16() if part.dtype.itemsize == 1 else part for part in parts)
    pieces: dict[int, Tensor] = {}
    for part, indices in zip(parts, order, strict=True):
        pieces.update(zip(indices, part.chunk(len(indices)), strict=True))
    return _joined([pieces[index] for index in sorted(pieces)])


def modules(num_layers: int) -> Iterator[tuple[str, int, dict[str, Pieces]]]:
    """SAT's modules: name, number of equal pieces, and of which of them each of diffusers' consists."""
    for sat, diffusers in RENAMED.items():
        yield sat, 1, {diffusers: (0,)}
    cut = {sat: {diffusers: (0,)} for sat, diffusers in RENAMED_IN_LAYER.items()} | SPLIT_IN_LAYER
    for index in range(num_layers):
        for sat, parts in cut.items():
            yield sat.format(i=index), sum(map(len, parts.values())), {name.format(i=index): pieces for name, pieces in parts.items()}


def diffusers_targets(num_layers: int) -> list[Target]:
    """Every tensor of diffusers' CogVideoXTransformer3DModel, made from SAT's."""
    return [
        Target(f"{new}.{kind}", (f"{old}.{kind}",), partial(_take, count, pieces))
        for kind in ("weight", "bias")
        for old, count, parts in modules(num_layers)
        for new, pieces in parts.items()
    ]


def sat_targets(num_layers: int) -> list[Target]:
    """Every tensor of the SAT transformer but the unused one, made from diffusers'."""
    return [
        Target(f"{old}.{kind}", tuple(f"{new}.{kind}" for new in parts), partial(_put_together, parts.values()))
        for kind in ("weight", "bias")
        for old, _, parts in modules(num_layers)
    ]


def made_from(
    targets: Sequence[Target], tensors: Mapping[str, Tensor], source: str,
    shapes: Mapping[str, torch.Size] | None = None, dtype: torch.dtype | None = None, remedy: str = BASE,
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """Make one target after the other. Raises `UserError` first if the source lacks a tensor or has unknown ones.

    A tensor whose shape is not what `shapes` has for it raises `UserError`, too.
    """
    needed = {name for target in targets for name in target.sources}
    missing, foreign = sorted(needed - tensors.keys()), sorted(tensors.keys() - needed - IGNORED)
    for names, what in ((missing, "missing"), (foreign, "unknown")):
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(f"{source}: {len(names)} tensors are {what}: {some}; {remedy}")
    for target in targets:
        given = {name: tensors[name] for name in target.sources}
        check_floats(given, source)
        try:
            tensor = target.make(*given.values())
        except (RuntimeError, LookupError, ValueError) as error:  # of fewer rows than pieces
            found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
            raise UserError(f"{source}: found the shapes {found}, which make no {target.name}; {remedy}") from error
        if shapes is not None and tensor.shape != shapes[target.name]:
            found = f"found the shape {tuple(tensor.shape)} for {target.name}, expected {tuple(shapes[target.name])}"
            raise UserError(f"{source}: {', '.join(target.sources)}: {found}; {remedy}")
        yield target.name, tensor.to(dtype) if dtype else tensor


def diffusers_transformer_settings(config: TransformerConfig) -> dict:
    """config.json of diffusers' transformer, which has one interpolation of sin-cos positions for height and width.

    Raises `UserError` where `config` has two.
    """
    if config.position_embedding == "sincos" and config.height_interpolation != config.width_interpolation:
        raise UserError(
            f"model.transformer: found height_interpolation {config.height_interpolation:g} and width_interpolation "
            f"{config.width_interpolation:g}; diffusers' transformer has one for both, so this model cannot be converted"
        )
    return {
        "_class_name": "CogVideoXTransformer3DModel",
        "num_attention_heads": config.num_attention_heads,
        "attention_head_dim": config.hidden_size // config.num_attention_heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "time_embed_dim": config.time_embed_dim,
        "text_embed_dim": config.text_hidden_size,
        "num_layers": config.num_layers,
        "sample_width": config.latent_width,
        "sample_height": config.latent_height,
        "sample_frames": config.num_frames,
        "patch_size": config.patch_size,
        "temporal_compression_ratio": config.time_compressed_rate,
        "max_text_seq_length": config.text_length,
        "norm_eps": LAYER_EPS,
        "spatial_interpolation_scale": config.height_interpolation,
        "temporal_interpolation_scale": config.time_interpolation,
        "use_rotary_positional_embeddings": config.position_embedding == "rotary",
    }


def set_last_epsilon(transformer: nn.Module) -> None:
    """Give diffusers' transformer the epsilon of its last norm: it has one setting for all of them, SAT another for this one."""
    transformer.norm_out.norm.eps = EPS
