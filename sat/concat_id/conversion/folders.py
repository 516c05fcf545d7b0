"""Whole models on disk: a SAT checkpoint becomes a diffusers folder and back, tensor by tensor, in little memory."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from concat_id.config.cogvideox import ModelConfig
from concat_id.config.loading import load_config
from concat_id.config.schema import BACKBONES
from concat_id.config.yaml_files import run_configuration
from concat_id.conversion import low_rank_products
from concat_id.conversion.card import model_card
from concat_id.conversion.lazy import LazyTensors, lazy_files
from concat_id.conversion.low_rank_products import LoraMode
from concat_id.conversion.weight_sources import WeightSource
from concat_id.diffusion.schedule import BETA_END, BETA_START
from concat_id.errors import UserError, one_line
from concat_id.files.json_files import recall_json, write_json
from concat_id.files.paths import PROJECT_ROOT, folder_written_whole, resolve_path, write_text
from concat_id.models import tensor_names as names
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.models.text_encoder import TABLES, PromptEncoder, TextEncoder, check_width, given_names
from concat_id.versions import versions
from concat_id.weights.folders import weight_files
from concat_id.weights.loading import check_fit, shape_of, write_sat_checkpoint, write_shards, writing
from concat_id.weights.model_folders import built_from, read_settings

TAG = "converted"
PIPELINE = PROJECT_ROOT / "sat" / "concat_id" / "sampling" / "diffusers_cogvideox.py"
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TRANSFORMER = "CogVideoXTransformer3DModel"
COMPONENTS = {
    "transformer": ["diffusers", TRANSFORMER],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
}
OF_RELATIVES = ("patch_size_t", "use_learned_positional_embeddings", "ofs_embed_dim")  # settings that no configuration has
OWNERS_PATHS = ("name_or_path", "special_tokens_map_file", "tokenizer_file")  # ends of keys by which the libraries say where a part was
MODELS = ("cogvideox_5b", "cogvideox_2b", "mini", "debug")


def to_hf(
    source: WeightSource, output: Path, model: ModelConfig, dtype: torch.dtype | None = None, low_rank: LoraMode = "merge",
    trust: bool = False,
) -> None:  # fmt: skip
    """Write a complete diffusers folder of the transformer `source` with the VAE and text encoder that `model` names.

    `dtype` None keeps each tensor's own, and writes the VAE in float32. Low-rank products are added to the weights, or kept beside
    them as diffusers' load_lora_weights reads them. The folder appears whole or not at all.
    """
    kept = source.kept(low_rank)
    text_encoder = TextEncoder(resolve_path(model.text_encoder.path), trust=trust)
    with folder_written_whole(output) as folder:
        write_autoencoder(folder / "vae", model, dtype, trust)  # first, as the quickest that may turn out to be wrong
        if kept is not None:
            low_rank_products.write_diffusers_products(folder, low_rank_products.to_diffusers(kept, model.transformer.num_layers))
        write_transformer(folder / "transformer", source, model, dtype, merge=kept is None)
        write_text_encoder(folder, text_encoder, dtype, model.transformer.text_hidden_size)
        write_pipeline(folder, "ConcatIDPipeline", COMPONENTS, PIPELINE, scheduler_settings(model), model_card(source, model, low_rank))


def write_pipeline(folder: Path, name: str, components: Mapping, code: Path, scheduler: Mapping, card: str) -> None:
    """Write what says how the parts of a diffusers folder go together, the pipeline's `code` and the model card."""
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": name, "_diffusers_version": versions(("diffusers",))["diffusers"], **components}
    write_json(folder / "model_index.json", index | {"scheduler": ["diffusers", scheduler["_class_name"]]})
    for file in folder.glob("*/*config.json"):
        if settings := recall_json(file):
            write_json(file, {key: value for key, value in settings.items() if not key.endswith(OWNERS_PATHS)})
    shutil.copyfile(code, folder / "pipeline.py")
    write_text(folder / "README.md", card)


def to_sat(source: Path, output: Path, dtype: torch.dtype | None = None, trust: bool = False) -> None:
    """Write the transformer of a diffusers folder, low-rank products beside it added, as a SAT checkpoint.

    `transformer.position_embeddings`, unused, becomes zeros.
    """
    folder = source / "transformer" if os.path.isdir(source / "transformer") else source
    settings = transformer_settings(folder)
    tensors = lazy_files(weight_files(folder, ("diffusion_pytorch_model",)), trust)
    num_layers = settings["num_layers"]
    if os.path.isfile(source / low_rank_products.DIFFUSERS_FILE):
        products = low_rank_products.read_diffusers_products(source)
        tensors = low_rank_products.with_products(tensors, products, str(source), dtype)
    with built_from(folder / "config.json", "transformer", tensors):
        _check_shapes(tensors, settings, folder)
    with folder_written_whole(output) as partial:
        targets = names.sat_targets(num_layers)
        made = names.made_from(targets, tensors, str(folder), dtype=dtype, remedy="its config.json belongs to another model")
        weights = dict(tqdm(made, "transformer", len(targets), unit="tensor"))
        width = tensors["norm_final.weight"]
        weights[names.POSITIONS] = torch.zeros(64, len(width), dtype=dtype or width.dtype)
        write_sat_checkpoint(partial, TAG, weights)


def write_transformer(folder: Path, source: WeightSource, model: ModelConfig, dtype: torch.dtype | None, merge: bool = True) -> None:
    """Write the transformer under diffusers' names with its configuration."""
    settings = names.diffusers_transformer_settings(model.transformer)
    targets = names.diffusers_targets(model.transformer.num_layers)
    tensors = source.merged(dtype) if merge else source.open()
    made = names.made_from(targets, tensors, str(source.path), diffusers_shapes(settings), dtype)
    write_shards(folder, "diffusion_pytorch_model", tqdm(made, "transformer", len(targets), unit="tensor"))
    write_json(folder / "config.json", settings)


def diffusers_shapes(settings: Mapping) -> dict[str, torch.Size]:
    """Shapes of the tensors of diffusers' transformer."""
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(dict(settings))
    return {name: tensor.shape for name, tensor in transformer.state_dict().items()}


def transformer_settings(folder: Path) -> dict:
    """Read a diffusers transformer's config.json. Raises `UserError` for another kind of model."""
    path = folder / "config.json"
    settings = read_settings(path, "a diffusers folder's settings", "name the folder with model_index.json", CogVideoXTransformer3DModel)
    found = settings.get("_class_name", "no _class_name")
    if found != TRANSFORMER or "num_layers" not in settings:
        raise UserError(f"{path}: found {one_line(found)[:80]}, expected {TRANSFORMER} with num_layers; name a folder that to-hf wrote")
    key = next((key for key in OF_RELATIVES if settings.get(key)), "in_channels")
    if key != "in_channels" or settings.get(key, 16) != settings.get("out_channels", 16):
        found = f"found {one_line(f'{settings.get(key, 16)!s:.40}')}, as relatives of CogVideoX have it (1.5, image to video)"
        raise UserError(f"{path}: {key}: {found}, expected the transformer of CogVideoX-2B or 5B; name another folder")
    return settings


def _check_shapes(tensors: Mapping[str, Tensor], settings: Mapping, folder: Path) -> None:
    for name, shape in diffusers_shapes(settings).items():
        if name in tensors and tensors[name].shape != shape and name not in names.IGNORED:
            found = tuple(tensors[name].shape)
            raise UserError(f"{folder}: {name}: found shape {found}, but config.json makes it {tuple(shape)}; get the folder again")


def write_autoencoder(folder: Path, model: ModelConfig, dtype: torch.dtype | None, trust: bool) -> None:
    """Write the VAE, 0.4 GB at 5B, as diffusers saves it."""
    dtype, rate = dtype or torch.float32, model.transformer.time_compressed_rate
    autoencoder = VideoAutoencoder.from_config(model.autoencoder, model.scale_factor, trust, dtype, temporal=rate).autoencoder
    autoencoder.register_to_config(scaling_factor=model.scale_factor)
    with writing():
        autoencoder.save_pretrained(folder)


def write_text_encoder(folder: Path, encoder: PromptEncoder, dtype: torch.dtype | None, width: int) -> None:
    """Write T5's or UMT5's encoder as safetensors under transformers' names, whatever it was, and its tokenizer.

    Raises `UserError` before anything is written where tensors do not fit, or make tokens of another `width`.
    """
    network, tensors = encoder.build(lazy_files(encoder.files, encoder.trust))
    check_width(encoder.path, width, network.config.d_model)
    named = {name: partial(tensors.__getitem__, given) for name, given in given_names(tensors).items()}
    check_fit(LazyTensors(named), network.state_dict(), str(encoder.path), type(network).__name__)
    del named[TABLES[1]]  # the same as the first
    made = ((name, make().to(dtype) if dtype else make()) for name, make in tqdm(named.items(), "text encoder", unit="tensor"))
    write_shards(folder / "text_encoder", "model", made)
    own = network.config.to_dict() | {"architectures": [type(network).__name__]}
    settings = read_settings(encoder.folder / "config.json", "settings of a text encoder") if encoder.folder else own
    # transformers reads the type under the newer name or the older one, where either is there.
    types = dict.fromkeys(settings.keys() & {"dtype", "torch_dtype"}, str(dtype).removeprefix("torch.")) if dtype else {}
    write_json(folder / "text_encoder" / "config.json", settings | types)
    (folder / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        if os.path.isfile(encoder.tokenizer_folder / name):
            shutil.copyfile(encoder.tokenizer_folder / name, folder / "tokenizer" / name)


def scheduler_settings(model: ModelConfig) -> dict:
    """scheduler_config.json: the schedule of `diffusion.schedule` in diffusers' terms."""
    return {
        "_class_name": {"sde_dpmpp_2m": "CogVideoXDPMScheduler", "ddim": "CogVideoXDDIMScheduler"}[model.sampler.name],
        "num_train_timesteps": model.schedule.num_timesteps,
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "scaled_linear",
        "snr_shift_scale": model.schedule.shift,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
    }


def choose_model(source: WeightSource, path: Path, base: Sequence[str]) -> tuple[str, ModelConfig]:
    """Read the configuration `base`, else the one that the run at `path` recorded, else find the known one that fits the weights."""
    if files := list(base) or [str(recorded) for recorded in [run_configuration(path)] if recorded]:
        return " ".join(files), read_model(files)
    return detect_model(source.open())


def read_model(files: Iterable[str | Path]) -> Any:
    """Read a model whose videos are as large, long and fast as the clips that the files name."""
    config = load_config(files, kinds=BACKBONES)
    model, data, sizes = config.model, config.data, config.model.transformer
    sizes.latent_height, sizes.latent_width = model.latent_sides(data.video_size)
    sizes.num_frames, model.fps = data.max_num_frames, data.fps
    return model


def detect_model(tensors: Mapping[str, Tensor]) -> tuple[str, ModelConfig]:
    """Find the configuration whose transformer has these tensors' shapes. Raises `UserError` if none has."""
    layers, source = len({name.split(".")[2] for name in tensors if name.startswith("transformer.layers.")}), "the transformer's checkpoint"
    embeddings = {"mixins.patch_embed.proj.weight": 4, "mixins.patch_embed.text_proj.weight": 2, "time_embed.2.weight": 2}
    (width, channels, patch, _), (_, text), (time, _) = (shape_of(tensors, name, count, source) for name, count in embeddings.items())
    sizes = {"hidden_size": width, "in_channels": channels, "patch_size": patch, "text_hidden_size": text, "time_embed_dim": time}
    return known_model(MODELS, {"num_layers": layers, **sizes}, source)


def known_model(names: Iterable[str], sizes: Mapping[str, int], source: str | Path) -> tuple[str, Any]:
    """Find the configuration of configs/ whose transformer has these sizes. Raises `UserError` if none has."""
    for name in names:
        model = load_config([PROJECT_ROOT / "configs" / f"{name}.yaml"]).model
        if all(getattr(model.transformer, key) == size for key, size in sizes.items()):
            return name, model
    told = ", ".join(f"{key} {size}" for key, size in sizes.items())
    raise UserError(f"{source}: no known model has {told}; give its configuration with --base")
