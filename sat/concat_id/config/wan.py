"""The `model:` section of the Wan backbone as typed data; keys that `cogvideox.py` has mean what they mean there."""

from dataclasses import dataclass, field
from typing import Literal

from concat_id.config.cogvideox import (
    REF_GUIDANCE,
    AutoencoderConfig,
    FaceConfig,
    LoraConfig,
    OfVideos,
    TextEncoderConfig,
    TransformerSizes,
)
from concat_id.config.typed import setting, size, with_default

WAN_FOLDER = "models/Wan-AI/Wan2.1-T2V-1.3B"  # where the original keeps Wan's own files


@dataclass(kw_only=True)
class WanTransformerConfig(TransformerSizes):
    """The Wan2.1 diffusion transformer; the defaults are T2V-1.3B's."""

    num_layers: int = with_default(TransformerSizes, "num_layers", 30)
    hidden_size: int = with_default(TransformerSizes, "hidden_size", 1536)
    num_attention_heads: int = with_default(TransformerSizes, "num_attention_heads", 12)
    time_embed_dim: int = size(256, "width of the sinusoid of the time", low=2)
    text_length: int = with_default(TransformerSizes, "text_length", 512)
    latent_width: int = with_default(TransformerSizes, "latent_width", 104)
    num_frames: int = with_default(TransformerSizes, "num_frames", 81)
    ffn_dim: int = size(8960, "width inside the MLP", low=1)
    ref_modulation: bool = setting(False, "the AdaLN variant: references have modulations of their own")


@dataclass
class WanScheduleConfig:
    """Flow matching."""

    num_timesteps: int = size(1000, "noise levels of training", low=2)
    shift: float = size(5.0, "how far they are moved towards noise", low=0.001)


@dataclass
class WanSamplerConfig:
    """How to denoise."""

    name: Literal["euler", "unipc"] = setting("euler", "sampler; Euler's method is the released one")
    num_inference_steps: int = size(50, "denoising steps", low=2)
    guidance: Literal["constant"] = setting("constant", "schedule of the scale")
    guidance_scale: float = size(5.0, "strength of the text", low=0)
    ref_guidance_scale: tuple[float, ...] = size((1.0,), REF_GUIDANCE, low=0)


@dataclass
class WanTextEncoderConfig(TextEncoderConfig):
    """The UMT5 encoder."""

    path: str = setting(f"{WAN_FOLDER}/models_t5_umt5-xxl-enc-bf16.pth", "Wan's file, or a diffusers folder", path="read")
    max_length: int = with_default(TextEncoderConfig, "max_length", 512)
    kind: Literal["umt5", "t5"] = setting("umt5", "t5: the folder of a T5 encoder, as CogVideoX has it")


@dataclass
class WanAutoencoderConfig(AutoencoderConfig):
    """Wan's causal 3D VAE."""

    path: str = setting(f"{WAN_FOLDER}/Wan2.1_VAE.pth", "its file, or a diffusers folder", path="read")
    block_out_channels: tuple[int, ...] = with_default(AutoencoderConfig, "block_out_channels", (96, 192, 384, 384))
    layers_per_block: int = with_default(AutoencoderConfig, "layers_per_block", 2)
    kind: Literal["wan", "cogvideox"] = setting("wan", "cogvideox: the VAE of CogVideoX")


@dataclass
class WanModelConfig(OfVideos):
    """Everything that makes up the model."""

    fps = 16

    transformer: WanTransformerConfig = field(default_factory=WanTransformerConfig)
    kind: Literal["wan"] = setting("wan", "the backbone")
    schedule: WanScheduleConfig = field(default_factory=WanScheduleConfig)
    sampler: WanSamplerConfig = field(default_factory=WanSamplerConfig)
    text_encoder: WanTextEncoderConfig = field(default_factory=WanTextEncoderConfig)
    autoencoder: WanAutoencoderConfig = field(default_factory=WanAutoencoderConfig)
    faces: FaceConfig = field(default_factory=FaceConfig)
    scale_factor: float = size(1.0, "factor of a CogVideoX VAE's latents after encoding", low=1e-6)
    ref_image_dropout: float = size(0.1, "training: probability that a sample's references are zeroed", low=0, high=1, training=True)
    text_dropout: float = size(0.0, "training: probability that a text is zeroed", low=0, high=1, training=True)
    negative_prompt: str | None = setting("...", "text of guidance's other branch, as released; null zeros its embedding")
    trained_refs: int = size(1, "how many people the weights were trained with", low=1, training=True)
    lora: LoraConfig | None = setting(None, "low-rank fine-tuning", training=True)
