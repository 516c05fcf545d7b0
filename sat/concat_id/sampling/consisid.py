"""ConsisID (Yuan et al. 2025, "Identity-Preserving Text-to-Video Generation by Frequency Decomposition") as diffusers runs it.

Weights are read as Concat-ID's are: from the user's folder, as data, strictly. The face is read by diffusers' own `consisid_utils`.
"""

import io
import os
import shlex
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.config.neighbours import FACE_FILES, FACE_PICKLES
from concat_id.config.presets import CONSISID_HUB
from concat_id.config.schema import Config
from concat_id.errors import UserError, finer, reason_of, warn
from concat_id.face.reference import PreparedReference, load_face_models, prepare_found
from concat_id.files.paths import kind_of, resolve_path
from concat_id.models import backbones
from concat_id.models.acceleration import stream_blocks
from concat_id.models.attention import KERNELS
from concat_id.models.quantization import quantize
from concat_id.sampling.memory import memory_checked
from concat_id.sampling.pipeline import VideoPipeline
from concat_id.video.transforms import load_image
from concat_id.weights.folders import some
from concat_id.weights.loading import check_whole, load_tensors
from concat_id.weights.model_folders import read_settings

if TYPE_CHECKING:
    from concat_id.models.autoencoder import VideoAutoencoder
    from concat_id.models.consisid import FaceAttendingCogVideoX
    from concat_id.models.text_encoder import TextEncoder

ON_MODELSCOPE = "BestWishYSH/ConsisID-preview"
PACKAGES = "torchvision", "timm", "facexlib", "consisid_eva_clip"
SETTINGS = ("transformer/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/spiece.model",
            "scheduler/scheduler_config.json")  # fmt: skip
WEIGHTS = "transformer", "vae", "text_encoder"
MAX_TOKENS = 226


class FaceFeatures(NamedTuple):
    """What the network is told of a face: `seen`, aligned and without its surroundings, becomes the video's first latent."""

    seen: Image.Image
    crop: Image.Image
    identity: Tensor  # (1, 1280): the recogniser's and CLIP's vector
    features: list[Tensor]  # CLIP's hidden states, each (1, 577, 1024)
    keypoints: np.ndarray | None


@dataclass(kw_only=True)
class FaceReference(PreparedReference):
    """A photograph as ConsisID sees it."""

    features: FaceFeatures


def require_whole(folder: Path) -> None:
    """Raise `UserError` with everything that is missing of the released folder, and what fetches it: nothing is downloaded unasked."""
    names = [*SETTINGS, *(f"face_encoder/{name}" for name in FACE_FILES)]
    missing = [name for name in names if kind_of(folder / name) != "a file"]
    missing += [f"weights in {part}" for part in WEIGHTS if not [*folder.glob(f"{part}/*.safetensors*"), *folder.glob(f"{part}/*.bin*")]]
    if missing:
        to = shlex.quote(str(folder))
        remedy = f"hf download {CONSISID_HUB} --local-dir {to}, or modelscope download --model {ON_MODELSCOPE} --local_dir {to}"
        raise UserError(f"{folder}: ConsisID lacks {', '.join(missing)}; fetch them with: {remedy}")


def load_face_reader(folder: Path, device: torch.device, dtype: torch.dtype) -> Callable[[Image.Image], FaceFeatures | None]:
    """Load the models of `folder`/face_encoder; what is returned reads the largest face of a photo, None where there is none.

    Raises `UserError` for packages that are missing, and for files that are more than data.
    """
    if missing := [name for name in PACKAGES if not find_spec(name)]:
        raise UserError(f"ConsisID's faces: found no package {', '.join(missing)}; run bash scripts/setup.sh neighbours")
    for name in FACE_PICKLES:
        check_whole(folder / "face_encoder" / name)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):  # advice on other packages; a missing CUDA provider
        try:
            from diffusers.pipelines.consisid.consisid_utils import prepare_face_models, process_face_embeddings_infer
        except (ImportError, RuntimeError, OSError) as error:  # torchvision's operators fit but one build of torch
            found = f"cannot be imported beside torch {torch.__version__} ({reason_of(error, 100)})"
            remedy = "install both from one index, as https://download.pytorch.org/whl/cpu for a machine without a GPU"
            raise UserError(f"ConsisID's faces: torchvision or what needs it {found}; {remedy}") from error
        try:  # without a parser that facexlib would download, though diffusers puts another in its place
            with patch("facexlib.utils.face_restoration_helper.init_parsing_model", lambda **_: None):
                aligner, recognizer, clip, finder, mean, std = prepare_face_models(str(folder), device, dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of four libraries
            raise UserError(f"{folder / 'face_encoder'}: cannot be loaded ({reason_of(error, 150)}); download it again") from error
    _check_names(folder / "face_encoder" / FACE_PICKLES[2], clip)

    @torch.no_grad()
    def read(photo: Image.Image) -> FaceFeatures | None:
        try:
            identity, features, seen, keypoints = process_face_embeddings_infer(
                aligner, clip, recognizer, mean, std, finder, device, dtype, np.asarray(photo), is_align_face=True
            )
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError) as error:  # neither detector finds one, or facexlib's does not
            if isinstance(error, RuntimeError) and "facexlib" not in str(error):
                raise
            return None
        return FaceFeatures(seen, Image.fromarray(aligner.cropped_faces[0][..., ::-1]), identity, list(features), keypoints)

    return read


def _check_names(file: Path, clip: torch.nn.Module) -> None:
    """Raise `UserError` if a file lacks tensors of CLIP's image encoder, which its library leaves random then."""
    content = load_tensors(file)
    content = next((content[key] for key in ("model", "module", "state_dict") if key in content), content)
    there = {name.removeprefix("module.") for name in content}
    if missing := [name for name in clip.state_dict() if f"visual.{name}" not in there and "rope" not in name]:
        raise UserError(f"{file}: found no {some(missing)}, expected EVA02-CLIP-L-14-336; download it again")


class ConsisIDPipeline(VideoPipeline):
    """T5, ConsisID's transformer and CogVideoX's VAE in diffusers' `ConsisIDPipeline`."""

    def __init__(self, config: Config, device: torch.device, cache_dir: Path | None = None):
        super().__init__(config, device, cache_dir)
        self.folder = resolve_path(config.model.path)
        require_whole(self.folder)
        known = read_settings(self.folder / SETTINGS[0], "settings of ConsisID's transformer")
        if known.get("use_learned_positional_embeddings"):
            size = tuple(8 * known.get(f"sample_{side}", 0) for side in ("height", "width"))
            frames = (known.get("sample_frames", 49) - 1) // 4 + 1
            for key, expected in (("sampling_image_size", size), ("sampling_num_frames", frames)):
                if (found := getattr(config.args, key)) != expected:
                    raise UserError(f"args.{key}: found {found}, expected {expected}: the weights know no other positions")

    def _networks(self) -> tuple:
        args, model = self.config.args, self.config.model
        cached = (args.cache, args.cache_threshold, model.sampler) if args.cache else None
        return args.dtype_name, args.memory, args.attention_kernel, args.quantize, cached, model.path

    @cached_property
    def text_encoder(self) -> "TextEncoder":
        """Reads its weights only for prompts that are not cached."""
        from concat_id.models.text_encoder import TextEncoder

        device, kind = torch.device("cpu") if self.placement.frugal else self.device, self.config.args.quantize
        folder, trust = self.folder / "text_encoder", self.config.args.trust_checkpoint
        encoder = TextEncoder(folder, MAX_TOKENS, self.dtype, device, self.cache_dir, trust)
        if kind:
            encoder.change(kind, lambda network: quantize(network, kind))
        return encoder

    @cached_property
    def transformer(self) -> "FaceAttendingCogVideoX":
        """The transformer, its kernel chosen, in 8 bits if that is asked for; with `low` its blocks visit the device."""
        from concat_id.models.consisid import load_network

        args, device = self.config.args, self.device
        network = load_network(self.folder / "transformer", self.dtype, args.trust_checkpoint)
        if args.quantize:
            quantize(network, args.quantize)
        heads, size, (height, width) = network.config.num_attention_heads, network.config.attention_head_dim, args.sampling_image_size
        tokens = args.sampling_num_frames * (height // 16) * (width // 16) + MAX_TOKENS
        network.attention_kernel, told = backbones.pick_kernel(self.config, device, heads, size, tokens)
        if told:
            print(told, flush=True)
        if self.placement.frugal:
            stream_blocks(network, device)
        return network

    @cached_property
    def autoencoder(self) -> "VideoAutoencoder":
        """CogVideoX's VAE with the scale that its folder names."""
        from concat_id.models.autoencoder import VideoAutoencoder

        section = AutoencoderConfig(str(self.folder / "vae"))
        return VideoAutoencoder.from_config(section, None, self.config.args.trust_checkpoint, self.dtype)

    @cached_property
    def library(self) -> Any:
        """Diffusers' pipeline around the networks."""
        from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline as LibraryPipeline

        from concat_id.models.consisid import load_scheduler

        scheduler = load_scheduler(self.folder / "scheduler")
        pipeline = LibraryPipeline(None, None, self.autoencoder.autoencoder, self.transformer, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def load(self) -> None:
        """Load everything but the text encoder now, so that what is wrong with the files is told once and early."""
        _ = self.library

    def embed_negative_prompt(self, embed: Callable[[list[str]], Tensor]) -> None:
        """Make ready what guidance leads away from: the empty text, unless another is given."""
        self.negative_embeds = embed([self.config.model.negative_prompt or ""]).cpu()

    def photo_preparer(self) -> Callable[[Path], FaceReference]:
        """What prepares a photograph: ConsisID's face models for the network, Concat-ID's for the verdict. Raises `UserError`."""
        faces, size = self.config.model.faces, self.config.args.sampling_image_size
        detector, parser, _ = load_face_models(faces, self.device)
        if not os.path.lexists(resolve_path(faces.detector)):
            warn(f"{faces.detector}: not there; photos are judged by another detector, ConsisID's own finds and cuts out the face")
        with memory_checked():
            read = load_face_reader(self.folder, self.device, self.dtype)

        def prepare(photo: Path) -> FaceReference:
            upright = detector.search(load_image(photo))
            with memory_checked(), warnings.catch_warnings(action="ignore"):  # of what insightface calls
                face = read(upright.photo)
            if face is None:
                raise UserError(f"{photo}: found no face, expected one person's; take a photo that shows it larger and from the front")
            judged = prepare_found(upright, size, detector, parser)
            names = "antelopev2, retinaface_resnet50", "bisenet"
            return FaceReference(face.seen, face.crop, *names, judged.verdict, judged.face, features=face)

        return prepare

    def encode_people(self, references: Sequence[FaceReference]) -> FaceFeatures:
        """The face of the one person."""
        return references[0].features

    @torch.no_grad()
    def sample(
        self,
        prompt_embeds: Tensor,
        people: FaceFeatures,
        seed: int,
        on_step: Callable[[int], None] = lambda step: None,
        on_estimate: Callable[[int, Tensor], None] = lambda step, estimate: None,
        ref_scales: Sequence[float] | None = None,
    ) -> Tensor:
        """Denoise to latents (1, T, C, H, W), float32, by numbers drawn on the CPU; as `VideoPipeline.sample`, without strengths."""
        args, sampler, cache, device = self.config.args, self.config.model.sampler, self.step_cache, self.device
        reached: list[Callable[[], None]] = []

        def follow(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            reached.append(self.placement.mark())
            if step:
                reached[step - 1]()
                on_step(step - 1)
            on_estimate(step, pipeline.scheduler.estimate)
            if cache:
                cache.step = step + 1
            return {}

        texts = (each.to(device, self.dtype) for each in (prompt_embeds, self.negative_embeds))
        options = dict(zip(("prompt_embeds", "negative_prompt_embeds"), texts, strict=True))
        options |= dict(zip(("height", "width"), args.sampling_image_size, strict=True))
        backend = KERNELS[self.transformer.attention_kernel]
        with self.placement.on_device(self.transformer), self.placement.on_device(self.autoencoder):
            self.transformer.look_at(people.identity, people.features, device)
            if cache:
                cache.begin()
            with cache.branch("both") if cache else nullcontext(), nullcontext() if backend is None else sdpa_kernel(backend):
                latents = self.library(
                    people.seen, num_frames=4 * (args.sampling_num_frames - 1) + 1, num_inference_steps=sampler.num_inference_steps,
                    guidance_scale=sampler.guidance_scale, use_dynamic_cfg=sampler.guidance == "dynamic", kps_cond=people.keypoints,
                    generator=torch.Generator().manual_seed(seed), output_type="latent", callback_on_step_end=follow, **options,
                ).frames.float()  # fmt: skip
        if not torch.isfinite(latents).all():
            raise UserError(f"the model gave NaN or infinite latents; check the weights, {finer(self.dtype)}")
        on_step(len(reached) - 1)
        return latents


Pipeline = ConsisIDPipeline  # as `pipeline.make_pipeline` asks for it
