"""The `model:` section of the CogVideoX backbone as typed data: sizes, where its weights are, and how it samples.

Keys that are marked `training` have no say in a sampled video.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from concat_id.config.typed import setting, size

GuidanceName = Literal["constant", "dynamic", "dynamic_intended"]
REF_GUIDANCE = "strength of the references, one for all people or one each, left to right; every value but 1 takes one more pass a step"


class OfVideos:
    """What a backbone's section tells of its videos."""

    fps = 8  # frames per second

    @property
    def largest_size(self) -> tuple[int, int]:
        """Height and width that the model is made for."""
        factor = self.autoencoder.spatial_factor
        return self.transformer.latent_height * factor, self.transformer.latent_width * factor

    @property
    def num_frames(self) -> int:
        """Pixel frames of the longest video."""
        return self.transformer.num_frames

    @property
    def max_latent_frames(self) -> int:
        """Latent frames of the longest video."""
        return self.latent_frames(self.num_frames)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of so many pixel frames."""
        return (frames - 1) // self.transformer.time_compressed_rate + 1

    def latent_sides(self, size: Sequence[int]) -> list[int]:
        """Latent height and width of images of `size` (height, width)."""
        return [side // self.autoencoder.spatial_factor for side in size]

    @property
    def max_people(self) -> int:
        """The most people in a video."""
        return self.transformer.max_refs


@dataclass(kw_only=True)
class TransformerSizes:
    """What the transformers of both backbones have, with CogVideoX-5B's defaults."""

    num_layers: int = size(text="layers", low=1, high=1000)
    hidden_size: int = size(text="width of a token", low=1)
    num_attention_heads: int = size(text="attention heads", low=1)
    time_embed_dim: int = size(512, "width of the time embedding", low=1)
    in_channels: int = size(16, "latent channels in", low=1)
    out_channels: int = size(16, "latent channels out", low=1)
    patch_size: int = size(2, "latents per token along height and width", low=1)
    text_hidden_size: int = size(4096, "width of the text encoder's tokens", low=1)
    text_length: int = size(226, "text tokens, padded", low=1)
    latent_height: int = size(60, "latent rows of the largest video", low=1)
    latent_width: int = size(90, "latent columns of the largest video", low=1)
    num_frames: int = size(49, "pixel frames of the longest video, 4 n + 1", low=1)
    time_compressed_rate: int = size(4, "pixel frames per latent frame", low=1)
    max_refs: int = size(3, "most people in a video", low=1, high=64, training=True)
    checkpoint_activations: bool = setting(False, "recompute activations in training to save memory", training=True)


@dataclass(kw_only=True)
class TransformerConfig(TransformerSizes):
    """The diffusion transformer; the defaults are CogVideoX-5B's where a file need not say them."""

    position_embedding: Literal["rotary", "sincos"] = setting("rotary", "positions: rotary (5B) or sincos (2B)")
    height_interpolation: float = size(1.0, "sincos: stretch of the positions along height", low=0.01)
    width_interpolation: float = size(1.0, "sincos: stretch of the positions along width", low=0.01)
    time_interpolation: float = size(1.0, "sincos: stretch of the positions along time", low=0.01)
    max_sequence_length: int = size(64, "rows of a table in the file format that nothing uses", low=1)


@dataclass
class ScheduleConfig:
    """The noise schedule."""

    num_timesteps: int = size(1000, "diffusion steps", low=2)
    shift: float = size(1.0, "shift of the signal-to-noise ratio", low=0.001)


@dataclass
class SamplerConfig:
    """How to denoise."""

    name: Literal["sde_dpmpp_2m", "ddim"] = setting("sde_dpmpp_2m", "sampler")
    num_inference_steps: int = size(50, "denoising steps", low=2)
    guidance: GuidanceName = setting(
        "constant", "schedule of the scale: dynamic is the released one with its bug, dynamic_intended the one meant"
    )
    guidance_scale: float = size(6.0, "strength of the text", low=0)
    ref_guidance_scale: tuple[float, ...] = size((1.0,), REF_GUIDANCE, low=0)
    guidance_exponent: float = size(5.0, "exponent of the dynamic schedules", low=0)
    guidance_steps: int | None = size(None, "n of the released dynamic schedule where it is not the number of steps", low=1)


@dataclass
class TextEncoderConfig:
    """The T5 encoder."""

    path: str = setting("models/t5-v1_1-xxl", "its folder, in Hugging Face layout", path="read")
    max_length: int = size(226, "tokens of a prompt, padded", low=1)


@dataclass
class AutoencoderConfig:
    """The causal 3D VAE."""

    path: str = setting("models/vae/3d-vae.pt", "its file, or a diffusers folder", path="read")
    block_out_channels: tuple[int, ...] = size(
        (128, 256, 256, 512), "channels of each level; all but the last halve height and width", low=1
    )
    layers_per_block: int = size(3, "residual blocks of a level", low=1)
    latent_channels: int = size(16, "channels of the latents", low=1)
    norm_num_groups: int = size(32, "groups of GroupNorm, fixed in diffusers' blocks", low=32, high=32)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass
class FaceConfig:
    """Folders of the face models."""

    detector: str = setting("models/antelopev2", "insightface's detector", path="read")
    parser: str = setting("models/jonathandinu/face-parsing", "Segformer that parses faces", path="read")
    fallback_detector: str = setting("models/face_detector", "YuNet, which set-up prepares, where there is no other", path="read")


@dataclass
class LoraConfig:
    """Low-rank fine-tuning."""

    rank: int = size(text="rank of the update, a product of two matrices", low=1)
    alpha: float = size(1.0, "the update is scaled by alpha / rank", low=1e-6)
    dropout: float = size(0.0, "dropout of what the update sees", low=0, high=0.99)
    targets: tuple[str, ...] = setting(("*.attention.query_key_value", "*.attention.dense"), "patterns of the linear layers' names")


@dataclass
class ModelConfig(OfVideos):
    """Everything that makes up the model."""

    transformer: TransformerConfig
    kind: Literal["cogvideox"] = setting("cogvideox", "the backbone")
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    faces: FaceConfig = field(default_factory=FaceConfig)
    scale_factor: float = size(0.7, "factor of latents after encoding", low=1e-6)
    ref_image_dropout: float = size(0.0, "training: probability that all references of a batch are zeroed", low=0, high=1, training=True)
    text_dropout: float = size(0.1, "training: probability that a text is zeroed", low=0, high=1, training=True)
    negative_prompt: str | None = setting(None, "text of guidance's other branch; null, as released, zeros its embedding")
    trained_refs: int = size(3, "how many people the weights were trained with", low=1, training=True)
    lora: LoraConfig | None = setting(None, "low-rank fine-tuning", training=True)
    not_trainable_prefixes: tuple[str, ...] = setting(
        (), "what training leaves as it is: beginnings of the checkpoint's names, such as model.diffusion_model.mixins, or all (with lora)",
        training=True,
    )  # fmt: skip
