"""The frozen networks around the adapter: Stable Diffusion 1.5 and CLIP's image encoder, from local folders."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from concat_id.config.neighbours import ConsistentIDConfig
from concat_id.config.presets import FETCH_CONSISTENTID
from concat_id.errors import UserError, finer, one_line
from concat_id.files.paths import kind_of, resolve_path
from concat_id.models.local_folders import load_network, silent, told
from concat_id.video.transforms import to_frames
from concat_id.weights.folders import STEMS, some, weight_files
from concat_id.weights.loading import check_whole, load_files
from concat_id.weights.model_folders import check_tokenizer, load_pretrained, network_of, read_settings

NOISE = {  # as released
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip
NOISE_OF_BASES = {key: (value,) for key, value in NOISE.items()} | {
    "steps_offset": (0, 1), "trained_betas": (None,), "rescale_betas_zero_snr": (False,), "timestep_spacing": ("linspace", "leading"),
}  # fmt: skip
SCHEDULERS = {
    "euler": (EulerDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
}
KIND = "StableDiffusionPipeline"
LAYOUT = "Stable Diffusion 1.5 in diffusers' layout"
EXPECTED = f"expected {LAYOUT}"
WEIGHTS = ("unet", "vae", "text_encoder")
DOWN = re.compile(r"(.+?)[._]lora(?:_A|[._]down|_linear_layer\.down)\.weight")  # in the names of peft, of diffusers and of kohya


def load_base(model: ConsistentIDConfig, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Load the base model onto the CPU, other weights and LoRA files put in as the configuration says; nothing is downloaded.

    Raises `UserError` for a folder that is incomplete or of another model.
    """
    folder, file = resolve_path(model.base), model.base_file and resolve_path(model.base_file)
    check_base(model)
    settings = {"local_files_only": True, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # of files that load in seconds
    if file:
        _require_safetensors(file, "model.base_file")
        with told(file, LAYOUT):
            base = StableDiffusionPipeline.from_single_file(str(file), config=str(folder), torch_dtype=dtype, **settings)
    else:
        inner = {name: weight_files(folder / name, STEMS)[0].name.split(".")[1:-1] for name in WEIGHTS}  # fp16 of model.fp16.safetensors
        variants = {name: parts[0].partition("-")[0] if parts else None for name, parts in inner.items()}
        with told(folder, LAYOUT):
            options = {"use_safetensors": None, "variant": variants["text_encoder"]}
            text_encoder = load_network(CLIPTextModel, folder / "text_encoder", torch.device("cpu"), LAYOUT, dtype, **options)
            settings |= {"image_encoder": None, "text_encoder": text_encoder, "variant": variants["unet"] or variants["vae"]}
            base = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, **settings)
    _check_loaded(base, file or folder)
    for file in map(resolve_path, model.lora_weights):
        _put_in(base, file)
    base.scheduler = make_scheduler(model.sampler.name, base.scheduler.config.get("prediction_type", "epsilon"))
    base.set_progress_bar_config(disable=True)
    for network in (base.unet, base.vae, base.text_encoder):
        network.eval().requires_grad_(False)
    return base


def _check_loaded(base: StableDiffusionPipeline, source: Path) -> None:
    """Raise `UserError` where the libraries went on without some weights, or without the tokenizer's words."""
    for name in WEIGHTS:
        if missing := [key for key, tensor in getattr(base, name).state_dict().items() if tensor.is_meta]:
            raise UserError(f"{source}: found no {some(missing)} of the {name}, {EXPECTED}; download it again")
    if (end := base.tokenizer.eos_token_id) != (last := base.text_encoder.config.vocab_size - 1):
        raise UserError(f"{base.name_or_path}/tokenizer: found {end} as the end of a text, expected {last}; download it again")


def _put_in(base: StableDiffusionPipeline, file: Path) -> None:
    """Add the low-rank weights of a file, in diffusers' or kohya's names, to the base model's own."""
    if not find_spec("peft"):
        raise UserError(f"{file}: found no package peft, which LoRA files need; run bash scripts/setup.sh neighbours")
    _require_safetensors(file, "model.lora_weights")
    with told(file, "low-rank weights of Stable Diffusion 1.5"), silent():
        base.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        _check_adapted(base, file)
        base.fuse_lora()
        base.unload_lora_weights()


def _check_adapted(base: StableDiffusionPipeline, file: Path) -> None:
    """Raise `UserError` where the library passed over some of a file's low-rank weights, or takes them for others."""
    names = load_files([file])
    if scale := next((name for name in names if "dora_scale" in name), None):
        raise UserError(f"{file}: found {one_line(f'{scale:.80}')}, of DoRA, expected plain low-rank weights; take another file")
    given = {found[1].replace(".", "_"): name for name in names if (found := DOWN.fullmatch(name))}
    adapted = [name.replace(".", "_") for network in (base.unet, base.text_encoder) for name, layer in network.named_modules()
               if len(getattr(layer, "lora_A", ()))]  # fmt: skip
    if len(adapted) < len(given) or not given:
        left = [name for layer, name in given.items() if not layer.endswith(tuple(adapted))]
        raise UserError(f"{file}: found {some(left or names)}, expected low-rank weights of layers of Stable Diffusion 1.5; take another"
                        " file")  # fmt: skip


def _require_safetensors(file: Path, key: str) -> None:
    if file.suffix != ".safetensors":
        raise UserError(f"{key}: found {file.name}, expected a .safetensors file; convert it")
    check_whole(file)


def make_scheduler(name: str, prediction: str = "epsilon") -> Any:
    """Make a sampler with the noise levels of Stable Diffusion 1.5."""
    kind, settings = SCHEDULERS[name]
    return kind(**NOISE, **settings, prediction_type=prediction)


def encode_moments(base: StableDiffusionPipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode images (B, 3, H, W) in [-1, 1]: mean and standard deviation (B, 4, h, w) of their latents, float32."""
    with torch.no_grad():
        posterior = base.vae.encode(images.to(base.vae.dtype)).latent_dist
    return tuple(moment.float() * base.vae.config.scaling_factor for moment in (posterior.mean, posterior.std))


def decode_latents(base: StableDiffusionPipeline, latents: Tensor) -> np.ndarray:
    """Turn latents (1, 4, h, w), on the device that the VAE computes on, into one uint8 frame (1, H, W, 3)."""
    image = base.vae.decode(latents.to(base.vae.dtype) / base.vae.config.scaling_factor).sample
    if not torch.isfinite(image).all():
        raise UserError(f"the autoencoder gave NaN or infinite pixels; check its weights, {finer(base.vae.dtype)}")
    return to_frames(image[0][:, None])


def check_base(model: ConsistentIDConfig) -> None:
    """Raise `UserError` for a base that is not there, of another model or noise, or half downloaded; no weights are loaded."""
    folder = resolve_path(model.base)
    if (found := kind_of(folder)) != "a folder":
        fetch = FETCH_CONSISTENTID.get(str(Path(model.base)))
        raise UserError(f"{folder}: found {found}, {EXPECTED}; {f'fetch it with: {fetch}' if fetch else 'set model.base'}")
    kind = read_settings(folder / "model_index.json", LAYOUT).get("_class_name")
    if kind != KIND:
        raise UserError(f"{folder}: found a {kind}, {EXPECTED}; the adapter does not fit another model")
    check_tokenizer(folder / "tokenizer")
    for key, found in read_settings(file := folder / "scheduler" / "scheduler_config.json", "settings of a sampler").items():
        if found not in (known := NOISE_OF_BASES.get(key, (found,))):
            expected = " or ".join(map(str, known))
            raise UserError(f"{file}: {key}: found {one_line(f'{found!s:.80}')}, expected {expected}; set model.base to one with these")
    for name in () if model.base_file else WEIGHTS:
        for file in weight_files(folder / name, STEMS):
            check_whole(file)


class ImageFeatures:
    """CLIP's image encoder up to its last layer but one, from a folder with all of CLIP or with that part alone."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        """Load onto the CPU. Raises `UserError` for a folder that is incomplete or of another model."""
        self.folder, file = folder, folder / "config.json"
        settings = read_settings(file, "settings of CLIP", "set model.image_encoder")
        weights = {name: tensor for name, tensor in load_pretrained(folder).items() if name.startswith("vis")}
        own = settings.get("vision_config", settings)
        own = own | {"projection_dim": settings.get("projection_dim", own.get("projection_dim", 512))}
        self.network = network_of(CLIPVisionModelWithProjection, own, weights, file, "image encoder of CLIP", dtype)

    @property
    def width(self) -> int:
        """Numbers of a feature."""
        return self.network.config.hidden_size

    def check(self, expected: int, source: str) -> None:
        """Raise `UserError` unless features have the numbers that the adapter of `source` takes."""
        if self.width != expected:
            raise UserError(f"{self.folder}: found features of {self.width} numbers, the adapter in {source} takes {expected}; take "
                            "CLIP-ViT-H-14")  # fmt: skip

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute features (B, N, C) of pixels (B, 3, 224, 224), as `clip_pixels` makes them."""
        first = next(self.network.parameters())
        return self.network(pixels.to(first.device, first.dtype), output_hidden_states=True).hidden_states[-2]

