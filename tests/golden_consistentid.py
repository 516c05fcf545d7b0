"""The networks that ConsistentID's golden files were made with."""

from pathlib import Path

import pytest
import torch
from conftest import golden_meta, seeded
from diffusers import UNet2DConditionModel

from concat_id.models.consistentid.adapter import AdapterSizes, ConsistentIDAdapter

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
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(Path(__file__).parent / "golden" / "clip_tokenizer")
