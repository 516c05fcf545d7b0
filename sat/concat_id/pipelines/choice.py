"""Which pipeline goes with a configuration."""

from pathlib import Path

import torch

from concat_id.config.schema import Config
from concat_id.pipelines.base import VideoPipeline
from concat_id.pipelines.cogvideox import ConcatIDPipeline
from concat_id.pipelines.wan import WanPipeline


def make_pipeline(config: Config, device: torch.device, cache_dir: Path | None = None) -> VideoPipeline:
    """Make the pipeline of the configuration's backbone."""
    kind = WanPipeline if config.model.kind == "wan" else ConcatIDPipeline
    return kind(config, device, cache_dir)
