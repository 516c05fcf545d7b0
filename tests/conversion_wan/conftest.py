"""A tiny Wan in both variants, converted once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_wan import TINY, write_native_wan

from concat_id.config.wan import WanAutoencoderConfig, WanModelConfig, WanTextEncoderConfig
from concat_id.conversion.wan_folders import find_source, to_diffusers
from concat_id.sampling.diffusers_wan import ConcatIDWanPipeline

FILES = {"first_stage": "first_stage.pt", "adaln": "second_stage_adaln.pt"}
START = torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(3))
SETTINGS = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 3, "max_sequence_length": TINY.text_length}


@dataclass
class Converted:
    """Native files, the configuration that names them, and the diffusers folder of each variant."""

    native: Path
    model: WanModelConfig
    folders: dict[str, Path]

    def pipeline(self, variant: str | Path = "adaln", **options) -> ConcatIDWanPipeline:
        """Load a variant, or a folder, as a user does."""
        folder = str(self.folders.get(variant, variant))
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe


@pytest.fixture(scope="session")
def wan(tmp_path_factory) -> Iterator[Converted]:
    native = write_native_wan(tmp_path_factory.mktemp("native"))
    model = WanModelConfig(
        transformer=TINY,
        text_encoder=WanTextEncoderConfig(path=str(native / "models_t5_umt5-xxl-enc-bf16.pth"), max_length=TINY.text_length),
        autoencoder=WanAutoencoderConfig(path=str(native / "Wan2.1_VAE.pth"), block_out_channels=(8, 16, 32, 32)),
    )
    folders = {variant: tmp_path_factory.mktemp("hf") / variant for variant in FILES}
    for variant, folder in folders.items():
        to_diffusers(find_source(native / FILES[variant]), folder, model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Converted(native, model, folders)
