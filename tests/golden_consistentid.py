"""The networks that ConsistentID's golden files were made with."""

from pathlib import Path

import pytest
import torch
from conftest import golden_meta, seeded
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from concat_id.models.consistentid.adapter import AdapterSizes, ConsistentIDAdapter, released_groups
from concat_id.models.consistentid.base_model import NOISE

META = golden_meta("consistentid_shared")
_FE = META["sizes"]["fe"]
SIZES = AdapterSizes(
    META["sizes"]["d"], META["sizes"]["clip"], _FE["dim"], _FE["depth"], _FE["heads"], _FE["dim_head"], META["sizes"]["rank"],
)  # fmt: skip


def weights(group: str) -> dict[str, torch.Tensor]:
    """A group's tensors, as the golden files' README defines them."""
    tensors = {}
    for key, shape in META["keys"][group].items():
        tensor = seeded(f"consistentid/{group}/{key}", shape)
        plain = len(shape) < 2
        tensors[key] = 0.1 * tensor + key.endswith("weight") if plain else tensor / torch.tensor(shape[1:]).prod().sqrt()
    return tensors


def make_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**META["unet_config"])
    unet.load_state_dict(weights("unet"))
    return unet.eval().requires_grad_(False)


def make_adapter() -> ConsistentIDAdapter:
    adapter = ConsistentIDAdapter(make_unet(), SIZES)
    adapter.load_state_dict({f"{group}.{key}": tensor for group in ("image_proj", "adapter_modules", "FacialEncoder")
                             for key, tensor in weights(group).items()})  # fmt: skip
    return adapter.eval()


@pytest.fixture(scope="session")
def tokenizer():
    """The words of the golden files in CLIP's tokenizer, under its numbers."""
    return CLIPTokenizer.from_pretrained(Path(__file__).parent / "golden" / "clip_tokenizer")


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory, tokenizer) -> Path:
    """Base model `base`, image encoder `clip` and `adapter.bin` of the golden files, in the real formats."""
    folder, sizes = tmp_path_factory.mktemp("consistentid"), META["sizes"]
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=sizes["d"], intermediate_size=2 * sizes["d"], num_hidden_layers=sizes["text_layers"],
        num_attention_heads=sizes["text_heads"], max_position_embeddings=77, hidden_act="quick_gelu",
    ))  # fmt: skip
    text.load_state_dict(weights("text_encoder"))
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=sizes["clip"], intermediate_size=2 * sizes["clip"], num_hidden_layers=sizes["clip_layers"],
        num_attention_heads=sizes["clip_heads"], image_size=224, patch_size=sizes["patch"], projection_dim=32, hidden_act="gelu",
    ))  # fmt: skip
    vision.load_state_dict(weights("image_encoder"))
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=make_unet(), scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "base")  # fmt: skip
    vision.save_pretrained(folder / "clip")
    torch.save(released_groups(make_adapter().state_dict()), folder / "adapter.bin")
    return folder
