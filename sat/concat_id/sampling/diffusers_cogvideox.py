"""Concat-ID as a diffusers pipeline: CogVideoXPipeline that also takes reference images.

This file is copied into converted folders as pipeline.py and must not import anything of the project:

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    video = pipe(prompt, reference_images=[Image.open("reference_1.png")]).frames[0]
"""

import functools
import inspect
import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from PIL import Image, ImageOps
from torch import Tensor

LAST_EPS = 1e-6  # of the transformer's last norm; config.json has one norm_eps, the 1e-5 of all the others
OLDEST = (0, 31)  # of diffusers; 0.30 cannot decode a single frame

if tuple(map(int, diffusers.__version__.split(".")[:2])) < OLDEST:
    expected = ".".join(map(str, OLDEST))
    raise ImportError(f"diffusers: found {diffusers.__version__}, expected {expected} or newer; run pip install --upgrade diffusers")
globals().pop("ConcatIDWanPipeline", None)  # diffusers runs pipeline.py of every local folder in one module, and looks there for one class


class ConcatIDPipeline(diffusers.CogVideoXPipeline):
    """Generate videos of the people on `reference_images`, which are appended to the video's latents as further frames.

    References should show one head each, upright and cut out, as sat/sample_video.py writes them (reference_1.png); other
    images work, but the model has seen none.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _num_refs = 0
    _source = Path(__file__).read_bytes()  # which the next folder's overwrites: diffusers runs a copy

    @functools.wraps(diffusers.CogVideoXPipeline.__init__)  # diffusers asks for its names and types
    def __init__(self, *parts, **named_parts):
        super().__init__(*parts, **named_parts)
        if (transformer := self.transformer) is not None:
            transformer.norm_out.norm.eps = LAST_EPS
            transformer._repeated_blocks = transformer._repeated_blocks or ["CogVideoXBlock"]  # for compile_repeated_blocks

    @torch.no_grad()
    def __call__(
        self, prompt=None, *, reference_images: Sequence[Image.Image | Sequence[Image.Image]] | None = None,
        ref_guidance_scale: float | Sequence[float] = 1.0, **options,
    ):  # fmt: skip
        """Call CogVideoXPipeline with references; `options` are all of its options.

        `reference_images` lists the people of all prompts, left to right; or, with several prompts, one such list for each.
        The unconditional branch has zero text embeddings, as Concat-ID was trained with, unless `negative_prompt` or
        `negative_prompt_embeds` is given; it sees the same references.
        A `ref_guidance_scale` above 1, of all people or of each, makes references stronger (Brooks et al. 2023, eq. 3). Each distinct value
        other than 1 is one more video in the transformer's batch.
        Raises ValueError for lists of different lengths, references that are not images, no prompt, and sizes the transformer cannot have.
        """
        embeds = options.get("prompt_embeds")
        encoding = {"device": self._execution_device, "do_classifier_free_guidance": False}
        encoding["max_sequence_length"] = options.setdefault("max_sequence_length", self.transformer.config.max_text_seq_length)
        if (prompt is None) == (embeds is None):
            raise ValueError("give prompt or prompt_embeds, and not both")
        if embeds is None:
            embeds, _ = self.encode_prompt(prompt, **encoding)
        if options.get("negative_prompt_embeds") is None:
            negative = options.pop("negative_prompt", None)
            rows = [negative] * len(embeds) if isinstance(negative, str) else negative
            options["negative_prompt_embeds"] = torch.zeros_like(embeds) if rows is None else self.encode_prompt(rows, **encoding)[0]
        options["prompt_embeds"] = embeds
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            options[name] = options[name].to(self.transformer.dtype)  # the text encoder may have another

        config, factor = self.transformer.config, self.vae_scale_factor_spatial
        own = {"height": config.sample_height * factor, "width": config.sample_width * factor, "num_frames": config.sample_frames}
        options |= {name: options.get(name) or value for name, value in own.items()}  # which earlier versions ask for
        size, multiple = (options["height"], options["width"]), factor * config.patch_size
        if any(side % multiple for side in size):
            raise ValueError(f"height and width: found {size[0]}x{size[1]}, expected both divisible by {multiple}")
        if (options["num_frames"] - 1) % (rate := self.vae_scale_factor_temporal):
            raise ValueError(f"num_frames: found {options['num_frames']}, expected 1 more than a multiple of {rate}")
        ref_latents = self.encode_references(reference_images, embeds.shape[0], size)
        guidance = options.get("guidance_scale", inspect.signature(super().__call__).parameters["guidance_scale"].default)
        with self._references(ref_latents, ref_guidance_scale, None if guidance > 1 else options["negative_prompt_embeds"]):
            return super().__call__(**options)

    @staticmethod
    def _rows(images: Any, batch_size: int) -> list[Sequence[Image.Image]]:
        """List the images of each prompt; [] without any. Raises ValueError for anything else, and for lists of different lengths."""
        images = [images] if isinstance(images, Image.Image) else images
        if images is None or isinstance(images, list | tuple) and not images:
            return []
        is_list_each = isinstance(images, list | tuple) and isinstance(images[0], list | tuple)
        rows = list(images) if is_list_each else [images] * batch_size
        for row in rows:
            kinds = {type(image).__name__ for image in row} if isinstance(row, list | tuple) else None
            if not kinds or not all(isinstance(image, Image.Image) for image in row):
                found = type(row).__name__ if kinds is None else f"a list of {', '.join(sorted(kinds)) or 'nothing'}"
                raise ValueError(f"reference_images: found {found}, expected PIL images (Image.open), or one list of them for each prompt")
        if len(rows) != batch_size or len({len(row) for row in rows}) != 1:
            found = f"{len(rows)} lists of {[len(row) for row in rows]} images for {batch_size} prompts"
            raise ValueError(f"reference_images: found {found}, expected one list a prompt, all equally long")
        return rows

    def encode_references(self, images: Any, batch_size: int, size: tuple[int, int]) -> Tensor | None:
        """Encode images, each alone as one frame: (B, R, C, H, W), scaled; None without images. `size` is (height, width)."""
        rows = self._rows(images, batch_size)
        if not rows:
            return None
        encoded = {}
        for image in (image for row in rows for image in row):
            if id(image) not in encoded:
                pixels = self._pixels(image, size).to(self._execution_device, self.vae.dtype)
                moments = self.vae.encode(pixels).latent_dist
                encoded[id(image)] = moments.mode().transpose(1, 2) * self.vae.config.scaling_factor  # (1, 1, C, H, W)
        return torch.cat([torch.cat([encoded[id(image)] for image in row], dim=1) for row in rows])

    @staticmethod
    def _pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
        """Fit an image, upright, into `size` (height, width) on black; (1, 3, 1, H, W) in [-1, 1]."""
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # whole numbers of 16 bits
            image = Image.fromarray(np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
        height, width = size
        scale = min(width / image.width, height / image.height)
        fitted = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image.convert("RGB").resize(fitted, Image.Resampling.BICUBIC), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
        return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1

    @staticmethod
    def _weaker(ref_latents: Tensor, ref_guidance_scale: float | Sequence[float]) -> dict[float, Tensor]:
        """The scales other than 1, rising, and for each the references without those who have it or a larger one: zeros in their place."""
        count = ref_latents.shape[1]
        each = [ref_guidance_scale] * count if isinstance(ref_guidance_scale, numbers.Real) else list(ref_guidance_scale)
        if len(each) != count:
            raise ValueError(f"ref_guidance_scale: found {len(each)} values for {count} reference images, expected one, or one a person")
        hidden = {scale: [own != 1 and own >= scale for own in each] for scale in sorted({*each} - {1})}
        masks = {scale: torch.tensor(people, device=ref_latents.device).view(-1, 1, 1, 1) for scale, people in hidden.items()}
        return {scale: ref_latents.masked_fill(mask, 0) for scale, mask in masks.items()}

    @contextmanager
    def _references(
        self, ref_latents: Tensor | None, ref_guidance_scale: float | Sequence[float], negative_embeds: Tensor | None
    ) -> Iterator[None]:
        """Inside the block, every call of the transformer has the references appended (B, T+R, ...) and their outputs dropped.

        Branches that guidance by references needs go before the batch, so that it is [without people, ..., unconditional, conditional]. The
        unconditional one is theirs where the text does not guide, with `negative_embeds`, which are None where it does.
        """
        if ref_latents is None:
            yield
            return
        batch, num_refs = ref_latents.shape[:2]
        weaker = self._weaker(ref_latents, ref_guidance_scale)

        added = [*weaker.values()] + ([ref_latents] if weaker and negative_embeds is not None else [])

        def append(module, args, options):
            latents, text, timestep = (options[name] for name in ("hidden_states", "encoder_hidden_states", "timestep"))
            repeats, count = len(latents) // batch, len(added)
            refs = torch.cat([*added, *[ref_latents] * repeats]).to(latents)
            if added:
                latents, timestep = (torch.cat([tensor[:batch]] * count + [tensor]) for tensor in (latents, timestep))
                text = torch.cat([text[:batch] if negative_embeds is None else negative_embeds.to(text)] * count + [text])
            latents = torch.cat([latents, refs], dim=1)
            return args, options | {"hidden_states": latents, "encoder_hidden_states": text, "timestep": timestep}

        def drop(module, args, options, output):
            velocity = output[0][:, :-num_refs]
            if not added:
                return (velocity,)
            parts = velocity.float().split(batch)
            term = sum((scale - 1) * (more - less) for scale, less, more in zip(weaker, parts, parts[1:], strict=False))
            return (torch.cat([part + term for part in parts[len(added) :]]),)

        self._num_refs = num_refs
        append_hook = self.transformer.register_forward_pre_hook(append, with_kwargs=True)
        try:
            with append_hook, self.transformer.register_forward_hook(drop, with_kwargs=True):
                yield
        finally:
            self._num_refs = 0

    def _prepare_rotary_positional_embeddings(self, height: int, width: int, num_frames: int, device: torch.device):
        """Cosines and sines (S, head size): whole numbers along the grid at every size, reference i of T latent frames at frame T+i.

        CogVideoXPipeline stretches the grid of smaller videos to that of the largest; the model was trained and is sampled without.
        """
        config = self.transformer.config
        side = self.vae_scale_factor_spatial * config.patch_size
        grid = height // side, width // side
        table = get_3d_rotary_pos_embed(config.attention_head_dim, ((0, 0), grid), grid, num_frames + self._num_refs)
        return tuple(part.to(device) for part in table)

    def save_pretrained(self, save_directory, *, push_to_hub: bool = False, **options) -> None:
        """Save as diffusers does, with this file beside it as pipeline.py, so that the folder can be loaded without the project."""
        if push_to_hub:
            raise ValueError("save_pretrained: found push_to_hub, which uploads a folder without code; call pipe.push_to_hub(repo_id)")
        if self.transformer is not None and any("base_layer" in name for name, _ in self.transformer.named_modules()):
            raise ValueError("save_pretrained: found low-rank weights; call fuse_lora() and unload_lora_weights(), or upload the folder")
        super().save_pretrained(save_directory, **options)
        (Path(save_directory) / "pipeline.py").write_bytes(self._source)
