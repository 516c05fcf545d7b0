"""Whole models on disk: a SAT checkpoint becomes a diffusers folder and back, tensor by tensor, in little memory."""

import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from concat_id.config import ModelConfig
from concat_id.conversion import names
from concat_id.errors import UserError
from concat_id.files import PROJECT_ROOT, folder_written_whole, resolve_path, write_json
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.models.text_encoder import DECODER_WEIGHTS
from concat_id.weights import SAT_PREFIX, load_files, load_sat_checkpoint, matches, weight_files

SHARD_SIZE = 2 * 10**9  # bytes of one safetensors file; a conversion holds one at a time
TAG = "converted"
PIPELINE = PROJECT_ROOT / "sat" / "concat_id" / "pipelines" / "diffusers_pipeline.py"
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
COMPONENTS = {
    "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
}


def to_hf(source: Path, output: Path, model: ModelConfig, dtype: torch.dtype | None = None, trust: bool = False) -> None:
    """Write a complete diffusers folder of the SAT checkpoint `source` with the VAE and text encoder that `model` names.

    `dtype` None keeps each tensor's own, and writes the VAE in float32. The folder appears whole or not at all.
    """
    checkpoint = load_sat_checkpoint(source, trust=trust)
    targets = names.diffusers_targets(model.transformer.num_layers)
    tensors = names.made_from(targets, checkpoint.state_dict, checkpoint.source, dtype)
    with folder_written_whole(output) as folder:
        write_shards(folder / "transformer", "diffusion_pytorch_model", tqdm(tensors, "transformer", len(targets), unit="tensor"))
        write_json(folder / "transformer" / "config.json", names.diffusers_transformer_settings(model.transformer))
        write_autoencoder(folder / "vae", model, dtype, trust)
        write_text_encoder(folder, resolve_path(model.text_encoder.path), dtype, trust)
        scheduler = names.diffusers_scheduler_settings(model)
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        components = COMPONENTS | {"scheduler": ["diffusers", scheduler["_class_name"]]}
        index = {"_class_name": "ConcatIDPipeline", "_diffusers_version": version("diffusers"), **components}
        write_json(folder / "model_index.json", index)
        shutil.copyfile(PIPELINE, folder / "pipeline.py")
        (folder / "README.md").write_text(model_card(checkpoint.source, checkpoint.digest, model), encoding="utf-8")


def to_sat(source: Path, output: Path, dtype: torch.dtype | None = None, trust: bool = False) -> None:
    """Write the transformer of a diffusers folder as a SAT checkpoint. `transformer.position_embeddings`, unused, becomes zeros."""
    folder = source / "transformer" if (source / "transformer").is_dir() else source
    state_dict = load_files(weight_files(folder, ("diffusion_pytorch_model",)), trust)
    layers = {int(name.split(".")[1]) for name in state_dict if name.startswith("transformer_blocks.")}
    targets = names.sat_targets(len(layers))
    module = {f"{SAT_PREFIX}{name}": tensor for name, tensor in names.made_from(targets, state_dict, str(folder), dtype)}
    width = state_dict["norm_final.weight"]
    module[SAT_PREFIX + names.POSITIONS] = torch.zeros(64, len(width), dtype=dtype or width.dtype)
    with folder_written_whole(output) as partial:
        (partial / TAG).mkdir()
        torch.save({"module": module}, partial / TAG / "mp_rank_00_model_states.pt")
        (partial / "latest").write_text(TAG)


def write_autoencoder(folder: Path, model: ModelConfig, dtype: torch.dtype | None, trust: bool) -> None:
    """Write the VAE, 0.4 GB at 5B, as diffusers saves it."""
    autoencoder = VideoAutoencoder.from_config(model.autoencoder, model.scale_factor, trust, dtype or torch.float32).autoencoder
    autoencoder.register_to_config(scaling_factor=model.scale_factor)
    autoencoder.save_pretrained(folder)


def write_text_encoder(folder: Path, source: Path, dtype: torch.dtype | None, trust: bool) -> None:
    """Write T5's encoder as safetensors, whatever it was, and its tokenizer."""
    tensors = load_files(weight_files(source), trust)
    kept = [name for name in tensors if not matches(name, (*DECODER_WEIGHTS, "encoder.embed_tokens.weight"))]
    converted = ((name, tensors[name].to(dtype or tensors[name].dtype)) for name in tqdm(kept, "text encoder", unit="tensor"))
    write_shards(folder / "text_encoder", "model", converted)
    shutil.copyfile(source / "config.json", folder / "text_encoder" / "config.json")
    (folder / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / "tokenizer" / name)


def write_shards(folder: Path, stem: str, tensors: Iterable[tuple[str, Tensor]], shard_size: int = SHARD_SIZE) -> None:
    """Write tensors as safetensors files of at most `shard_size` bytes with an index, holding one file's worth in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        contiguous = {name: tensor.contiguous() for name, tensor in pending.items()}
        safetensors.torch.save_file(contiguous, folder / f"{len(shards)}.partial", {"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_size:
            flush()
            size = 0
        pending[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    index = {}
    for number, contained in enumerate(shards):
        final = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.partial").rename(folder / final)
        index |= dict.fromkeys(contained, final)
    if len(shards) > 1:
        write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def model_card(source: str, digest: str, model: ModelConfig) -> str:
    """README.md of a converted folder: what it is, where it came from, how to use it."""
    t = model.transformer
    return f"""---
library_name: diffusers
pipeline_tag: text-to-video
---
# Concat-ID, converted for diffusers

{t.num_layers} layers of width {t.hidden_size}; up to {t.num_frames} frames, {t.max_refs} reference images.
Converted from `{Path(source).parent.parent.name}/{Path(source).parent.name}/{Path(source).name}`, {digest}.

```python
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
from PIL import Image

folder = "."
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()
video = pipe("A woman laughs in the rain", reference_images=[Image.open("face.png")], guidance_scale=6).frames[0]
export_to_video(video, "video.mp4", fps=8)
```

References are heads cut out on black, as `sat/sample_video.py` of the project writes them (`reference_1.png`).
The weights keep the licence of what they were converted from.
"""


def detect_model(state_dict: dict[str, Tensor], candidates: Iterable[tuple[str, ModelConfig]]) -> tuple[str, ModelConfig]:
    """Find the configuration whose transformer has these tensors' shapes. Raises `UserError` if none has."""
    layers = len({name.split(".")[2] for name in state_dict if name.startswith("transformer.layers.")})
    embeddings = ("mixins.patch_embed.proj.weight", "mixins.patch_embed.text_proj.weight", "time_embed.2.weight")
    patch, text, time = (state_dict.get(name) for name in embeddings)
    if patch is None or text is None or time is None:
        raise UserError("the checkpoint has no patch or time embedding; it is none of this model's")
    found = (layers, *patch.shape[:3], text.shape[1], time.shape[0])
    for name, model in candidates:
        t = model.transformer
        if found == (t.num_layers, t.hidden_size, t.in_channels, t.patch_size, t.text_hidden_size, t.time_embed_dim):
            return name, model
    raise UserError(f"no known model has {layers} layers of width {found[1]} and {found[4]} wide text; give its configuration with --base")
