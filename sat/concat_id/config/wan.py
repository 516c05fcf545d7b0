"""The `model:` section of the Wan backbone as typed data; keys that `cogvideox.py` has mean what they mean there."""

from dataclasses import dataclass, field
from typing import Literal

from concat_id.config.cogvideox import (
    CHECKPOINTING,
    LARGEST,
    LEVELS,
    REF_GUIDANCE,
    AutoencoderConfig,
    FaceConfig,
    LoraConfig,
    OfVideos,
    TextEncoderConfig,
)
from concat_id.config.typed import setting, size

WAN_FOLDER = "models/Wan-AI/Wan2.1-T2V-1.3B"  # where the original keeps Wan's own files


@dataclass(kw_only=True)
class WanTransformerConfig:
    """The Wan2.1 diffusion transformer; the defaults are T2V-1.3B's."""

    num_layers: int = size(30, "layers", low=1, high=1000)
    hidden_size: int = size(1536, "width of a token", low=1)
    num_attention_heads: int = size(12, "attention heads", low=1)
    ffn_dim: int = size(8960, "width inside the MLP", low=1)
    time_embed_dim: int = size(256, "width of the sinusoid of the time", low=2)
    in_channels: int = size(16, "latent channels in", low=1)
    out_channels: int = size(16, "latent channels out", low=1)
    patch_size: int = size(2, "latents per token along height and width", low=1)
    text_hidden_size: int = size(4096, "width of the text encoder's tokens", low=1)
    text_length: int = size(512, "text tokens, padded", low=1)
    latent_height: int = size(60, LARGEST["latent_height"], low=1)
    latent_width: int = size(104, LARGEST["latent_width"], low=1)
    num_frames: int = size(81, LARGEST["num_frames"], low=1)
    time_compressed_rate: int = size(4, "pixel frames per latent frame", low=1)
    max_refs: int = size(3, "most people in a video", low=1, high=64, training=True)
    ref_modulation: bool = setting(False, "the AdaLN variant: references have modulations of their own")
    checkpoint_activations: bool = setting(False, CHECKPOINTING, training=True)


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
    max_length: int = size(512, "tokens of a prompt, padded", low=1)
    kind: Literal["umt5", "t5"] = setting("umt5", "t5: the folder of a T5 encoder, as CogVideoX has it")


@dataclass
class WanAutoencoderConfig(AutoencoderConfig):
    """Wan's causal 3D VAE."""

    path: str = setting(f"{WAN_FOLDER}/Wan2.1_VAE.pth", "its file, or a diffusers folder", path="read")
    block_out_channels: tuple[int, ...] = size((96, 192, 384, 384), LEVELS, low=1)
    layers_per_block: int = size(2, "residual blocks of a level", low=1)
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
