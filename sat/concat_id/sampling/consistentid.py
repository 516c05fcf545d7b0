"""ConsistentID: a prompt and the photo of one person in, a portrait out; Stable Diffusion 1.5 with the adapter, sampled by diffusers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from concat_id.config.schema import Config
from concat_id.distributed import sent
from concat_id.errors import UserError, finer, shortened, warn
from concat_id.face.recognition import load_arcface
from concat_id.face.reference import PreparedReference, load_face_models, prepare_found, require_parser
from concat_id.files.paths import resolve_path
from concat_id.models.consistentid.adapter import ConsistentIDAdapter, load_adapter
from concat_id.models.consistentid.base_model import ImageFeatures, decode_latents, load_base
from concat_id.models.consistentid.prompts import LENGTH, MARKER, FacialTokenizer
from concat_id.video.face_parts import FACE_CAPTION, PARSED_SIZE, PARTS, part_images, part_masks, squeezed
from concat_id.video.transforms import CLIP_SIZE, clip_pixels, fit_and_pad, load_image

COLUMNS = 2  # of the tiles that show what the model sees: the photo, and its parts


@dataclass
class PortraitReference(PreparedReference):
    """What CLIP sees of a photo and the `parts` of its face, in the order of `PARTS`, (1 + P, 3, 224, 224); its ArcFace vector (1, 512)."""

    pixels: Tensor = field(kw_only=True)
    parts: tuple[str, ...] = field(kw_only=True)
    vector: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class Person:
    """What is known of a face: features (N, C) of its photo and (P, N, C) of its `parts`, and its ArcFace vector (1, 512)."""

    vector: Tensor
    features: Tensor
    part_features: Tensor
    parts: tuple[str, ...]


def _tiles(images: Sequence[Image.Image], size: Sequence[int]) -> Image.Image:
    """Put a photo and its parts into one image of `size` (height, width)."""
    height, width = size[0] // -(-(1 + len(PARTS)) // COLUMNS), size[1] // COLUMNS
    whole = Image.new("RGB", (size[1], size[0]))
    for number, image in enumerate(images):
        whole.paste(fit_and_pad(image, (height, width)), (number % COLUMNS * width, number // COLUMNS * height))
    return whole


class Pipeline:
    """The base model with the adapter in it, and CLIP's image encoder; a run asks of it what it asks of a `VideoPipeline`."""

    sharing = step_cache = None

    def __init__(
        self, config: Config, device: torch.device, cache_dir: Path | None = None,
        loaded: tuple[Any, ConsistentIDAdapter, ImageFeatures] | None = None,
    ):  # fmt: skip
        """Take networks that are `loaded` and placed, or load them when needed. CLIP takes no time for prompts: `cache_dir` stays empty."""
        self.config, self.device, self.dtype = config, device, getattr(torch, config.args.dtype_name)
        self._loaded = loaded

    def load(self) -> tuple[Any, ConsistentIDAdapter, ImageFeatures]:
        """Load base, adapter and image encoder, once. Raises `UserError` for files that are not theirs."""
        if self._loaded is None:
            model, args = self.config.model, self.config.args
            base = load_base(model, self.dtype)
            adapter = load_adapter(base.unet, resolve_path(args.load), self.dtype, args.trust_checkpoint).requires_grad_(False).eval()
            adapter.set_strength(model.sampler.ref_guidance_scale[0])
            features = ImageFeatures(resolve_path(model.image_encoder), self.dtype)
            features.check(adapter.sizes.features, args.load)
            self._place(base, adapter, features)
            self._loaded = base, adapter, features
        return self._loaded

    def _place(self, base: Any, adapter: ConsistentIDAdapter, features: ImageFeatures) -> None:
        """Put everything on the device, or with `low` each network of the base only while it computes."""
        adapter.image_proj.to(self.device)
        adapter.FacialEncoder.to(self.device)
        features.network.to(self.device)
        if self.config.args.memory == "low" and self.device.type != "cpu":
            base.enable_model_cpu_offload(device=self.device)
        else:
            base.to(self.device)
        if self.config.args.tiled_decoding or self.config.args.memory == "low":
            base.vae.enable_tiling()

    def placed(self) -> dict[str, Any]:
        """How the networks run, which changes results by rounding, and by tiles where portraits are larger than one."""
        args = self.config.args
        tiled = args.tiled_decoding or args.memory == "low"
        return {"network": "diffusers", "memory": args.memory, "tiled_decoding": tiled, "threads": torch.get_num_threads()}

    def encode_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Leave prompts as they are: what they become depends on the photo."""
        return list(prompts)

    def notes_on(self, prompt: str) -> list[str]:
        """Say what the text encoder does not see of a prompt, if all parts of a face are there."""
        tokenizer = FacialTokenizer(self.load()[0].tokenizer)
        made = tokenizer.for_sampling(prompt, FACE_CAPTION, PARTS)
        tokens = tokenizer.tokenizer(made.text.replace(MARKER, ""), add_special_tokens=False, verbose=False)["input_ids"]
        cut = tokenizer.tokenizer.decode(tokens[LENGTH - 2 :])
        told = f"the prompt is longer than {LENGTH} tokens, some of which are of the face; this end of it is cut off"
        return [f"{told}: {shortened(cut)!r}"] if cut else []

    def photo_preparer(self) -> Callable[[Path], PortraitReference]:
        """What prepares a photograph. Raises `UserError` for face models that are not there, or know no parts or other vectors."""
        faces, size, sampler = self.config.model.faces, self.config.args.sampling_image_size, self.config.model.sampler
        if sampler.start_merge_step > sampler.num_inference_steps - 2:
            told = f"model.sampler.start_merge_step is {sampler.start_merge_step}, of {sampler.num_inference_steps} steps"
            warn(f"the face's parts never enter the text: {told}; set one of them")
        require_parser(faces)
        detector, parser, notices = load_face_models(faces, self.device)
        warn(*notices)
        recognizer = load_arcface(faces.recognizer, self.device)

        def prepare(path: Path) -> PortraitReference:
            found = detector.search(load_image(path))
            if (face := found.largest) is None:
                raise UserError(f"{path}: found no face, expected a photo of one person; take one with a clear, large face")
            prepared, photo = prepare_found(found, size, detector, parser), found.photo
            labels = parser.parse(squeezed(photo), face.keypoints * (PARSED_SIZE / np.array(photo.size)))
            masks = part_masks(labels)
            images = [photo, *part_images(photo, masks)]
            vector = torch.from_numpy(recognizer.embed(photo, face))[None]
            return PortraitReference(
                _tiles(images, size), prepared.crop, prepared.detector, prepared.parser, prepared.verdict, prepared.face,
                pixels=torch.stack(list(map(clip_pixels, images))), parts=tuple(masks), vector=vector,
            )  # fmt: skip

        return prepare

    @torch.inference_mode()
    def encode_people(self, references: Sequence[PortraitReference]) -> Person:
        """See the one photo, and the parts of its face."""
        reference, features = references[0], self.load()[2]
        hidden = features(reference.pixels)
        return Person(reference.vector.to(self.device, self.dtype), hidden[0], hidden[1:], reference.parts)

    def sample(
        self, prompt: str, person: Person, seed: int, on_step: Callable[[int], None] = lambda step: None,
        on_estimate: Callable[[int, Tensor], None] = lambda step, estimate: None, ref_scales: Sequence[float] | None = None,
    ) -> Tensor:  # fmt: skip
        """Denoise from seeded noise to latents (1, 4, h, w), float32; the noise is drawn on the CPU and equal on every device."""
        height, width = self.config.args.sampling_image_size
        noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
        return self.denoise(prompt, person, noise, on_step)

    @torch.inference_mode()
    def denoise(self, prompt: str, person: Person, noise: Tensor, on_step: Callable[[int], None] = lambda step: None) -> Tensor:
        """Denoise noise (1, 4, h, w): under the plain text up to `start_merge_step`, from there under that with the face's parts in it."""
        base, sampler = self.load()[0], self.config.model.sampler
        plain, fused, negative = self._texts(prompt, person)
        identity = self._identity(person)
        guided = sampler.guidance_scale > 1

        def follow(_: Any, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            on_step(step)
            if step < sampler.start_merge_step:
                return {}
            return {"prompt_embeds": torch.cat([negative, fused]) if guided else fused}

        latents = base(
            prompt_embeds=plain, negative_prompt_embeds=negative if guided else None, guidance_scale=sampler.guidance_scale,
            num_inference_steps=sampler.num_inference_steps, latents=sent(noise, self.device).to(self.dtype), output_type="latent",
            height=8 * noise.shape[2], width=8 * noise.shape[3], callback_on_step_end=follow,
            cross_attention_kwargs={"identity": identity if guided else identity[1:]},
        ).images  # fmt: skip
        if not torch.isfinite(latents).all():
            raise UserError(f"the model gave NaN or infinite latents; check that the weights belong to it, {finer(self.dtype)}")
        return latents.float()

    def _texts(self, prompt: str, person: Person) -> tuple[Tensor, Tensor, Tensor]:
        """The text (1, 77, D) as it is, with the face's parts in it, and guidance's other one, in whose words there is nothing."""
        (base, adapter, _), model = self.load(), self.config.model
        tokenizer = FacialTokenizer(base.tokenizer)
        made = tokenizer.for_sampling(prompt, FACE_CAPTION, person.parts)
        tokens = [tokenizer.plain(made.text), made.tokens, tokenizer.plain(model.negative_prompt or "")]
        plain, marked, negative = base.text_encoder(torch.tensor(tokens, device=self.device))[0].split(1)
        order = made.order(person.parts, model.pairing)
        nothing = self._nothing.expand(max(1, len(order)), -1, -1)
        fused = adapter.FacialEncoder(marked, person.part_features[order][None], [made.positions[: len(order)]])
        # As released: parts that are not seen are put into the negative prompt's words at the places of the prompt's.
        return plain, fused, adapter.FacialEncoder(negative, nothing[None], [made.positions[: len(order)]])

    def _identity(self, person: Person) -> Tensor:
        """Identity tokens (2, 4, D): of nobody, for guidance's other branch, and of the person."""
        adapter = self.load()[1]
        vectors = torch.cat([torch.zeros_like(person.vector), person.vector])
        return adapter.image_proj(vectors, torch.cat([self._nothing, person.features[None]]))

    @cached_property
    def _nothing(self) -> Tensor:
        """Features (1, N, C) of an image of zeros, which stands for no photo and no part."""
        return self.load()[2](torch.zeros(1, 3, CLIP_SIZE, CLIP_SIZE))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Turn latents (1, 4, h, w) into one uint8 frame (1, H, W, 3)."""
        return decode_latents(self.load()[0], sent(latents, self.device))
