"""Sizes of the CogVideoX backbone, where its weights are and how it samples, as typed data; `wan_config` has the Wan backbone's."""

from dataclasses import dataclass, field
from typing import Literal

from concat_id.typed import bounded, path_to_read

GuidanceName = Literal["constant", "dynamic", "dynamic_intended"]


@dataclass(kw_only=True)
class TransformerConfig:
    """The diffusion transformer; latent sizes and `num_frames` (of pixels) are the largest it is trained for."""

    num_layers: int = bounded(low=1, high=1000)
    hidden_size: int = bounded(low=1)
    num_attention_heads: int = bounded(low=1)
    time_embed_dim: int = bounded(512, low=1)
    in_channels: int = bounded(16, low=1)
    out_channels: int = bounded(16, low=1)
    patch_size: int = bounded(2, low=1)
    text_hidden_size: int = bounded(4096, low=1)
    text_length: int = bounded(226, low=1)
    latent_height: int = bounded(60, low=1)
    latent_width: int = bounded(90, low=1)
    num_frames: int = bounded(49, low=1)
    time_compressed_rate: int = bounded(4, low=1)
    position_embedding: Literal["rotary", "sincos"] = "rotary"
    height_interpolation: float = bounded(1.0, low=0.01)
    width_interpolation: float = bounded(1.0, low=0.01)
    time_interpolation: float = bounded(1.0, low=0.01)
    max_sequence_length: int = bounded(64, low=1)
    max_refs: int = bounded(3, low=1, high=64)
    checkpoint_activations: bool = False

    @property
    def max_latent_frames(self) -> int:
        """Latent frames of the longest video."""
        return (self.num_frames - 1) // self.time_compressed_rate + 1


@dataclass
class ScheduleConfig:
    """Noise schedule: diffusion steps and the shift of the signal-to-noise ratio."""

    num_timesteps: int = bounded(1000, low=2)
    shift: float = bounded(1.0, low=0.001)


@dataclass
class SamplerConfig:
    """How to denoise. "dynamic" guidance is the released one with its slip, "dynamic_intended" the one meant.

    `guidance_steps` is the n of the released dynamic scale where it is not the number of steps.
    """

    name: Literal["sde_dpmpp_2m", "ddim"] = "sde_dpmpp_2m"
    num_inference_steps: int = bounded(50, low=2)
    guidance: GuidanceName = "constant"
    guidance_scale: float = bounded(6.0, low=0)
    ref_guidance_scale: float = bounded(1.0, low=0)
    guidance_exponent: float = bounded(5.0, low=0)
    guidance_steps: int | None = bounded(None, low=1)


@dataclass
class TextEncoderConfig:
    """Folder of the T5 encoder and how many tokens it gives."""

    path: str = path_to_read("models/t5-v1_1-xxl")
    max_length: int = bounded(226, low=1)


@dataclass
class AutoencoderConfig:
    """The causal 3D VAE: file (or folder) and sizes; each level but the last halves height and width."""

    path: str = path_to_read("models/vae/3d-vae.pt")
    block_out_channels: tuple[int, ...] = bounded((128, 256, 256, 512), low=1)
    layers_per_block: int = bounded(3, low=1)
    latent_channels: int = bounded(16, low=1)
    norm_num_groups: int = bounded(32, low=1)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass
class FaceConfig:
    """Folders of the face models; the fallback detector is what set-up makes."""

    detector: str = path_to_read("models/antelopev2")
    parser: str = path_to_read("models/jonathandinu/face-parsing")
    fallback_detector: str = path_to_read("models/face_detector")


@dataclass
class LoraConfig:
    """Low-rank fine-tuning."""

    rank: int = bounded(low=1)
    alpha: float = bounded(1.0, low=0)
    dropout: float = bounded(0.0, low=0, high=1)
    targets: tuple[str, ...] = ("*.attention.query_key_value", "*.attention.dense")


@dataclass
class ModelConfig:
    """Everything that makes up the model.

    `negative_prompt` is the text of guidance's other branch, none (as released) for zeros in place of its embedding; `trained_refs`
    is how many people the weights know.
    """

    transformer: TransformerConfig
    kind: Literal["cogvideox"] = "cogvideox"
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    faces: FaceConfig = field(default_factory=FaceConfig)
    scale_factor: float = bounded(0.7, low=1e-6)
    ref_image_dropout: float = bounded(0.0, low=0, high=1)
    text_dropout: float = bounded(0.1, low=0, high=1)
    negative_prompt: str | None = None
    trained_refs: int = bounded(3, low=1)
    lora: LoraConfig | None = None
