"""Sizes of the Wan backbone, where its weights are and how it samples, as typed data like that of `model_config`."""

from dataclasses import dataclass, field
from typing import Literal

from concat_id.model_config import AutoencoderConfig, FaceConfig, LoraConfig, TextEncoderConfig
from concat_id.typed import bounded, path_to_read

FOLDER = "models/Wan-AI/Wan2.1-T2V-1.3B"  # where the original keeps Wan's own files


@dataclass(kw_only=True)
class WanTransformerConfig:
    """The Wan2.1 diffusion transformer; the defaults are T2V-1.3B, latent sizes and `num_frames` (of pixels) what it is trained for.

    `ref_modulation` is the AdaLN variant: references have modulations of their own.
    """

    num_layers: int = bounded(30, low=1, high=1000)
    hidden_size: int = bounded(1536, low=1)
    num_attention_heads: int = bounded(12, low=1)
    ffn_dim: int = bounded(8960, low=1)
    time_embed_dim: int = bounded(256, low=2)
    in_channels: int = bounded(16, low=1)
    out_channels: int = bounded(16, low=1)
    patch_size: int = bounded(2, low=1)
    text_hidden_size: int = bounded(4096, low=1)
    text_length: int = bounded(512, low=1)
    latent_height: int = bounded(60, low=1)
    latent_width: int = bounded(104, low=1)
    num_frames: int = bounded(81, low=1)
    time_compressed_rate: int = bounded(4, low=1)
    max_refs: int = bounded(3, low=1, high=64)
    ref_modulation: bool = False
    checkpoint_activations: bool = False

    @property
    def max_latent_frames(self) -> int:
        """Latent frames of the longest video."""
        return (self.num_frames - 1) // self.time_compressed_rate + 1


@dataclass
class WanScheduleConfig:
    """Flow matching: noise levels of training, and how far they are moved towards noise."""

    num_timesteps: int = bounded(1000, low=2)
    shift: float = bounded(5.0, low=0.001)


@dataclass
class WanSamplerConfig:
    """How to denoise: Euler's method is the released one."""

    name: Literal["euler", "unipc"] = "euler"
    num_inference_steps: int = bounded(50, low=2)
    guidance: Literal["constant"] = "constant"
    guidance_scale: float = bounded(5.0, low=0)
    ref_guidance_scale: float = bounded(1.0, low=0)


@dataclass
class WanTextEncoderConfig(TextEncoderConfig):
    """The UMT5 encoder, as Wan's own file with the tokenizer's folder google/umt5-xxl beside it or as a diffusers folder.

    Of `kind` t5 it is the folder of a T5 encoder, as CogVideoX has it.
    """

    path: str = path_to_read(f"{FOLDER}/models_t5_umt5-xxl-enc-bf16.pth")
    max_length: int = bounded(512, low=1)
    kind: Literal["umt5", "t5"] = "umt5"


@dataclass
class WanAutoencoderConfig(AutoencoderConfig):
    """Wan's causal 3D VAE: Wan2.1_VAE.pth or a diffusers folder; of `kind` cogvideox that of CogVideoX."""

    path: str = path_to_read(f"{FOLDER}/Wan2.1_VAE.pth")
    block_out_channels: tuple[int, ...] = bounded((96, 192, 384, 384), low=1)
    layers_per_block: int = bounded(2, low=1)
    kind: Literal["wan", "cogvideox"] = "wan"


@dataclass
class WanModelConfig:
    """Everything that makes up the model; keys mean what they mean in `ModelConfig`. `scale_factor` is that of a CogVideoX VAE."""

    transformer: WanTransformerConfig = field(default_factory=WanTransformerConfig)
    kind: Literal["wan"] = "wan"
    schedule: WanScheduleConfig = field(default_factory=WanScheduleConfig)
    sampler: WanSamplerConfig = field(default_factory=WanSamplerConfig)
    text_encoder: WanTextEncoderConfig = field(default_factory=WanTextEncoderConfig)
    autoencoder: WanAutoencoderConfig = field(default_factory=WanAutoencoderConfig)
    faces: FaceConfig = field(default_factory=FaceConfig)
    scale_factor: float = bounded(1.0, low=1e-6)
    ref_image_dropout: float = bounded(0.1, low=0, high=1)
    text_dropout: float = bounded(0.0, low=0, high=1)
    negative_prompt: str | None = "..."  # As released: the original's default is these three dots.
    trained_refs: int = bounded(1, low=1)
    lora: LoraConfig | None = None
