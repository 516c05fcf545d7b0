"""Concat-ID on CogVideoX: a prompt and prepared references in, pixels out."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from concat_id.config import Config
from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.guidance import guidance_scale
from concat_id.diffusion.samplers import SAMPLERS
from concat_id.diffusion.schedule import zero_snr_schedule
from concat_id.errors import UserError
from concat_id.files import resolve_path
from concat_id.models.attention import can_run
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.models.text_encoder import TextEncoder
from concat_id.models.transformer import UNUSED_IN_CHECKPOINTS, DiffusionTransformer
from concat_id.pipelines.placement import Placement
from concat_id.transforms import to_tensor
from concat_id.weights import load_sat_checkpoint, load_strictly


class ConcatIDPipeline:
    """Text encoder, transformer and autoencoder of one configuration; each is loaded when first needed."""

    def __init__(self, config: Config, device: torch.device, cache_dir: Path | None = None):
        self.config = config
        self.placement = Placement(device, config.args.memory)
        self.dtype: torch.dtype = getattr(torch, config.args.dtype_name)
        self.cache_dir = cache_dir
        self.schedule = zero_snr_schedule(config.model.schedule.num_timesteps, config.model.schedule.shift)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """T5; reads its weights only for prompts that are not cached. Frugal placement leaves it on the CPU: it runs once a prompt."""
        device = torch.device("cpu") if self.placement.frugal else self.placement.device
        return TextEncoder.from_config(
            self.config.model.text_encoder, self.dtype, device, self.cache_dir, trust=self.config.args.trust_checkpoint
        )

    @cached_property
    def transformer(self) -> DiffusionTransformer:
        """The diffusion transformer with the weights of `args.load`."""
        transformer = DiffusionTransformer(self.config.model.transformer, device="meta")
        checkpoint = load_sat_checkpoint(resolve_path(self.config.args.load), trust=self.config.args.trust_checkpoint)
        load_strictly(transformer, checkpoint.state_dict, checkpoint.source, ignore=UNUSED_IN_CHECKPOINTS, dtype=self.dtype)
        self._choose_kernel(transformer)
        return self.placement.streamed(transformer.requires_grad_(False).eval())

    @cached_property
    def autoencoder(self) -> VideoAutoencoder:
        """The video VAE."""
        model = self.config.model
        return VideoAutoencoder.from_config(model.autoencoder, model.scale_factor, self.config.args.trust_checkpoint, self.dtype)

    def _choose_kernel(self, transformer: DiffusionTransformer) -> None:
        mixin, kernel = transformer.get_mixin("adaln_layer"), self.config.args.attention_kernel
        if not can_run(kernel, self.placement.device, self.dtype, mixin.head_size):
            where = f"{self.placement.device} in {self.config.args.dtype_name}"
            raise UserError(f"args.attention_kernel: {kernel} cannot run on {where}; choose another or auto")
        mixin.attention_kernel = kernel
        if self.config.args.compile:
            mixin.compile_block()

    def _finer(self) -> str:
        """What to try against overflow, as the end of a message."""
        return {"bfloat16": "or try --bf16 false", "float16": "or try --bf16"}.get(self.config.args.dtype_name, "or download them again")

    def load(self) -> None:
        """Load transformer and autoencoder now, so that what is wrong with their files is told once and early."""
        _ = self.transformer, self.autoencoder

    def encode_prompts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embed prompts, (1, L, D) each on the CPU, then let go of the text encoder unless everything may stay resident."""
        embeddings = [self.text_encoder.encode([prompt]).cpu() for prompt in prompts]
        if self.placement.memory != "high":
            self.text_encoder.unload()
        return embeddings

    @torch.inference_mode()
    def encode_references(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode prepared pictures, each alone as a single frame: (1, R, C, H, W)."""
        pixels = torch.stack([to_tensor(image) for image in images])[:, :, None]  # (R, 3, 1, H, W)
        with self.placement.on_device(self.autoencoder) as autoencoder:
            latents = [autoencoder.encode(pixel[None].to(self.placement.device, self.dtype)) for pixel in pixels]
        return torch.cat(latents, dim=1).float()

    @torch.inference_mode()
    def sample(self, prompt_embeds: Tensor, ref_latents: Tensor, seed: int, on_step: Callable[[int], None] = lambda step: None) -> Tensor:
        """Denoise from seeded noise to latents (1, T, C, H, W), float32. The noise is drawn on the CPU and equal on every device."""
        args, sampler = self.config.args, self.config.model.sampler
        device = self.placement.device
        sides = [side // self.config.model.autoencoder.spatial_factor for side in args.sampling_image_size]
        shape = 1, args.sampling_num_frames, self.config.model.transformer.in_channels, *sides
        generator = torch.Generator().manual_seed(seed)

        def noise_like(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator).to(x.device)

        def network(latents: Tensor, timestep: Tensor, text: Tensor, refs: Tensor | None) -> Tensor:
            return transformer(latents.to(self.dtype), timestep, text.to(self.dtype), None if refs is None else refs.to(self.dtype))

        steps = self.schedule.sampling_steps(sampler.num_inference_steps)
        guided_steps = sampler.guidance_steps if sampler.guidance == "dynamic" else None
        scale = guidance_scale(
            sampler.guidance, sampler.guidance_scale, guided_steps or sampler.num_inference_steps, sampler.guidance_exponent
        )
        condition = Condition(prompt_embeds.to(device), ref_latents.to(device))
        start = noise_like(torch.empty(shape, device=device))
        with self.placement.on_device(self.transformer) as transformer:
            denoise = guided_denoiser(network, steps, condition, scale, batched=not self.placement.frugal)
            latents = SAMPLERS[sampler.name](denoise, start, steps, noise_like, lambda step, x: on_step(step))
        if not torch.isfinite(latents).all():
            raise UserError(f"the model gave NaN or infinite latents; check that the weights belong to this model, {self._finer()}")
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (1, T, C, H, W) into one video (3, F, H, W) in [-1, 1] on the CPU, F = 4 (T - 1) + 1."""
        with self.placement.on_device(self.autoencoder) as autoencoder:
            video = autoencoder.decode(latents.to(self.placement.device), tiled=self.placement.frugal)
        if not torch.isfinite(video).all():
            raise UserError(f"the autoencoder gave NaN or infinite pixels; check its weights, {self._finer()}")
        return video[0].float().cpu()
