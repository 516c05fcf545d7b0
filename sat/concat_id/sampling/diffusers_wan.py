"""Concat-ID on Wan2.1 as a diffusers pipeline: WanPipeline that also takes reference images.

This file is copied into converted folders as pipeline.py and must not import anything of the project:

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    video = pipe(prompt, reference_images=[Image.open("reference_1.png")]).frames[0]
"""

import functools
import inspect
import itertools
import json
import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

OLDEST = (0, 35)  # of diffusers; earlier ones have other rotary tables
NETWORK_FILE = "wan_network.py"  # beside the transformer's weights
SCHEDULER = diffusers.FlowMatchEulerDiscreteScheduler
NEGATIVE_PROMPT = "..."  # As released.

if tuple(map(int, diffusers.__version__.split(".")[:2])) < OLDEST:
    expected = ".".join(map(str, OLDEST))
    raise ImportError(f"diffusers: found {diffusers.__version__}, expected {expected} or newer; run pip install --upgrade diffusers")
globals().pop("ConcatIDPipeline", None)  # diffusers runs pipeline.py of every local folder in one module, and looks there for one class


class EvenFlowScheduler(SCHEDULER):
    """Euler's method over noise levels that are evenly spaced from 1 to 0 before the shift, as Concat-ID was sampled."""

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, **options: Any) -> None:
        """Choose the noise levels; diffusers' own end at another and are shifted twice."""
        if sigmas is None:
            sigmas = np.linspace(1, 0, num_inference_steps + 1)[:-1]
        super().set_timesteps(device=device, sigmas=sigmas, **options)


class ConcatIDWanPipeline(diffusers.WanPipeline):
    """Generate videos of the people on `reference_images`, which are appended to the video's latents as further frames.

    References should show one head each, upright and cut out, as the project's scripts write them (reference_1.png); other images
    work, but the model has seen none. The released weights were trained with one.
    """

    _source = Path(__file__).read_bytes()  # which the next folder's overwrites: diffusers runs a copy

    @functools.wraps(diffusers.WanPipeline.__init__)  # diffusers asks for its names and types
    def __init__(self, *parts, **named_parts):
        super().__init__(*parts, **named_parts)
        if type(self.scheduler) is SCHEDULER:
            self.scheduler = EvenFlowScheduler.from_config(self.scheduler.config)

    @torch.no_grad()
    def __call__(
        self, prompt=None, *, reference_images: Sequence[Image.Image | Sequence[Image.Image]] | None = None,
        ref_guidance_scale: float | Sequence[float] = 1.0, **options,
    ):  # fmt: skip
        """Call WanPipeline with references; `options` are all of its options.

        `reference_images` lists the people of all prompts; or, with several prompts, one such list for each. The unconditional branch
        sees the same references and "..." for a text, unless `negative_prompt` or `negative_prompt_embeds` is given.
        A `ref_guidance_scale` above 1, of all people or of each, makes references stronger (Brooks et al. 2023, eq. 3). Each distinct value
        other than 1 is one more video in the transformer's batch.
        Raises ValueError for lists of different lengths, references that are not images, no prompt, and sizes the transformer cannot have.
        """
        if (prompt is None) == (options.get("prompt_embeds") is None):
            raise ValueError("give prompt or prompt_embeds, and not both")
        if options.get("negative_prompt") is None and options.get("negative_prompt_embeds") is None:
            options["negative_prompt"] = NEGATIVE_PROMPT if prompt is None or isinstance(prompt, str) else [NEGATIVE_PROMPT] * len(prompt)
        defaults = inspect.signature(diffusers.WanPipeline.__call__).parameters
        size = tuple(options.get(side) or defaults[side].default for side in ("height", "width"))
        count = len(options["prompt_embeds"]) if prompt is None else 1 if isinstance(prompt, str) else len(prompt)
        ref_latents = self.encode_references(reference_images, count, size)
        if ref_latents is not None:
            ref_latents = ref_latents.repeat_interleave(options.get("num_videos_per_prompt") or 1, dim=0)
        negative, guidance = None, options.get("guidance_scale", defaults["guidance_scale"].default)
        if guidance <= 1 and ref_latents is not None and self._weaker(ref_latents, ref_guidance_scale):
            text, names = options.get("negative_prompt"), ("num_videos_per_prompt", "max_sequence_length")
            encoding = {name: options.get(name, defaults[name].default) for name in names}
            encoding |= {"prompt_embeds": options.get("negative_prompt_embeds"), "do_classifier_free_guidance": False}
            negative, _ = self.encode_prompt([text] * count if isinstance(text, str) else text, **encoding)
        with self._references(ref_latents, ref_guidance_scale, guidance, negative):
            return super().__call__(prompt, **options)

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
        """Encode images, each alone as one frame: (B, C, R, H, W), normalised; None without images. `size` is (height, width)."""
        rows = self._rows(images, batch_size)
        if not rows:
            return None
        config, device = self.vae.config, self._execution_device
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        encoded = {}
        for image in (image for row in rows for image in row):
            if id(image) not in encoded:
                pixels = self._pixels(image, size).to(device, self.vae.dtype)
                encoded[id(image)] = (self.vae.encode(pixels).latent_dist.mode().float() - mean) / std  # (1, C, 1, H, W)
        return torch.cat([torch.cat([encoded[id(image)] for image in row], dim=2) for row in rows])

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
        count = ref_latents.shape[2]
        each = [ref_guidance_scale] * count if isinstance(ref_guidance_scale, numbers.Real) else list(ref_guidance_scale)
        if len(each) != count:
            raise ValueError(f"ref_guidance_scale: found {len(each)} values for {count} reference images, expected one, or one a person")
        hidden = {scale: [own != 1 and own >= scale for own in each] for scale in sorted({*each} - {1})}
        masks = {scale: torch.tensor(people, device=ref_latents.device).view(-1, 1, 1) for scale, people in hidden.items()}
        return {scale: ref_latents.masked_fill(mask, 0) for scale, mask in masks.items()}

    @contextmanager
    def _references(
        self, ref_latents: Tensor | None, ref_guidance_scale: float | Sequence[float], guidance_scale: float, negative_embeds: Tensor | None
    ) -> Iterator[None]:
        """Inside the block, every call of the transformer is given the references.

        It is called for the conditional and the unconditional branch in turn. The latter carries what guidance by references needs in its
        batch: [without people, ..., unconditional]. Where the text does not guide, or no more since a callback, [..., unconditional,
        conditional] is one call with `negative_embeds`, which are None where it does at first.
        """
        if ref_latents is None:
            yield
            return
        batch, turns = len(ref_latents), itertools.count()
        weaker = self._weaker(ref_latents, ref_guidance_scale)

        def is_alone() -> bool:
            return guidance_scale <= 1 or not self.do_classifier_free_guidance

        def give(module: Any, args: tuple, options: dict) -> tuple[tuple, dict]:
            nonlocal negative_embeds
            alone = is_alone()
            is_conditional = alone or next(turns) % 2 == 0
            if not is_conditional:
                negative_embeds = options["encoder_hidden_states"]
            refs = [ref_latents]
            if weaker and (alone or not is_conditional):
                refs = [*weaker.values()] + [ref_latents] * (1 + alone)
                for name in ("hidden_states", "timestep", "encoder_hidden_states"):
                    own = options[name]
                    of_added = negative_embeds.to(own) if name == "encoder_hidden_states" else own
                    options[name] = torch.cat([of_added] * (len(refs) - 1) + [own])
            return args, options | {"ref_latents": torch.cat(refs).to(options["hidden_states"])}

        def guide(module: Any, args: tuple, options: dict, output: tuple) -> tuple:
            parts = output[0].float().split(batch)
            if len(parts) == 1:
                return output
            term = sum((scale - 1) * (more - less) for scale, less, more in zip(weaker, parts, parts[1:], strict=False))
            if not is_alone():  # of u, which becomes u + g (c - u): what is added to it counts 1 - g times
                term = term / (1 - guidance_scale)
            return (parts[-1] + term,)

        give_hook = self.transformer.register_forward_pre_hook(give, with_kwargs=True)
        with give_hook, self.transformer.register_forward_hook(guide, with_kwargs=True):
            yield

    def save_pretrained(self, save_directory: str | Path, *, push_to_hub: bool = False, **options: Any) -> None:
        """Save as diffusers does, with this file and the network's, so that the folder can be loaded without the project."""
        if push_to_hub:
            raise ValueError("save_pretrained: found push_to_hub, which uploads a folder without code; call pipe.push_to_hub(repo_id)")
        if self.transformer is not None and any("base_layer" in name for name, _ in self.transformer.named_modules()):
            raise ValueError("save_pretrained: found low-rank weights; call fuse_lora() and unload_lora_weights(), or upload the folder")
        super().save_pretrained(save_directory, **options)
        folder = Path(save_directory)
        network = getattr(self.transformer, "_orig_mod", self.transformer)  # of a compiled one
        (folder / "pipeline.py").write_bytes(self._source)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if source := getattr(network, "_source", None):  # which Wan's own has not
            (folder / "transformer" / NETWORK_FILE).write_bytes(source)
            index["transformer"] = [Path(NETWORK_FILE).stem, type(network).__name__]
        if isinstance(self.scheduler, SCHEDULER):  # also an EvenFlowScheduler of another folder's file
            index["scheduler"] = ["diffusers", SCHEDULER.__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
