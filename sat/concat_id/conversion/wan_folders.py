"""Concat-ID on Wan2.1 on disk: Wan's own files become a diffusers folder and back, tensor by tensor, in little memory."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from concat_id.config.wan import WanModelConfig, WanTransformerConfig
from concat_id.config.yaml_files import run_configuration
from concat_id.conversion.card import wan_card
from concat_id.conversion.folders import known_model, read_model, write_pipeline, write_text_encoder
from concat_id.conversion.lazy import LazyTensors, lazy_files
from concat_id.conversion.low_rank_products import DIFFUSERS_FILE, LoraMode, read_diffusers_products, write_diffusers_products
from concat_id.conversion.weight_sources import WeightSource, files_digest, open_source
from concat_id.errors import UserError
from concat_id.files.json_files import recall_json, write_json
from concat_id.files.paths import PROJECT_ROOT, folder_written_whole, kind_of, resolve_path, written_whole
from concat_id.models.tensor_names import Target, made_from
from concat_id.models.wan.autoencoder import WanAutoencoder, sizes_of
from concat_id.models.wan.text_encoder import WanTextEncoder
from concat_id.models.wan.transformer import WanDiffusionTransformer, network_settings
from concat_id.models.wan.weights import (
    PREFIX,
    STEM,
    count_layers,
    given_names,
    has_ref_modulation,
    is_native,
    native_names,
    wan_files,
)
from concat_id.weights.folders import OF_ANY_RANK
from concat_id.weights.loading import shape_of, write_shards, writing
from concat_id.weights.low_rank import FILE as LOW_RANK_FILE

SOURCES = PROJECT_ROOT / "sat" / "concat_id"
NETWORK_MODULE = "wan_network"  # what the network's file is called in converted folders
PIPELINE, NETWORK = SOURCES / "sampling" / "diffusers_wan.py", SOURCES / "models" / "wan" / "network.py"
MODELS = ("wan_1_3b", "wan_mini")
TRANSFORMER, SCHEDULER = "ConcatIDWanTransformer", "FlowMatchEulerDiscreteScheduler"
COMPONENTS = {
    "transformer": [NETWORK_MODULE, TRANSFORMER],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
}


def find_source(path: Path, weights: str | None = None, load: str | None = None, trust: bool = False) -> WeightSource | None:
    """Find Wan's transformer in a file in Wan's names, a diffusers folder or a training of ours; None for other weights.

    The options are those of `open_source`, for trainings alone. Raises `UserError` for a file that cannot be read.
    """
    try:
        source = _open(path, weights, load, trust)
        tensors = source.open()
        if not is_native(given_names(tensors)) and not _names_wan(path):
            return None
    except UserError:
        if kind_of(path) not in ("a folder", "no such file") or _names_wan(path):
            raise
        return None
    if not _is_training(path) and weights:
        raise UserError(f"command line: --weights: is for training runs, found Wan's transformer in {path}; leave it out")
    return dataclasses.replace(source, open=lambda: tensors)


def to_diffusers(
    source: WeightSource, target: Path, model: WanModelConfig | None = None, dtype: torch.dtype | None = None, low_rank: LoraMode = "merge",
    trust: bool = False,
) -> None:  # fmt: skip
    """Write a complete diffusers folder of the transformer `source` with the VAE and text encoder that `model` names.

    Without `model` that is the training's own, or the one of configs/wan*.yaml whose sizes fit. The variant (first stage or AdaLN) is
    that of the weights. `dtype` None keeps each tensor's own. Low-rank products are added to the weights, or kept beside them as
    diffusers' load_lora_weights reads them. The folder appears whole or not at all. Raises `UserError` for weights that are not of the
    sizes in `model`, or parts that are not Wan's.
    """
    kept = source.kept(low_rank)
    model = model or find_model(source)
    for part in (model.autoencoder, model.text_encoder):
        if part.kind not in ("wan", "umt5"):
            found = f"is of kind {part.kind}, expected Wan's VAE and text encoder; no pipeline takes others, such as wan_mini's"
            raise UserError(f"{part.path}: {found}: there is nothing to convert, train wan_1_3b for a folder")
    autoencoder, text_encoder = resolve_path(model.autoencoder.path), WanTextEncoder(resolve_path(model.text_encoder.path), trust=trust)
    with folder_written_whole(target) as folder:
        if kept is not None:
            write_diffusers_products(folder, {layer.removeprefix(PREFIX): product for layer, product in kept.items()})
        config = write_transformer(folder / "transformer", source, model.transformer, dtype, merge=kept is None)
        with writing():
            vae = WanAutoencoder.from_path(autoencoder, dtype or torch.float32, trust=trust, **sizes_of(model.autoencoder))
            vae.autoencoder.save_pretrained(folder / "vae")
        write_text_encoder(folder, text_encoder, dtype, model.transformer.text_hidden_size)
        steps = {"_class_name": SCHEDULER, "num_train_timesteps": model.schedule.num_timesteps, "shift": model.schedule.shift}
        write_pipeline(folder, "ConcatIDWanPipeline", COMPONENTS, PIPELINE, steps, wan_card(source, config, model, low_rank))


def find_model(source: WeightSource) -> WanModelConfig:
    """Find the configuration that a transformer belongs to. Raises `UserError` if none has its sizes."""
    if recorded := run_configuration(source.path):
        return read_model([recorded])
    tensors = _in_native_names(source.open(), source.path)
    embeddings = ("text_embedding.0.weight", "time_embedding.0.weight", "blocks.0.ffn.0.weight")
    (width, text), (_, time), (ffn, _) = (shape_of(tensors, name, 2, str(source.path)) for name in embeddings)
    sizes = {"hidden_size": width, "text_hidden_size": text, "time_embed_dim": time, "ffn_dim": ffn}
    return known_model(MODELS, {"num_layers": count_layers(tensors), **sizes}, source.path)[1]


def to_native(source: WeightSource, target: Path, dtype: torch.dtype | None = None) -> None:
    """Write a transformer as one file in Wan's own names (.pt or .safetensors), with low-rank products added to its weights."""
    if target.suffix not in (".pt", ".pth", ".safetensors"):
        raise UserError(f"{target}: found the ending '{target.suffix}', expected .pt or .safetensors; name a file to write")
    if os.path.lexists(target):
        raise UserError(f"{target}: exists already; choose another name or remove it first")
    tensors = _in_native_names(source.merged(dtype), source.path)
    targets = [Target(name, (name,)) for name in native_names(count_layers(tensors), has_ref_modulation(tensors))]
    made = made_from(targets, tensors, str(source.path), dtype=dtype, remedy="name another file or folder")
    native = {name: tensor.contiguous() for name, tensor in tqdm(made, "transformer", len(targets), unit="tensor")}
    with written_whole(target) as temporary, writing():
        if target.suffix == ".safetensors":
            save_file(native, temporary, {"format": "pt"})
        else:
            torch.save(native, temporary)


def write_transformer(
    folder: Path, source: WeightSource, config: WanTransformerConfig, dtype: torch.dtype | None, merge: bool = True
) -> WanTransformerConfig:
    """Write the transformer under diffusers' names with its configuration and its code; returns the configuration with its variant."""
    tensors = _in_native_names(source.merged(dtype) if merge else source.open(), source.path)
    config = dataclasses.replace(config, ref_modulation=has_ref_modulation(tensors))
    shapes = {name: tensor.shape for name, tensor in WanDiffusionTransformer(config, device="meta").network.state_dict().items()}
    targets = [Target(new, (name,)) for name, new in native_names(config.num_layers, config.ref_modulation).items()]
    made = made_from(targets, tensors, str(source.path), shapes, dtype)
    write_shards(folder, STEM, tqdm(made, "transformer", len(targets), unit="tensor"))
    write_json(folder / "config.json", {"_class_name": TRANSFORMER, **network_settings(config)})
    shutil.copyfile(NETWORK, folder / f"{NETWORK_MODULE}.py")
    return config


def _names_wan(path: Path) -> bool:
    """Tell whether this is a diffusers folder whose settings name a transformer of Wan's."""
    settings = recall_json((path / "transformer" if os.path.isdir(path / "transformer") else path) / "config.json")
    return settings is not None and "Wan" in str(settings.get("_class_name"))


def _is_training(path: Path) -> bool:
    of_others = any(os.path.exists(path / name) for name in ("transformer", "config.json")) or any(path.glob(f"{STEM}*"))
    return kind_of(path) == "a folder" and not of_others or path.match(OF_ANY_RANK) or path.name == LOW_RANK_FILE


def _open(path: Path, weights: str | None, load: str | None, trust: bool) -> WeightSource:
    """A transformer's tensors under the names they have, mapped or read when they are asked for."""
    if load or _is_training(path):
        return open_source(path, weights, load, trust=trust)
    products = read_diffusers_products(path) if os.path.isfile(path / DIFFUSERS_FILE) else None
    files = wan_files(path, alone=products is None)
    return WeightSource(path, files_digest(files), partial(lazy_files, files, trust), products)


def _in_native_names(tensors: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    names = given_names(tensors)
    if not is_native(names):
        raise UserError(f"{path}: found {', '.join(list(names)[:3]) or 'nothing'}, expected Wan's transformer; name another file or folder")
    return LazyTensors({name: lambda given=given: tensors[given] for name, given in names.items()})
