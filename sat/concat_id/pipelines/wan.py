"""Concat-ID on Wan2.1: flow matching, Euler's method or UniPC, guidance away from a negative prompt that keeps the references."""

from pathlib import Path

import torch

from concat_id.config.schema import Config
from concat_id.diffusion.flow import FLOW_SAMPLERS, FlowSchedule
from concat_id.diffusion.guidance import GuidanceScale, guidance_scale
from concat_id.pipelines.base import VideoPipeline


class WanPipeline(VideoPipeline):
    """UMT5, Wan's transformer and its VAE."""

    samplers = FLOW_SAMPLERS

    def __init__(self, config: Config, device: torch.device, cache_dir: Path | None = None):
        super().__init__(config, device, cache_dir)
        self.schedule = FlowSchedule(config.model.schedule.num_timesteps, config.model.schedule.shift)

    def guidance(self) -> GuidanceScale:
        """Constant."""
        sampler = self.config.model.sampler
        return guidance_scale(sampler.guidance, sampler.guidance_scale, sampler.num_inference_steps)
