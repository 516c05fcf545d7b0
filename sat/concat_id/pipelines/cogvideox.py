"""Concat-ID on CogVideoX: v-prediction with zero terminal SNR, SDE-DPM-Solver++ or DDIM, guidance away from zero text."""

from pathlib import Path

import torch

from concat_id.config.schema import Config
from concat_id.diffusion.guidance import GuidanceScale, guidance_scale
from concat_id.diffusion.samplers import SAMPLERS
from concat_id.diffusion.schedule import zero_snr_schedule
from concat_id.pipelines.base import VideoPipeline


class ConcatIDPipeline(VideoPipeline):
    """T5, CogVideoX's transformer and its VAE."""

    samplers = SAMPLERS

    def __init__(self, config: Config, device: torch.device, cache_dir: Path | None = None):
        super().__init__(config, device, cache_dir)
        self.schedule = zero_snr_schedule(config.model.schedule.num_timesteps, config.model.schedule.shift)

    def guidance(self) -> GuidanceScale:
        """Constant, or one of the dynamic courses."""
        sampler = self.config.model.sampler
        guided_steps = sampler.guidance_steps if sampler.guidance == "dynamic" else None
        steps = guided_steps or sampler.num_inference_steps
        return guidance_scale(sampler.guidance, sampler.guidance_scale, steps, sampler.guidance_exponent)
