"""The `model:` sections of systems beside Concat-ID, which are run and compared under the same commands: ConsisID and ConsistentID."""

from dataclasses import dataclass, field
from typing import Literal

from concat_id.config.cogvideox import FaceConfig
from concat_id.config.typed import setting, size

IDENTITY_SIZE = 512  # numbers of the ArcFace vectors that ConsistentID takes
BUFFALO = "models/buffalo_l"  # insightface's detector and recogniser, which make them
HEIGHT, WIDTH = "pixel rows of an image", "pixel columns of an image"
ONE_STRENGTH = "strength of the photo"


class OnePerson:
    """What the sections of single-person systems tell of their images; the time is compressed 4 times, as in CogVideoX."""

    height: int
    width: int
    num_frames: int
    fps = 8  # frames per second
    max_people = trained_refs = 1

    @property
    def largest_size(self) -> tuple[int, int]:
        """Height and width that the model is made for."""
        return self.height, self.width

    @property
    def max_latent_frames(self) -> int:
        """Latent frames of the longest video."""
        return (self.num_frames - 1) // 4 + 1


@dataclass
class ConsisIDSamplerConfig:
    """How to denoise."""

    name: Literal["released"] = setting("released", "sampler; the one that its folder names")
    num_inference_steps: int = size(50, "denoising steps", low=2)
    guidance: Literal["constant", "dynamic"] = setting("constant", "schedule of the scale")
    guidance_scale: float = size(6.0, "strength of the text", low=1)
    ref_guidance_scale: tuple[float, ...] = size((1.0,), f"{ONE_STRENGTH}; the model knows but 1", low=1, high=1)


@dataclass
class ConsisIDConfig(OnePerson):
    """ConsisID, 6.16 B: a CogVideoX that reads a face's features in cross-attentions of their own."""

    kind: Literal["consisid"] = setting("consisid", "the system")
    path: str = setting("models/ConsisID", "its folder in diffusers' layout, with face_encoder/ in it", path="read")
    sampler: ConsisIDSamplerConfig = field(default_factory=ConsisIDSamplerConfig)
    faces: FaceConfig = field(default_factory=FaceConfig)
    negative_prompt: str | None = setting(None, "text of guidance's other branch; null, as released, is the empty text")
    height: int = size(480, HEIGHT, low=16)
    width: int = size(720, WIDTH, low=16)
    num_frames: int = size(49, "pixel frames of the longest video, 4 n + 1", low=1)


@dataclass
class ConsistentIDSamplerConfig:
    """How to denoise."""

    name: Literal["euler", "ddim"] = setting("euler", "sampler; Euler's method is the released one")
    num_inference_steps: int = size(50, "denoising steps", low=2)
    guidance: Literal["constant"] = setting("constant", "schedule of the scale")
    guidance_scale: float = size(5.0, "strength of the text", low=1)
    ref_guidance_scale: tuple[float, ...] = size((1.0,), f"{ONE_STRENGTH}: factor of the attention to its identity tokens", low=0)
    start_merge_step: int = size(30, "last step with the plain text; the text fused with the face's parts follows", low=0)


@dataclass
class ConsistentIDFaceConfig(FaceConfig):
    """Face models."""

    detector: str = setting(BUFFALO, "folder of insightface's detector", path="read")
    recognizer: str = setting(BUFFALO, "folder of its recogniser, whose vectors have 512 numbers", path="read")


@dataclass
class ConsistentIDConfig(OnePerson):
    """ConsistentID, 184 M: an adapter of Stable Diffusion 1.5 that makes portraits from the parts of a face."""

    kind: Literal["consistentid"] = setting("consistentid", "the system")
    base: str = setting("models/Realistic_Vision_V6.0_B1_noVAE", "Stable Diffusion 1.5, a folder in diffusers' layout", path="read")
    base_file: str | None = setting(
        None, "other weights of Stable Diffusion 1.5, in one .safetensors file; sizes and tokenizer stay those of base", path="read"
    )
    image_encoder: str = setting("models/CLIP-ViT-H-14-laion2B-s32B-b79K", "CLIP's image encoder, a folder", path="read")
    lora_weights: tuple[str, ...] = setting((), "LoRA files of Stable Diffusion 1.5 to load beside the adapter", path="read")
    sampler: ConsistentIDSamplerConfig = field(default_factory=ConsistentIDSamplerConfig)
    faces: ConsistentIDFaceConfig = field(default_factory=ConsistentIDFaceConfig)
    negative_prompt: str | None = setting(
        "monochrome, lowres, bad anatomy, worst quality, low quality, blurry", "text of guidance's other branch"
    )
    pairing: Literal["released", "intended"] = setting(
        "released", "which word a part is fused into: the released weights were trained with ears and eyes swapped"
    )
    height: int = size(768, HEIGHT, low=8)
    width: int = size(512, WIDTH, low=8)
    num_frames: int = size(1, "a portrait", low=1, high=1)
    rank: int = size(128, "training: rank of the products beside the attention layers", low=1, training=True)
    text_dropout: float = size(0.1, "training: probability that text and photo are dropped, but not the face's vector", low=0, high=1,
                               training=True)  # fmt: skip
    mask_loss_prob: float = size(0.5, "training: probability that a batch's loss leaves the background out", low=0, high=1, training=True)
    localization: Literal["cross", "self"] = setting(
        "cross", "training: attention that is drawn to the parts; self is the released bug", training=True
    )
    localization_weight: float = size(0.01, "training: factor of that loss", low=0, training=True)


NEIGHBOURS = {"consisid": ConsisIDConfig, "consistentid": ConsistentIDConfig}  # by model.kind
PARTS_OF_CONSISID = {"transformer": "transformer", "text_encoder": "text_encoder", "autoencoder": "vae"}  # folders by name
FACE_PICKLES = "detection_Resnet50_Final.pth", "parsing_bisenet.pth", "EVA02_CLIP_L_336_psz14_s6B.pt"  # in ConsisID's face_encoder/
FACE_FILES = *FACE_PICKLES, "models/antelopev2/glintr100.onnx", "models/antelopev2/scrfd_10g_bnkps.onnx"
PARTS_OF_BASE = {"unet": "unet", "text_encoder": "text_encoder", "autoencoder": "vae"}


def weight_paths(model: ConsisIDConfig | ConsistentIDConfig, load: str | None) -> dict[str, str]:
    """Name the weights of a system by what they are; `load` is ConsistentID's adapter."""
    if model.kind == "consisid":
        faces = {name.rpartition("/")[2]: f"face_encoder/{name}" for name in FACE_FILES}
        return {name: f"{model.path}/{part}" for name, part in (PARTS_OF_CONSISID | faces).items()}
    base = {"base": model.base_file} if model.base_file else {name: f"{model.base}/{folder}" for name, folder in PARTS_OF_BASE.items()}
    own = {f"lora_{number}": file for number, file in enumerate(model.lora_weights, 1)}
    return {"adapter": load or "", **base, "image_encoder": model.image_encoder, **own}
