"""A prompt and prepared references in, pixels out: what all backbones share, and how each of them denoises."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from concat_id.config.neighbours import NEIGHBOURS
from concat_id.config.schema import Config
from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.flow import FLOW_SAMPLERS, FlowSchedule
from concat_id.diffusion.guidance import GuidanceScale, guidance_scale
from concat_id.diffusion.samplers import SAMPLERS
from concat_id.diffusion.schedule import zero_snr_schedule
from concat_id.distributed import say, sent
from concat_id.errors import UserError, finer, shortened, warn
from concat_id.face.reference import PreparedReference, load_face_models, prepare_reference
from concat_id.models import backbones
from concat_id.models.acceleration import StepCache, share_tokens, share_unevenly
from concat_id.models.operations import count_tokens
from concat_id.sampling.magnitudes import magnitude_ratios
from concat_id.sampling.memory import Placement
from concat_id.sampling.sharing import Sharing
from concat_id.video.transforms import to_frames, to_tensor

if TYPE_CHECKING:
    from concat_id.models.autoencoder import VideoAutoencoder
    from concat_id.models.text_encoder import PromptEncoder
    from concat_id.models.wan.autoencoder import WanAutoencoder

REMEMBERED = 64  # references whose latents are kept


class VideoPipeline:
    """Text encoder, transformer and autoencoder of one configuration; each is loaded when first needed.

    A backbone says by which schedule and `samplers` it denoises.
    """

    samplers: Mapping[str, Callable[..., Tensor]]
    make_schedule: Callable[[int, float], Any]
    is_compiled = False

    def __init__(self, config: Config, device: torch.device, cache_dir: Path | None = None, sharing: Sharing | None = None):
        self.config, self.device = config, device
        self.placement = Placement(device, config.args.memory)
        self.dtype: torch.dtype = getattr(torch, config.args.dtype_name)
        self.cache_dir = cache_dir
        self.sharing = sharing
        self._ref_latents: dict[tuple, Tensor] = {}
        self.negative_embeds: Tensor | None = None  # (1, L, D) of guidance's other branch; zeros if none

    def adopt(self, other: "VideoPipeline") -> None:
        """Take over what another pipeline of weights with the same digests has loaded, if its networks are the same by configuration."""
        if self._networks() == other._networks():
            loaded = ("placement", "_ref_latents", "text_encoder", "transformer", "autoencoder", "step_cache", "is_compiled")
            self.__dict__.update({name: other.__dict__[name] for name in loaded if name in other.__dict__})
            if "text_encoder" in self.__dict__:
                self.text_encoder.keep_in(self.cache_dir)

    def _networks(self) -> tuple:
        args, model = self.config.args, self.config.model
        placed = args.load, args.dtype_name, args.memory, args.compile, args.attention_kernel, args.network, args.quantize
        size = args.sampling_num_frames, args.sampling_image_size
        cached = (args.cache, args.cache_threshold, model.sampler, size) if args.cache else None
        return *placed, cached, model.transformer, model.text_encoder, model.autoencoder

    def guidance(self) -> GuidanceScale:
        """The guidance scale of every step."""
        sampler = self.config.model.sampler
        return guidance_scale(sampler.guidance, sampler.guidance_scale, sampler.num_inference_steps)

    @cached_property
    def text_encoder(self) -> "PromptEncoder":
        """Reads its weights only for prompts that are not cached. Frugal placement leaves it on the CPU: it runs once a prompt."""
        device = torch.device("cpu") if self.placement.frugal else self.device
        return backbones.make_text_encoder(self.config, device, self.cache_dir)

    @cached_property
    def transformer(self) -> nn.Module:
        """The diffusion transformer with the weights of `args.load`."""
        config, device = self.config, self.device
        transformer = backbones.load_transformer(config, config.args.load).requires_grad_(False).eval()
        notes = []
        if config.args.quantize and not config.args.gguf:
            notes.append(backbones.quantize_transformer(config, transformer, device))
        notes.append(backbones.choose_kernel(config, transformer, device))
        shares_tokens = self.sharing is not None and self.sharing.way == "video"
        if not self.placement.frugal and not (shares_tokens and config.args.compile is None):  # which has not been seen to work
            steps = config.model.sampler.num_inference_steps * config.args.batch_size
            notes.append(backbones.compile_blocks(config, transformer, device, steps))
            self.is_compiled = notes[-1] is not None
        say(*filter(None, notes))
        if shares_tokens:
            share_tokens(transformer.network, device, self.sharing.size)
        return self.placement.streamed(transformer)

    @cached_property
    def step_cache(self) -> StepCache | None:
        """What skips layers in steps that change little, if that is asked for."""
        args, steps = self.config.args, self.config.model.sampler.num_inference_steps
        if not args.cache:
            return None
        folder = self.cache_dir and self.cache_dir.parent
        ratios = magnitude_ratios(self.config, self._measure_magnitudes, folder, self.sharing) if args.cache == "mag" else None
        network = getattr(self.transformer, "network", self.transformer)  # of diffusers
        return StepCache(network, args.cache, args.cache_threshold, steps, ratios)

    @cached_property
    def autoencoder(self) -> "VideoAutoencoder | WanAutoencoder":
        """The video VAE."""
        return backbones.load_autoencoder(self.config)

    def load(self) -> None:
        """Load transformer and autoencoder now, so that what is wrong with their files is told once and early."""
        if self.sharing:
            self.sharing.together("load", lambda: self.transformer)
        _ = self.transformer, self.autoencoder

    def placed(self) -> dict[str, Any]:
        """How the networks run, which changes results by rounding, and by tiles where videos are larger than one."""
        args, sharing = self.config.args, self.sharing
        shared = {"parallel": sharing.way, "processes": sharing.size} if sharing else {}
        kernel, tiled = self.transformer.attention_kernel, self.placement.frugal or args.tiled_decoding
        placed = {"network": args.network, "attention_kernel": kernel, "compiled": self.is_compiled, "memory": args.memory}
        return placed | {"tiled_decoding": tiled, "threads": torch.get_num_threads()} | shared

    def follow(self) -> None:
        """Take part in the videos of another process, until it has no more."""
        self.sharing.follow({"load": lambda: self.transformer, "sample": self._sample})

    def encode_prompts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embed prompts, (1, L, D) each on the CPU, then let go of the text encoder unless everything may stay resident."""
        embeddings = [self.text_encoder.encode([prompt]).cpu() for prompt in prompts]
        self.embed_negative_prompt(self.text_encoder.encode)
        if self.placement.memory != "high":
            self.text_encoder.unload()
        return embeddings

    def notes_on(self, prompt: str) -> list[str]:
        """Say what the text encoder does not see of a prompt."""
        notes, encoder = [], self.text_encoder
        if cut := encoder.truncated_part(prompt):
            notes.append(f"the prompt is longer than {encoder.max_length} tokens; this end of it is cut off: {shortened(cut)!r}")
        if unknown := encoder.unknown_part(prompt):
            notes.append(f"out of the text encoder's vocabulary, which the video will not show: {shortened(unknown)!r}")
        return notes

    def embed_negative_prompt(self, embed: Callable[[list[str]], Tensor]) -> None:
        """Make ready what guidance leads away from."""
        if self.config.model.negative_prompt is not None:
            self.negative_embeds = embed([self.config.model.negative_prompt]).cpu()

    def photo_preparer(self) -> Callable[[Path], PreparedReference]:
        """What prepares a photograph for the model. Says what stands in for face models that are not there."""
        detector, parser, notices = load_face_models(self.config.model.faces, self.device)
        warn(*notices)
        return lambda photo: prepare_reference(photo, self.config.args.sampling_image_size, detector, parser)

    def encode_people(self, references: Sequence[PreparedReference]) -> Tensor:
        """Encode what is shown of the people: (1, R, C, H, W)."""
        return self.encode_references([reference.image for reference in references])

    @torch.inference_mode()
    def encode_references(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode prepared images, each alone as a single frame and the same image once: (1, R, C, H, W)."""
        keys = [(image.mode, image.size, hashlib.sha256(image.tobytes()).digest()) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._ref_latents}
        if new:
            with self.placement.on_device(self.autoencoder) as autoencoder:
                for key, image in new.items():
                    frame = to_tensor(image)[None, :, None].to(self.device, self.dtype)  # (1, 3, 1, H, W)
                    self._ref_latents[key] = autoencoder.encode(frame).float()
        latents = torch.cat([self._ref_latents[key] for key in keys], dim=1)
        self._ref_latents = dict(list(self._ref_latents.items())[-REMEMBERED:])
        return latents

    def sample(
        self,
        prompt_embeds: Tensor,
        ref_latents: Tensor,
        seed: int,
        on_step: Callable[[int], None] = lambda step: None,
        on_estimate: Callable[[int, Tensor], None] = lambda step, estimate: None,
        ref_scales: Sequence[float] | None = None,
    ) -> Tensor:
        """Denoise from seeded noise to latents (1, T, C, H, W), float32. The noise is drawn on the CPU and equal on every device.

        The device is given a step's work while it does that of the step before; `on_step` is told of steps that it has done, and
        `on_estimate` of every step's estimate of the clean latents, before the device has computed it. `ref_scales` are the strengths
        of the references, the configuration's if not given.
        """
        inputs = prompt_embeds, ref_latents, self.negative_embeds
        sample = partial(self._sample, on_step=on_step, on_estimate=on_estimate)
        if not self.sharing:
            return sample(inputs, seed, ref_scales)
        return self.sharing.together("sample", sample, [None if each is None else each.cpu() for each in inputs], seed, ref_scales)

    def _sample(
        self, inputs: Sequence[Tensor | None], seed: int, ref_scales: Sequence[float] | None, **watchers: Callable[..., None]
    ) -> Tensor:
        prompt_embeds, ref_latents, negative = (
            None if each is None else sent(each, self.device).to(self.dtype) for each in inputs
        )  # fmt: skip
        condition = Condition(prompt_embeds, ref_latents)
        unconditional = None if negative is None else Condition(negative, ref_latents)
        scales = ref_scales or self.config.model.sampler.ref_guidance_scale
        return self.denoise(condition, unconditional, self.guidance(), seed, scales, self.step_cache, **watchers)

    @torch.inference_mode()
    def denoise(
        self,
        condition: Condition,
        unconditional: Condition | None,
        guidance: GuidanceScale,
        seed: int,
        ref_scales: Sequence[float] = (1.0,),
        cache: StepCache | None = None,
        on_step: Callable[[int], None] = lambda step: None,
        on_estimate: Callable[[int, Tensor], None] = lambda step, estimate: None,
    ) -> Tensor:
        """Denoise from seeded noise under conditions that are on the device; the rest is as `sample` has it."""
        args, model, sampler, device = self.config.args, self.config.model, self.config.model.sampler, self.device
        shape = 1, args.sampling_num_frames, model.transformer.in_channels, *model.latent_sides(args.sampling_image_size)
        generator = torch.Generator().manual_seed(seed)

        def noise_like(x: Tensor) -> Tensor:
            return sent(torch.randn(x.shape, generator=generator), device)

        def network(latents: Tensor, timestep: Tensor, text: Tensor, refs: Tensor | None) -> Tensor:
            return transformer(latents.to(self.dtype), timestep, text, refs)

        reached: list[Callable[[], None]] = []

        def follow(step: int, x: Tensor) -> None:
            reached.append(self.placement.mark())
            if step:
                reached[step - 1]()
                on_step(step - 1)

        schedule = self.make_schedule(model.schedule.num_timesteps, model.schedule.shift)
        steps = schedule.sampling_steps(sampler.num_inference_steps)
        start = sent(self.draw_start(shape, generator), device)
        with self.placement.on_device(self.transformer) as transformer:
            together, call = not self.placement.frugal, network
            if self.sharing and self.sharing.way == "video":
                share_unevenly(transformer.network, *self._lengths(condition))
            elif self.sharing:
                together, call = True, self.sharing.split(network)
            if cache:
                cache.begin()
            denoise = guided_denoiser(
                call, steps, condition, guidance, unconditional, together, ref_scales, *([cache.branch] if cache else [])
            )  # fmt: skip

            def watched(x: Tensor, step: int) -> Tensor:
                if cache:
                    cache.step = step
                estimate = denoise(x, step)
                on_estimate(step, estimate)
                return estimate

            latents = self.samplers[sampler.name](watched, start, steps, noise_like, follow)
        if not torch.isfinite(latents).all():
            raise UserError(f"the model gave NaN or infinite latents; check that the weights belong to this model, {finer(self.dtype)}")
        on_step(len(reached) - 1)
        return latents

    def draw_start(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw the noise (1, T, C, H, W) that denoising starts from, on the CPU, so that it is the same on every device."""
        return torch.randn(shape, generator=generator)

    def _measure_magnitudes(self) -> list[float]:
        """Ratios of steps' magnitudes in a video without prompt and references."""
        model, steps = self.config.model.transformer, self.config.model.sampler.num_inference_steps
        text = torch.zeros(1, model.text_length, model.text_hidden_size, dtype=self.dtype, device=self.device)
        cache = StepCache(self.transformer.network, "mag", None, steps)
        try:
            self.denoise(Condition(text, None), None, lambda step, timestep: 1.0, seed=0, cache=cache)
            return cache.ratios()
        finally:
            cache.remove()

    def _lengths(self, condition: Condition) -> tuple[int, int]:
        """Lengths of the sequences that processes share: frames' tokens, references' among them, and CogVideoX's text."""
        args, model = self.config.args, self.config.model
        refs = 0 if condition.ref_latents is None else condition.ref_latents.shape[1]
        whole = count_tokens(model, args.sampling_num_frames + refs, args.sampling_image_size)
        text = 0 if model.kind == "wan" else condition.prompt_embeds.shape[1]
        return whole - text, text

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Turn latents (1, T, C, H, W) into the uint8 frames (F, H, W, 3) of one video, F = 4 (T - 1) + 1; so they leave the device."""
        tiled = self.placement.frugal or self.config.args.tiled_decoding
        with self.placement.on_device(self.autoencoder) as autoencoder:
            video = autoencoder.decode(latents.to(self.device), tiled=tiled)
        if not torch.isfinite(video).all():
            raise UserError(f"the autoencoder gave NaN or infinite pixels; check its weights, {finer(self.dtype)}")
        return to_frames(video[0])


class CogVideoXPipeline(VideoPipeline):
    """T5, CogVideoX's transformer and its VAE: v-prediction with zero terminal SNR, guidance away from zero text."""

    samplers, make_schedule = SAMPLERS, staticmethod(zero_snr_schedule)

    def guidance(self) -> GuidanceScale:
        """Constant, or by one of the dynamic schedules, of which the released one may have an n of its own."""
        sampler = self.config.model.sampler
        guided_steps = sampler.guidance_steps if sampler.guidance == "dynamic" else None
        steps = guided_steps or sampler.num_inference_steps
        return guidance_scale(sampler.guidance, sampler.guidance_scale, steps, sampler.guidance_exponent)


class WanPipeline(VideoPipeline):
    """UMT5, Wan's transformer and its VAE: flow matching, guidance away from a negative prompt that keeps the references."""

    samplers, make_schedule = FLOW_SAMPLERS, staticmethod(FlowSchedule)

    def draw_start(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw the noise (1, T, C, H, W) channels first, as released, so that a seed gives what it gives there."""
        batch, frames, channels, *sides = shape
        return torch.randn(batch, channels, frames, *sides, generator=generator).transpose(1, 2).contiguous()


PIPELINES = {"cogvideox": CogVideoXPipeline, "wan": WanPipeline}


def make_pipeline(
    config: Config, device: torch.device, cache_dir: Path | None = None, sharing: Sharing | None = None
) -> VideoPipeline:
    """Make the pipeline of the configuration's backbone, which makes its videos together with other processes if `sharing` is given.

    Raises `UserError` for options whose library is not installed.
    """
    args = config.args
    needed = {"torchao": args.quantize and not args.gguf, "gguf": args.gguf, "cache_dit": args.cache == "dbcache"}
    if missing := next((name for name, is_needed in needed.items() if is_needed and not find_spec(name)), None):
        option = "--cache dbcache" if missing == "cache_dit" else f"--quantize {args.quantize}"
        raise UserError(f"{option}: found no package {missing}, which it needs; run bash scripts/setup.sh acceleration")
    if config.model.kind in NEIGHBOURS:
        return import_module(f"concat_id.sampling.{config.model.kind}").Pipeline(config, device, cache_dir)
    return PIPELINES[config.model.kind](config, device, cache_dir, sharing)
